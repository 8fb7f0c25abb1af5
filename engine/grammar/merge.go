package grammar

import (
	"encoding/json"
	"math/big"
	"slices"
)

// merges makes one schema of several that all must hold.
type merges struct {
	resolve func(pointer, where string) (any, error)
	done    int
}

// flatten merges s with what its $ref points to and the parts of its allOf.
func (m *merges) flatten(s *object, where string) (any, error) {
	base := s.clone()
	base.remove("$ref")
	base.remove("allOf")
	var flat any = base
	var parts []any
	if v, ok := s.fields["$ref"]; ok {
		pointer, ok := v.(string)
		if !ok {
			return nil, fail(where+"/$ref", "want a string")
		}
		target, err := m.resolve(pointer, where)
		if err != nil {
			return nil, err
		}
		parts = append(parts, target)
	}
	if v, ok := s.fields["allOf"]; ok {
		list, ok := v.([]any)
		if !ok {
			return nil, fail(where+"/allOf", "want a list of schemas")
		}
		parts = append(parts, list...)
	}
	for _, part := range parts {
		var err error
		if flat, err = m.merge(flat, part, where); err != nil {
			return nil, err
		}
	}
	return flat, nil
}

// merge returns a schema that allows what both a and b allow.
func (m *merges) merge(a, b any, where string) (any, error) {
	if m.done++; m.done > maxMerges {
		return nil, fail(where, "schemas merge with each other without end")
	}
	for _, s := range []*any{&a, &b} {
		switch v := (*s).(type) {
		case bool:
			if !v {
				return false, nil
			}
			*s = newObject()
		case *object:
			if v.has("$ref", "allOf") {
				flat, err := m.flatten(v, where)
				if err != nil {
					return nil, err
				}
				if *s = flat; flat == false {
					return false, nil
				}
			}
		default:
			return nil, fail(where, "a schema is an object, true or false")
		}
	}
	x, y := a.(*object), b.(*object)
	if x.has("properties", "additionalProperties") || y.has("properties", "additionalProperties") {
		var err error
		if x, y, err = m.mergeProperties(x, y, where); err != nil {
			return nil, err
		}
	}
	out := x.clone()
	for _, key := range y.keys {
		v := y.fields[key]
		old, ok := out.fields[key]
		if !ok || slices.Contains(annotations, key) {
			out.set(key, v)
			continue
		}
		merged, err := m.keyword(key, old, v, where)
		if err != nil {
			return nil, err
		}
		out.set(key, merged)
	}
	return out, nil
}

// keyword merges two values of one keyword.
func (m *merges) keyword(key string, a, b any, where string) (any, error) {
	if compact(a) == compact(b) {
		return a, nil
	}
	switch key {
	case "type":
		return mergeTypes(a, b), nil
	case "required":
		x, ok1 := a.([]any)
		y, ok2 := b.([]any)
		if ok1 && ok2 {
			return append(slices.Clone(x), y...), nil
		}
	case "enum":
		x, ok1 := a.([]any)
		y, ok2 := b.([]any)
		if ok1 && ok2 {
			other := map[string]bool{}
			for _, v := range y {
				other[compact(v)] = true
			}
			both := []any{}
			for _, v := range x {
				if other[compact(v)] {
					both = append(both, v)
				}
			}
			return both, nil
		}
	case "const":
		return nil, fail(where, "two values of const exclude each other: %s and %s", compact(a), compact(b))
	case "minimum", "exclusiveMinimum", "minLength", "minItems":
		return extreme(a, b, 1, where+"/"+key)
	case "maximum", "exclusiveMaximum", "maxLength", "maxItems":
		return extreme(a, b, -1, where+"/"+key)
	case "items":
		return m.merge(a, b, where+"/items")
	case "anyOf", "oneOf":
		x, ok1 := a.([]any)
		y, ok2 := b.([]any)
		if ok1 && ok2 {
			var pairs []any
			for _, v := range x {
				for _, w := range y {
					merged, err := m.merge(v, w, where+"/"+key)
					if err != nil {
						return nil, err
					}
					pairs = append(pairs, merged)
				}
			}
			return pairs, nil
		}
	}
	return nil, fail(where+"/"+key, "two values of this keyword cannot be merged: %s and %s", compact(a), compact(b))
}

func mergeTypes(a, b any) any {
	list := func(v any) []any {
		if l, ok := v.([]any); ok {
			return l
		}
		return []any{v}
	}
	both := []any{}
	for _, x := range list(a) {
		for _, y := range list(b) {
			switch {
			case x == y:
				both = append(both, x)
			case x == "integer" && y == "number" || x == "number" && y == "integer":
				both = append(both, "integer")
			}
		}
	}
	return both
}

// extreme returns the greater (sign 1) or smaller (sign -1) number.
func extreme(a, b any, sign int, where string) (any, error) {
	x, ok1 := a.(json.Number)
	y, ok2 := b.(json.Number)
	if !ok1 || !ok2 || len(x) > 40 || len(y) > 40 {
		return nil, fail(where, "want a number")
	}
	r, ok1 := new(big.Rat).SetString(x.String())
	s, ok2 := new(big.Rat).SetString(y.String())
	if !ok1 || !ok2 {
		return nil, fail(where, "want a number")
	}
	if r.Cmp(s)*sign >= 0 {
		return a, nil
	}
	return b, nil
}

// mergeProperties merges the properties of two objects and what they say of further ones. It returns x with all of it and y
// without.
func (m *merges) mergeProperties(x, y *object, where string) (*object, *object, error) {
	x, y = x.clone(), y.clone()
	var props [2]*object
	var more [2]any
	for i, s := range []*object{x, y} {
		props[i], more[i] = newObject(), any(true)
		if v, ok := s.fields["properties"]; ok {
			if props[i], ok = v.(*object); !ok {
				return nil, nil, fail(where+"/properties", "want an object of schemas")
			}
		}
		if v, ok := s.fields["additionalProperties"]; ok {
			more[i] = v
		}
	}
	out := newObject()
	for i, p := range props {
		for _, name := range p.keys {
			if out.has(name) {
				continue
			}
			other, ok := props[1-i].fields[name]
			if !ok {
				other = more[1-i]
			}
			merged, err := m.merge(p.fields[name], other, where+"/properties/"+name)
			if err != nil {
				return nil, nil, err
			}
			out.set(name, merged)
		}
	}
	if len(out.keys) > 0 {
		x.set("properties", out)
	}
	if x.has("additionalProperties") || y.has("additionalProperties") {
		merged, err := m.merge(more[0], more[1], where+"/additionalProperties")
		if err != nil {
			return nil, nil, err
		}
		if o, ok := merged.(*object); ok && len(o.keys) == 0 {
			merged = true
		}
		x.set("additionalProperties", merged)
	}
	y.remove("properties")
	y.remove("additionalProperties")
	return x, y, nil
}
