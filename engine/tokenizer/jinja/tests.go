package jinja

import (
	"fmt"
	"strings"
	"unicode"
)

// test tells whether v is what the test of a name asks for.
func (r *run) test(name string, v Value, args []Value) (bool, error) {
	if err := r.step(); err != nil {
		return false, err
	}
	switch name {
	case "defined", "undefined":
		_, undefined := v.(Undefined)
		return undefined == (name == "undefined"), nil
	case "none":
		return v == nil, nil
	case "boolean":
		_, ok := v.(bool)
		return ok, nil
	case "true", "false":
		b, ok := v.(bool)
		return ok && b == (name == "true"), nil
	case "integer":
		_, ok := v.(int64)
		return ok, nil
	case "float":
		_, ok := v.(float64)
		return ok, nil
	case "number":
		_, _, _, ok := number64(v)
		return ok, nil
	case "string":
		_, ok := v.(string)
		return ok, nil
	case "mapping":
		_, ok := v.(*Dict)
		return ok, nil
	case "iterable", "sequence":
		switch v.(type) {
		case string, *List, *Dict, Undefined:
			return true, nil
		}
		return false, nil
	case "callable":
		_, ok := v.(*Function)
		return ok, nil
	case "upper", "lower":
		s, err := r.str(v)
		if err == nil {
			err = r.touch(len(s))
		}
		return cased(s, name == "upper"), err
	case "odd", "even", "divisibleby":
		n, ok := v.(int64)
		by := int64(2)
		if name == "divisibleby" && len(args) > 0 {
			by, _ = args[0].(int64)
		}
		if !ok || by == 0 {
			return false, fmt.Errorf("test %s wants integers", name)
		}
		return (n%by == 0) != (name == "odd"), nil
	}
	operator, ok := comparisons[name]
	if !ok {
		return false, fmt.Errorf("no test named %s", quoted(name))
	}
	if len(args) == 0 {
		return false, fmt.Errorf("test %s wants an argument", name)
	}
	return r.compare(operator, v, args[0])
}

// comparisons are the tests that are operators.
var comparisons = map[string]string{
	"eq": "==", "equalto": "==", "==": "==", "sameas": "==", "ne": "!=", "!=": "!=", "gt": ">", "greaterthan": ">", ">": ">", "ge": ">=", ">=": ">=",
	"lt": "<", "lessthan": "<", "<": "<", "le": "<=", "<=": "<=", "in": "in",
}

// cased tells whether s has cased letters, all upper or all lower.
func cased(s string, upper bool) bool {
	return strings.ContainsFunc(s, func(c rune) bool { return unicode.IsUpper(c) || unicode.IsLower(c) }) &&
		!strings.ContainsFunc(s, func(c rune) bool { return upper && unicode.IsLower(c) || !upper && unicode.IsUpper(c) })
}
