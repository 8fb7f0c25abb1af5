package grammar

import "fmt"

// maxIndent is the number of blanks that may stand behind a line end. White space is bounded, as models are known to go on with
// it for ever.
const maxIndent = 16

// space adds what white space may stand between two parts: none, one blank, or a line end with an indent.
func space(n *nfa, from int32) int32 {
	end := n.state()
	n.link(from, end)
	n.edge(from, ' ', ' ', end)
	at := n.bytes(from, '\n', '\n')
	for i := range maxIndent + 1 {
		n.link(at, end)
		if i < maxIndent {
			next := n.bytes(at, ' ', ' ')
			n.edge(at, '\t', '\t', next)
			at = next
		}
	}
	return end
}

// blank adds one blank or none.
func blank(n *nfa, from int32) int32 {
	end := n.bytes(from, ' ', ' ')
	n.link(from, end)
	return end
}

// value is the rule of any JSON value.
func (c *schemaCompiler) value() int32 {
	return c.plainRule("value", func(n *nfa, from int32) int32 {
		end := n.state()
		for _, word := range []string{"null", "true", "false"} {
			n.link(n.text(from, word), end)
		}
		for _, rule := range []int32{
			c.plainRule("string", stringRule), c.plainRule("number", numberRule), c.anyObject(),
			c.plainRule("any array", func(n *nfa, from int32) int32 {
				inner := space(n, n.bytes(from, '[', '['))
				last := n.call(inner, c.value())
				n.link(n.call(space(n, n.bytes(last, ',', ',')), c.value()), last)
				end := n.bytes(inner, ']', ']')
				n.edge(space(n, last), ']', ']', end)
				return end
			}),
		} {
			n.link(n.call(from, rule), end)
		}
		return end
	})
}

func (c *schemaCompiler) anyObject() int32 {
	return c.plainRule("any object", func(n *nfa, from int32) int32 {
		inner := space(n, n.bytes(from, '{', '{'))
		pair := func(from int32) int32 {
			key := n.call(from, c.plainRule("string", stringRule))
			return n.call(blank(n, n.bytes(key, ':', ':')), c.value())
		}
		last := pair(inner)
		n.link(pair(space(n, n.bytes(last, ',', ','))), last)
		end := n.bytes(inner, '}', '}')
		n.edge(space(n, last), '}', '}', end)
		return end
	})
}

// properties adds an object.
func (c *schemaCompiler) properties(n *nfa, from int32, s *object, where string, depth int) (int32, error) {
	props, required, additional, err := s.objectParts(where)
	if err != nil {
		return 0, err
	}
	if additional == true && len(props.keys) == 0 {
		return n.call(from, c.anyObject()), nil
	}
	count := len(props.keys)
	// choose[i]: property i or a later one comes next. after[i]: the last one written was property i-1.
	choose, after := make([]int32, count+1), make([]int32, count+1)
	for i := range choose {
		choose[i], after[i] = n.state(), n.state()
	}
	inner := space(n, n.bytes(from, '{', '{'))
	n.link(inner, choose[0])
	closing := n.state()
	end := n.bytes(space(n, closing), '}', '}')
	lastRequired := -1
	for i, name := range props.keys {
		if required[name] {
			lastRequired = i
		}
	}
	if lastRequired < 0 {
		n.edge(inner, '}', '}', end)
	}
	for i, name := range props.keys {
		at := blank(n, n.text(choose[i], quoted(name)+":"))
		to, err := c.schema(n, at, props.fields[name], where+"/properties/"+name, depth+1)
		if err != nil {
			return 0, err
		}
		n.link(to, after[i+1])
		if !required[name] {
			n.link(choose[i], choose[i+1])
		}
	}
	for i := range count + 1 {
		if i > 0 || additional != nil {
			n.link(space(n, n.bytes(after[i], ',', ',')), choose[i])
			if i > lastRequired {
				n.link(after[i], closing)
			}
		}
	}
	if additional != nil {
		key := int32(0)
		if count == 0 {
			key = n.call(choose[0], c.plainRule("string", stringRule))
		} else {
			key = keyRule(n, choose[count], props.keys)
		}
		to, err := c.schema(n, blank(n, n.bytes(key, ':', ':')), additional, where+"/additionalProperties", depth+1)
		if err != nil {
			return 0, err
		}
		n.link(to, after[count])
	}
	return end, nil
}

// objectParts reads the keywords of an object. additional is nil if no more properties are allowed; where a schema that lists
// properties does not say, none are.
func (s *object) objectParts(where string) (props *object, required map[string]bool, additional any, err error) {
	props, required = newObject(), map[string]bool{}
	if v, ok := s.fields["properties"]; ok {
		given, ok := v.(*object)
		if !ok {
			return nil, nil, nil, fail(where+"/properties", "want an object of schemas")
		}
		props = given.clone()
	}
	additional = s.fields["additionalProperties"]
	switch additional.(type) {
	case nil, bool, *object:
	default:
		return nil, nil, nil, fail(where+"/additionalProperties", "want a schema, true or false")
	}
	if v, ok := s.fields["required"]; ok {
		list, ok := v.([]any)
		if !ok {
			return nil, nil, nil, fail(where+"/required", "want a list of names")
		}
		for _, item := range list {
			name, ok := item.(string)
			if !ok {
				return nil, nil, nil, fail(where+"/required", "want a list of names")
			}
			required[name] = true
			if !props.has(name) {
				var schema any = true
				if additional != nil {
					schema = additional
				}
				props.set(name, schema)
			}
		}
	}
	switch {
	case additional == nil && len(props.keys) == 0:
		additional = true
	case additional == false:
		additional = nil
	}
	return props, required, additional, nil
}

// array adds an array.
func (c *schemaCompiler) array(n *nfa, from int32, s *object, where string, depth int) (int32, error) {
	least, _, err := s.count("minItems", where)
	if err != nil {
		return 0, err
	}
	most, bounded, err := s.count("maxItems", where)
	if err != nil {
		return 0, err
	}
	var prefix []any
	if v, ok := s.fields["prefixItems"]; ok {
		if prefix, ok = v.([]any); !ok {
			return 0, fail(where+"/prefixItems", "want a list of schemas")
		}
	}
	items, ok := s.fields["items"]
	if !ok {
		items = len(prefix) == 0
	}
	if items == false && (!bounded || most > len(prefix)) {
		most, bounded = len(prefix), true
	}
	if least > maxItems {
		return 0, fail(where+"/minItems", "arrays of more than %d items are not supported", maxItems)
	}
	if bounded && most > maxItems {
		most = maxItems
	}
	if bounded && least > most {
		return n.state(), nil
	}
	one := max(len(prefix), least)
	if bounded {
		one = most
	}
	element := func(from int32, i int) (int32, error) {
		if i < len(prefix) {
			return c.schema(n, from, prefix[i], fmt.Sprintf("%s/prefixItems/%d", where, i), depth+1)
		}
		at := where + "/items"
		if one <= 1 {
			return c.schema(n, from, items, at, depth+1)
		}
		return n.call(from, c.rule("schema "+at, func(n *nfa, from int32) (int32, error) { return c.schema(n, from, items, at, depth+1) })), nil
	}
	gap := space
	if one > 100 {
		gap = blank // keeps long ones small
	}
	inner := space(n, n.bytes(from, '[', '['))
	closing := n.state()
	end := n.bytes(space(n, closing), ']', ']')
	if least == 0 {
		n.edge(inner, ']', ']', end)
	}
	at := inner
	for i := range one {
		if i > 0 {
			at = gap(n, n.bytes(at, ',', ','))
		}
		if at, err = element(at, i); err != nil {
			return 0, err
		}
		if i+1 >= least {
			n.link(at, closing)
		}
	}
	if bounded {
		return end, nil
	}
	if one > 0 {
		at = space(n, n.bytes(at, ',', ','))
	}
	to, err := element(at, one)
	if err != nil {
		return 0, err
	}
	last := n.state()
	n.link(to, last)
	if to, err = element(space(n, n.bytes(last, ',', ',')), one+1); err != nil {
		return 0, err
	}
	n.link(to, last)
	n.link(last, closing)
	return end, nil
}
