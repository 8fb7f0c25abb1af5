package jinja

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode"
)

// Value is what a template works with: nil (none), bool, int64, float64, string, *List, *Dict, [Undefined] or *Function. Templates do not
// change lists and dicts, so that they may be shared by renderings.
type Value any

// List is a list or a tuple, which is printed in other brackets.
type List struct {
	Items []Value
	tuple bool
}

// NewList returns a list of items, which it keeps.
func NewList(items ...Value) *List { return &List{Items: items} }

func tuple(items ...Value) *List { return &List{items, true} }

// Dict is a mapping of strings, in the order of their coming.
type Dict struct {
	keys   []string
	values map[string]Value
}

// NewDict returns an empty one.
func NewDict() *Dict { return &Dict{values: map[string]Value{}} }

// Set adds or replaces the value of key.
func (d *Dict) Set(key string, v Value) {
	if _, ok := d.values[key]; !ok {
		d.keys = append(d.keys, key)
	}
	d.values[key] = v
}

// Get returns the value of key.
func (d *Dict) Get(key string) (Value, bool) {
	v, ok := d.values[key]
	return v, ok
}

// Keys are the keys in order; they must not be changed.
func (d *Dict) Keys() []string { return d.keys }

// Undefined stands for what is not there. It prints as nothing; to look into it is an error.
type Undefined struct{ name, problem string }

func (u Undefined) err() error {
	if u.problem != "" {
		return fmt.Errorf("%s", u.problem)
	}
	return fmt.Errorf("%s is undefined", quoted(u.name))
}

// Function is what a template may call.
type Function struct {
	Name string
	Call func(c *Call) (Value, error)
}

// Call is one call of a function.
type Call struct {
	Args  []Value
	names []string
	named []Value
	run   *run
}

// Named returns the argument that was given by name.
func (c *Call) Named(name string) (Value, bool) {
	for i, n := range c.names {
		if n == name {
			return c.named[i], true
		}
	}
	return nil, false
}

// Arg returns the i-th argument, or the one given by name.
func (c *Call) Arg(i int, name string) (Value, bool) {
	if i < len(c.Args) {
		return c.Args[i], true
	}
	return c.Named(name)
}

// Pay takes n bytes that a function is about to make from the rendering's budget.
func (c *Call) Pay(n int) error { return c.run.take(n) }

// namespace is the one thing that a template may change.
type namespace struct{ values map[string]Value }

func truth(v Value) bool {
	switch v := v.(type) {
	case nil, Undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case string:
		return v != ""
	case *List:
		return len(v.Items) > 0
	case *Dict:
		return len(v.keys) > 0
	}
	return true
}

// kind names v's type as Jinja does in errors.
func kind(v Value) string {
	switch v.(type) {
	case nil:
		return "None"
	case bool:
		return "bool object"
	case int64:
		return "int object"
	case float64:
		return "float object"
	case string:
		return "str object"
	case *List:
		return "list object"
	case *Dict:
		return "dict object"
	case *namespace:
		return "Namespace object"
	case Undefined:
		return "undefined object"
	}
	return "function object"
}

// str is v as text.
func (r *run) str(v Value) (string, error) {
	switch v := v.(type) {
	case string:
		return v, nil
	case Undefined:
		return "", nil
	}
	p := printer{r: r}
	if err := p.repr(v, 0); err != nil {
		return "", err
	}
	return p.String(), nil
}

// printer writes values as Python's repr does.
type printer struct {
	strings.Builder
	r *run
}

func (p *printer) add(s string) error {
	if err := p.r.take(2*len(s) + 1); err != nil {
		return err
	}
	p.WriteString(s)
	return nil
}

func (p *printer) repr(v Value, depth int) error {
	if depth > maxValueDepth {
		return fmt.Errorf("a value is nested more than %d deep", maxValueDepth)
	}
	if err := p.r.step(); err != nil {
		return err
	}
	switch v := v.(type) {
	case nil:
		return p.add("None")
	case bool:
		if v {
			return p.add("True")
		}
		return p.add("False")
	case int64:
		return p.add(strconv.FormatInt(v, 10))
	case float64:
		return p.add(floatText(v))
	case string:
		if err := p.r.take(4 * len(v)); err != nil {
			return err
		}
		return p.add(quoted(v))
	case Undefined:
		return p.add("Undefined")
	case *List:
		open, shut := "[", "]"
		switch {
		case v.tuple && len(v.Items) == 1:
			open, shut = "(", ",)"
		case v.tuple:
			open, shut = "(", ")"
		}
		return p.parts(open, shut, len(v.Items), func(i int) error { return p.repr(v.Items[i], depth+1) })
	case *Dict:
		return p.parts("{", "}", len(v.keys), func(i int) error {
			err := p.repr(v.keys[i], depth+1)
			if err == nil {
				err = p.add(": ")
			}
			if err == nil {
				err = p.repr(v.values[v.keys[i]], depth+1)
			}
			return err
		})
	case *Function:
		return p.add("<function " + v.Name + ">")
	case *namespace:
		return p.add("<Namespace>")
	case *loop:
		return p.add("<LoopContext " + strconv.Itoa(v.at+1) + "/" + strconv.Itoa(len(v.items)) + ">")
	}
	return fmt.Errorf("cannot print %T", v)
}

func (p *printer) parts(open, shut string, n int, part func(i int) error) error {
	if err := p.add(open); err != nil {
		return err
	}
	for i := range n {
		if i > 0 {
			if err := p.add(", "); err != nil {
				return err
			}
		}
		if err := part(i); err != nil {
			return err
		}
	}
	return p.add(shut)
}

// quoted is Python's repr of a string.
func quoted(s string) string {
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, `"`) {
		quote = '"'
	}
	var b strings.Builder
	b.WriteByte(quote)
	for _, c := range s {
		switch {
		case c == rune(quote) || c == '\\':
			b.WriteByte('\\')
			b.WriteRune(c)
		case c == '\n':
			b.WriteString(`\n`)
		case c == '\r':
			b.WriteString(`\r`)
		case c == '\t':
			b.WriteString(`\t`)
		case c != ' ' && !unicode.IsPrint(c) && c < 0x100:
			fmt.Fprintf(&b, `\x%02x`, c)
		case c != ' ' && !unicode.IsPrint(c) && c < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, c)
		case c != ' ' && !unicode.IsPrint(c):
			fmt.Fprintf(&b, `\U%08x`, c)
		default:
			b.WriteRune(c)
		}
	}
	b.WriteByte(quote)
	return b.String()
}

// floatText is Python's repr of a float.
func floatText(f float64) string {
	switch {
	case math.IsNaN(f):
		return "nan"
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// items are what a loop over v gives.
func (r *run) items(v Value) ([]Value, error) {
	switch v := v.(type) {
	case *List:
		return v.Items, nil
	case *Dict:
		return r.strings(v.keys)
	case string:
		if err := r.take((itemBytes + 20) * len(v)); err != nil {
			return nil, err
		}
		items := make([]Value, 0, len(v))
		for _, c := range v {
			items = append(items, string(c))
		}
		return items, nil
	case Undefined:
		return nil, nil
	}
	return nil, fmt.Errorf("%s is not iterable", quoted(kind(v)))
}

func (r *run) strings(all []string) ([]Value, error) {
	if err := r.take((itemBytes + 16) * len(all)); err != nil {
		return nil, err
	}
	items := make([]Value, len(all))
	for i, s := range all {
		items[i] = s
	}
	return items, nil
}

// number64 is v as a number; a bool is one.
func number64(v Value) (i int64, f float64, isFloat, ok bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return 1, 1, false, true
		}
		return 0, 0, false, true
	case int64:
		return v, float64(v), false, true
	case float64:
		return 0, v, true, true
	}
	return 0, 0, false, false
}

// equal is Python's ==.
func (r *run) equal(a, b Value, depth int) (bool, error) {
	if depth > maxValueDepth {
		return false, fmt.Errorf("a value is nested more than %d deep", maxValueDepth)
	}
	if err := r.step(); err != nil {
		return false, err
	}
	ai, af, aFloat, aNumber := number64(a)
	bi, bf, bFloat, bNumber := number64(b)
	if aNumber && bNumber {
		if aFloat || bFloat {
			return af == bf, nil
		}
		return ai == bi, nil
	}
	switch a := a.(type) {
	case nil:
		return b == nil, nil
	case string:
		b, ok := b.(string)
		if !ok || len(a) != len(b) {
			return false, nil
		}
		return a == b, r.touch(len(a))
	case Undefined:
		_, ok := b.(Undefined)
		return ok, nil
	case *List:
		b, ok := b.(*List)
		if !ok || len(a.Items) != len(b.Items) || a.tuple != b.tuple {
			return false, nil
		}
		for i := range a.Items {
			if same, err := r.equal(a.Items[i], b.Items[i], depth+1); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	case *Dict:
		b, ok := b.(*Dict)
		if !ok || len(a.keys) != len(b.keys) {
			return false, nil
		}
		for _, key := range a.keys {
			other, ok := b.values[key]
			if !ok {
				return false, nil
			}
			if same, err := r.equal(a.values[key], other, depth+1); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	}
	return a == b, nil // the same function, namespace or loop
}

// order is -1, 0 or 1 as a is less than b, equal or greater.
func (r *run) order(a, b Value) (int, error) {
	if err := r.step(); err != nil {
		return 0, err
	}
	ai, af, aFloat, aNumber := number64(a)
	bi, bf, bFloat, bNumber := number64(b)
	switch {
	case aNumber && bNumber && (aFloat || bFloat):
		switch {
		case af < bf:
			return -1, nil
		case af > bf:
			return 1, nil
		}
		return 0, nil
	case aNumber && bNumber:
		switch {
		case ai < bi:
			return -1, nil
		case ai > bi:
			return 1, nil
		}
		return 0, nil
	}
	if x, ok := a.(string); ok {
		if y, ok := b.(string); ok {
			return strings.Compare(x, y), r.touch(min(len(x), len(y)))
		}
	}
	if x, ok := a.(*List); ok {
		if y, ok := b.(*List); ok {
			for i := range min(len(x.Items), len(y.Items)) {
				same, err := r.equal(x.Items[i], y.Items[i], 0)
				if err != nil {
					return 0, err
				}
				if !same {
					return r.order(x.Items[i], y.Items[i]) // equal has refused what is too deep
				}
			}
			return len(x.Items) - len(y.Items), nil
		}
	}
	for _, v := range []Value{a, b} {
		if u, ok := v.(Undefined); ok {
			return 0, u.err()
		}
	}
	return 0, fmt.Errorf("cannot order %s and %s", quoted(kind(a)), quoted(kind(b)))
}
