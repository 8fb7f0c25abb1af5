package grammar

import (
	"encoding/json"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// schemaCompiler turns a JSON Schema into the rules of a machine. The schema's own values become parts of rule 0; what is named
// by a $ref, and values of any content, become rules of their own.
type schemaCompiler struct {
	limit *budget
	root  any
	m     *machine
	rules map[string]int32
	todo  []ruleTask
	merges
}

// ruleTask is a rule that is numbered and not built yet.
type ruleTask struct {
	rule  int32
	build func(n *nfa, from int32) (int32, error) // nil: built by hand
	add   func(rule int32)
}

func compileSchema(text string) (*machine, error) {
	root, err := parseJSON(text)
	if err != nil {
		return nil, err
	}
	c := &schemaCompiler{limit: newBudget(), root: root, m: &machine{}, rules: map[string]int32{}}
	c.merges.resolve = c.resolve
	c.rule("#", func(n *nfa, from int32) (int32, error) { return c.schema(n, from, root, "#", 0) })
	for len(c.todo) > 0 && !c.limit.exceeded() {
		task := c.todo[0]
		c.todo = c.todo[1:]
		if task.add != nil {
			task.add(task.rule)
			continue
		}
		n := newNFA(c.limit)
		start := n.state()
		end, err := task.build(n, start)
		if err != nil {
			return nil, err
		}
		c.m.add(task.rule, n, start, end, c.limit)
	}
	return c.m.finish(c.limit, "no value satisfies the schema")
}

// rule returns the number of the rule with a name, which build builds if it is new.
func (c *schemaCompiler) rule(name string, build func(n *nfa, from int32) (int32, error)) int32 {
	return c.newRule(name, ruleTask{build: build})
}

func (c *schemaCompiler) newRule(name string, task ruleTask) int32 {
	if rule, ok := c.rules[name]; ok {
		return rule
	}
	task.rule = int32(len(c.m.starts))
	c.rules[name] = task.rule
	c.m.starts = append(c.m.starts, 0)
	c.todo = append(c.todo, task)
	return task.rule
}

// plainRule names a rule that cannot fail.
func (c *schemaCompiler) plainRule(name string, build func(n *nfa, from int32) int32) int32 {
	return c.rule(name, func(n *nfa, from int32) (int32, error) { return build(n, from), nil })
}

func fail(where, format string, args ...any) error {
	return &Error{where, fmt.Sprintf(format, args...)}
}

// Keywords that constrain values in ways a grammar of this kind cannot follow: leaving them out would break the promise that
// every output is valid.
var unsupported = []string{"not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "patternProperties",
	"propertyNames", "minProperties", "maxProperties", "dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems",
	"unevaluatedProperties", "multipleOf", "$dynamicRef", "$recursiveRef"}

// schema adds the values that s allows.
func (c *schemaCompiler) schema(n *nfa, from int32, s any, where string, depth int) (int32, error) {
	if depth > maxSchemaDepth {
		return 0, fail(where, "schemas are nested more than %d deep", maxSchemaDepth)
	}
	if c.limit.exceeded() {
		return 0, c.limit.err
	}
	switch s := s.(type) {
	case bool:
		if s {
			return n.call(from, c.value()), nil
		}
		return n.state(), nil // nothing leads there
	case *object:
		return c.object(n, from, s, where, depth)
	}
	return 0, fail(where, "a schema is an object, true or false")
}

func (c *schemaCompiler) object(n *nfa, from int32, s *object, where string, depth int) (int32, error) {
	for _, keyword := range unsupported {
		if s.has(keyword) && !harmless(keyword, s.fields[keyword]) {
			return 0, fail(where+"/"+keyword, "this keyword is not supported")
		}
	}
	if ref, ok := s.fields["$ref"]; ok && !s.constrains("$ref") {
		pointer, ok := ref.(string)
		if !ok {
			return 0, fail(where+"/$ref", "want a string")
		}
		target, err := c.resolve(pointer, where)
		if err != nil {
			return 0, err
		}
		return n.call(from, c.rule(pointer, func(n *nfa, from int32) (int32, error) {
			return c.schema(n, from, target, pointer, 0)
		})), nil
	}
	if s.has("$ref", "allOf") {
		flat, err := c.flatten(s, where)
		if err != nil {
			return 0, err
		}
		return c.schema(n, from, flat, where, depth+1)
	}
	for _, keyword := range []string{"anyOf", "oneOf"} {
		if !s.has(keyword) {
			continue
		}
		branches, ok := s.fields[keyword].([]any)
		if !ok || len(branches) == 0 {
			return 0, fail(where+"/"+keyword, "want a list of schemas")
		}
		base := s.clone()
		base.remove(keyword)
		end := n.state()
		for i, branch := range branches {
			at := fmt.Sprintf("%s/%s/%d", where, keyword, i)
			if base.constrains() {
				var err error
				if branch, err = c.merge(base, branch, at); err != nil {
					return 0, err
				}
			}
			begin := n.state()
			n.link(from, begin)
			to, err := c.schema(n, begin, branch, at, depth+1)
			if err != nil {
				return 0, err
			}
			n.link(to, end)
		}
		return end, nil
	}
	types, err := s.types(where)
	if err != nil {
		return 0, err
	}
	if s.has("const", "enum") {
		return c.literals(n, from, s, types, where)
	}
	if len(types) == len(allTypes) {
		return n.call(from, c.value()), nil
	}
	end := n.state()
	for _, kind := range types {
		begin := n.state()
		n.link(from, begin)
		to, err := c.typed(n, begin, kind, s, where, depth)
		if err != nil {
			return 0, err
		}
		n.link(to, end)
	}
	return end, nil
}

// harmless tells if an unsupported keyword has a value that allows all.
func harmless(keyword string, v any) bool {
	switch keyword {
	case "uniqueItems":
		return v == false
	case "minProperties":
		return v == json.Number("0")
	case "multipleOf":
		return false
	case "unevaluatedProperties", "unevaluatedItems":
		return v == true
	}
	return false
}

// annotations are keywords that constrain nothing.
var annotations = []string{"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment", "$schema",
	"$id", "$anchor", "$defs", "definitions", "$vocabulary", "contentEncoding", "contentMediaType", "contentSchema", "strict", "discriminator"}

// constrains tells if s has a keyword that constrains values, apart from some.
func (s *object) constrains(but ...string) bool {
	return slices.ContainsFunc(s.keys, func(k string) bool { return !slices.Contains(annotations, k) && !slices.Contains(but, k) })
}

var allTypes = []string{"null", "boolean", "integer", "number", "string", "array", "object"}

// implied are the keywords that mean a type where none is given. JSON Schema lets other types pass there; whoever writes them
// means the type.
var implied = map[string][]string{
	"object": {"properties", "required", "additionalProperties"},
	"array":  {"items", "prefixItems", "minItems", "maxItems"},
	"string": {"minLength", "maxLength", "pattern", "format"},
	"number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"},
}

// types returns the types that s allows; all of them if it says nothing.
func (s *object) types(where string) ([]string, error) {
	var types []string
	switch v := s.fields["type"].(type) {
	case nil:
		if s.has("type") {
			return nil, fail(where+"/type", "want a type or a list of types")
		}
		if s.has("const", "enum") {
			return allTypes, nil
		}
		for _, kind := range allTypes {
			if s.has(implied[kind]...) {
				types = append(types, kind)
			}
		}
		if types == nil {
			types = allTypes
		}
		return types, nil
	case string:
		types = []string{v}
	case []any:
		for _, item := range v {
			kind, ok := item.(string)
			if !ok {
				return nil, fail(where+"/type", "want a type or a list of types")
			}
			types = append(types, kind)
		}
	default:
		return nil, fail(where+"/type", "want a type or a list of types")
	}
	for _, kind := range types {
		if !slices.Contains(allTypes, kind) {
			return nil, fail(where+"/type", "%q is not a type: want one of %s", kind, strings.Join(allTypes, ", "))
		}
	}
	return types, nil
}

// literals adds the values of const and enum that have one of types.
func (c *schemaCompiler) literals(n *nfa, from int32, s *object, types []string, where string) (int32, error) {
	for kind, keywords := range implied {
		for _, keyword := range keywords {
			if s.has(keyword) {
				return 0, fail(where+"/"+keyword, "not supported beside const or enum (for %ss)", kind)
			}
		}
	}
	var values []any
	if s.has("enum") {
		list, ok := s.fields["enum"].([]any)
		if !ok {
			return 0, fail(where+"/enum", "want a list of values")
		}
		values = list
	}
	if v, ok := s.fields["const"]; ok {
		if s.has("enum") && !slices.ContainsFunc(values, func(e any) bool { return compact(e) == compact(v) }) {
			return n.state(), nil
		}
		values = []any{v}
	}
	end := n.state()
	for _, v := range values {
		if slices.ContainsFunc(types, func(kind string) bool { return isType(v, kind) }) {
			n.link(n.text(from, compact(v)), end)
		}
	}
	return end, nil
}

func isType(v any, kind string) bool {
	switch v := v.(type) {
	case nil:
		return kind == "null"
	case bool:
		return kind == "boolean"
	case string:
		return kind == "string"
	case []any:
		return kind == "array"
	case *object:
		return kind == "object"
	case json.Number:
		if kind == "number" {
			return true
		}
		r, ok := new(big.Rat).SetString(v.String())
		return kind == "integer" && ok && r.IsInt()
	}
	return false
}

// typed adds the values of one type.
func (c *schemaCompiler) typed(n *nfa, from int32, kind string, s *object, where string, depth int) (int32, error) {
	switch kind {
	case "null":
		return n.text(from, "null"), nil
	case "boolean":
		end := n.text(from, "true")
		n.link(n.text(from, "false"), end)
		return end, nil
	case "integer", "number":
		return c.number(n, from, s, kind == "integer", where)
	case "string":
		return c.str(n, from, s, where)
	case "array":
		return c.array(n, from, s, where, depth)
	}
	return c.properties(n, from, s, where, depth)
}

func (c *schemaCompiler) number(n *nfa, from int32, s *object, integer bool, where string) (int32, error) {
	b := bounds{integer: integer, where: where}
	for keyword, target := range map[string]**big.Rat{"minimum": &b.min, "maximum": &b.max, "exclusiveMinimum": &b.min, "exclusiveMaximum": &b.max} {
		v, ok := s.fields[keyword]
		if !ok {
			continue
		}
		number, ok := v.(json.Number)
		if !ok || len(number) > 40 || strings.ContainsAny(number.String(), "eE") && len(number) > 8 {
			return 0, fail(where+"/"+keyword, "want a number")
		}
		r, ok := new(big.Rat).SetString(number.String())
		if !ok {
			return 0, fail(where+"/"+keyword, "want a number")
		}
		open := strings.HasPrefix(keyword, "exclusive")
		tighter := *target == nil
		if !tighter {
			order := r.Cmp(*target)
			tighter = order == 0 && open || order > 0 && target == &b.min || order < 0 && target == &b.max
		}
		if tighter {
			*target = r
			if target == &b.min {
				b.minOpen = open
			} else {
				b.maxOpen = open
			}
		}
	}
	if b.min != nil || b.max != nil {
		return rangeRule(n, from, b)
	}
	if integer {
		return n.call(from, c.plainRule("integer", integerRule)), nil
	}
	return n.call(from, c.plainRule("number", numberRule)), nil
}

// count reads a keyword that is a number of things.
func (s *object) count(keyword, where string) (n int, ok bool, err error) {
	v, ok := s.fields[keyword]
	if !ok {
		return 0, false, nil
	}
	number, isNumber := v.(json.Number)
	if isNumber {
		if n, err := strconv.Atoi(strings.TrimSuffix(number.String(), ".0")); err == nil && n >= 0 {
			return n, true, nil
		}
	}
	return 0, false, fail(where+"/"+keyword, "want a whole number of 0 or more")
}

func (c *schemaCompiler) str(n *nfa, from int32, s *object, where string) (int32, error) {
	least, hasLeast, err := s.count("minLength", where)
	if err != nil {
		return 0, err
	}
	most, hasMost, err := s.count("maxLength", where)
	if err != nil {
		return 0, err
	}
	pattern, hasPattern := s.fields["pattern"].(string)
	if s.has("pattern") && !hasPattern {
		return 0, fail(where+"/pattern", "want a string")
	}
	if format, ok := s.fields["format"].(string); ok && formats[format] != "" {
		if hasPattern {
			return 0, fail(where+"/format", "not supported beside pattern")
		}
		pattern, hasPattern = formats[format], true
	}
	if least > maxStringRunes {
		return 0, fail(where+"/minLength", "strings of more than %d characters are not supported", maxStringRunes)
	}
	bounded := hasLeast && least > 0 || hasMost
	if !hasMost || most > maxStringRunes {
		most = maxStringRunes
	}
	switch {
	case hasPattern:
		re, err := parseRegex(pattern)
		if err != nil {
			return 0, fail(where+"/pattern", "%v", err)
		}
		if bounded {
			if re, err = boundedPattern(re, least, most); err != nil {
				return 0, fail(where+"/pattern", "%v", err)
			}
		}
		to, err := patternRule(n, from, re)
		if err != nil {
			return 0, fail(where+"/pattern", "%v", err)
		}
		return to, nil
	case bounded && least > most:
		return n.state(), nil
	case bounded:
		name := fmt.Sprintf("string of %d to %d", least, most)
		return n.call(from, c.newRule(name, ruleTask{add: func(rule int32) { c.m.addBoundedString(rule, least, most, c.limit) }})), nil
	}
	return n.call(from, c.plainRule("string", stringRule)), nil
}

// resolve finds what a $ref within the schema points to.
func (c *schemaCompiler) resolve(pointer, where string) (any, error) {
	path, ok := strings.CutPrefix(pointer, "#")
	if !ok || path != "" && path[0] != '/' {
		return nil, fail(where+"/$ref", "%q: only references within the schema (#/…) are supported", pointer)
	}
	at := c.root
	if path == "" {
		return at, nil
	}
	for _, step := range strings.Split(path[1:], "/") {
		if plain, err := url.PathUnescape(step); err == nil {
			step = plain
		}
		step = strings.ReplaceAll(strings.ReplaceAll(step, "~1", "/"), "~0", "~")
		switch v := at.(type) {
		case *object:
			next, ok := v.fields[step]
			if !ok {
				return nil, fail(where+"/$ref", "%q points to nothing", pointer)
			}
			at = next
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i < 0 || i >= len(v) {
				return nil, fail(where+"/$ref", "%q points to nothing", pointer)
			}
			at = v[i]
		default:
			return nil, fail(where+"/$ref", "%q points to nothing", pointer)
		}
	}
	return at, nil
}
