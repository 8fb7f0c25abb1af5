package jinja

import (
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// expr is an expression.
type expr interface{ eval(r *run) (Value, error) }

type literal struct{ v Value }

func (e literal) eval(*run) (Value, error) { return e.v, nil }

type nameExpr string

func (e nameExpr) eval(r *run) (Value, error) {
	if err := r.step(); err != nil {
		return nil, err
	}
	if v, ok := r.scope.get(string(e)); ok {
		return v, nil
	}
	return Undefined{name: string(e)}, nil
}

// evalAll evaluates expressions into a new slice.
func (r *run) evalAll(all []expr) ([]Value, error) {
	if len(all) == 0 {
		return nil, nil
	}
	if err := r.take(itemBytes * len(all)); err != nil {
		return nil, err
	}
	out := make([]Value, len(all))
	for i, e := range all {
		var err error
		if out[i], err = e.eval(r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

type listExpr struct {
	items []expr
	tuple bool
}

func (e *listExpr) eval(r *run) (Value, error) {
	items, err := r.evalAll(e.items)
	if err == nil {
		err = r.take(entryBytes)
	}
	return &List{items, e.tuple}, err
}

type dictExpr struct{ keys, values []expr }

func (e *dictExpr) eval(r *run) (Value, error) {
	d := NewDict()
	for i := range e.keys {
		key, err := e.keys[i].eval(r)
		if err != nil {
			return nil, err
		}
		v, err := e.values[i].eval(r)
		if err != nil {
			return nil, err
		}
		text, err := r.str(key)
		if err == nil {
			err = r.take(entryBytes)
		}
		if err != nil {
			return nil, err
		}
		d.Set(text, v)
	}
	return d, r.take(entryBytes)
}

type condExpr struct{ then, condition, otherwise expr }

func (e *condExpr) eval(r *run) (Value, error) {
	v, err := e.condition.eval(r)
	switch {
	case err != nil:
		return nil, err
	case truth(v):
		return e.then.eval(r)
	case e.otherwise != nil:
		return e.otherwise.eval(r)
	}
	return Undefined{problem: "the inline if-expression evaluated to false and no else section was defined."}, nil
}

type logicExpr struct {
	a, b expr
	or   bool
}

func (e *logicExpr) eval(r *run) (Value, error) {
	if err := r.step(); err != nil {
		return nil, err
	}
	v, err := e.a.eval(r)
	if err != nil || truth(v) == e.or {
		return v, err
	}
	return e.b.eval(r)
}

type notExpr struct{ of expr }

func (e *notExpr) eval(r *run) (Value, error) {
	v, err := e.of.eval(r)
	return !truth(v), err
}

type signExpr struct {
	of       expr
	negative bool
}

func (e *signExpr) eval(r *run) (Value, error) {
	v, err := e.of.eval(r)
	if err != nil {
		return nil, err
	}
	i, f, isFloat, ok := number64(v)
	switch {
	case !ok:
		return nil, fmt.Errorf("bad operand type for unary sign: %s", quoted(kind(v)))
	case isFloat && e.negative:
		return -f, nil
	case isFloat:
		return f, nil
	case e.negative && i == math.MinInt64:
		return nil, errRange
	case e.negative:
		return -i, nil
	}
	return i, nil
}

type compareExpr struct {
	first     expr
	operators []string
	operands  []expr
}

func (e *compareExpr) eval(r *run) (Value, error) {
	left, err := e.first.eval(r)
	if err != nil {
		return nil, err
	}
	for i, o := range e.operators {
		right, err := e.operands[i].eval(r)
		if err != nil {
			return nil, err
		}
		holds, err := r.compare(o, left, right)
		if err != nil || !holds {
			return false, err
		}
		left = right
	}
	return true, nil
}

func (r *run) compare(o string, a, b Value) (bool, error) {
	switch o {
	case "==", "!=":
		same, err := r.equal(a, b, 0)
		return same == (o == "=="), err
	case "in", "not in":
		in, err := r.contains(b, a)
		return in == (o == "in"), err
	}
	n, err := r.order(a, b)
	switch o {
	case "<":
		return n < 0, err
	case "<=":
		return n <= 0, err
	case ">":
		return n > 0, err
	}
	return n >= 0, err
}

// contains tells if item is in v.
func (r *run) contains(v, item Value) (bool, error) {
	switch v := v.(type) {
	case string:
		part, ok := item.(string)
		if !ok {
			return false, fmt.Errorf("'in <string>' requires string as left operand, not %s", kind(item))
		}
		if err := r.touch(len(v) + len(part)); err != nil {
			return false, err
		}
		return strings.Contains(v, part), nil
	case *List:
		for _, other := range v.Items {
			if same, err := r.equal(item, other, 0); err != nil || same {
				return same, err
			}
		}
		return false, nil
	case *Dict:
		key, ok := item.(string)
		if !ok {
			return false, nil
		}
		_, ok = v.values[key]
		return ok, r.touch(len(key))
	case Undefined:
		return false, nil
	}
	return false, fmt.Errorf("argument of type %s is not iterable", quoted(kind(v)))
}

type attributeExpr struct {
	of   expr
	name string
}

func (e *attributeExpr) eval(r *run) (Value, error) {
	if err := r.step(); err != nil {
		return nil, err
	}
	v, err := e.of.eval(r)
	if err != nil {
		return nil, err
	}
	if m := method(v, e.name); m != nil {
		return m, nil
	}
	return r.lookUp(v, e.name)
}

// lookUp is the field of v; if there is none, Undefined.
func (r *run) lookUp(v Value, name string) (Value, error) {
	switch v := v.(type) {
	case *Dict:
		if field, ok := v.values[name]; ok {
			return field, nil
		}
	case *namespace:
		if field, ok := v.values[name]; ok {
			return field, nil
		}
	case *loop:
		if field, ok := v.field(name); ok {
			return field, nil
		}
	case Undefined:
		return nil, v.err()
	}
	if v == nil {
		return Undefined{name, "'None' has no attribute " + quoted(name)}, nil
	}
	return Undefined{name, quoted(kind(v)) + " has no attribute " + quoted(name)}, nil
}

type itemExpr struct{ of, key expr }

func (e *itemExpr) eval(r *run) (Value, error) {
	if err := r.step(); err != nil {
		return nil, err
	}
	v, err := e.of.eval(r)
	if err != nil {
		return nil, err
	}
	key, err := e.key.eval(r)
	if err != nil {
		return nil, err
	}
	return r.item(v, key)
}

// item is v[key].
func (r *run) item(v, key Value) (Value, error) {
	if name, ok := key.(string); ok {
		if d, ok := v.(*Dict); ok {
			if field, ok := d.values[name]; ok {
				return field, r.touch(len(name))
			}
		}
		if m := method(v, name); m != nil {
			return m, nil
		}
		return r.lookUp(v, name)
	}
	if u, ok := v.(Undefined); ok {
		return nil, u.err()
	}
	if i, ok := key.(int64); ok {
		switch v := v.(type) {
		case *List:
			if i < 0 {
				i += int64(len(v.Items))
			}
			if i >= 0 && i < int64(len(v.Items)) {
				return v.Items[i], nil
			}
		case string:
			if c, ok, err := r.character(v, i); ok || err != nil {
				return c, err
			}
		}
	}
	text, err := r.str(key)
	if err != nil {
		return nil, err
	}
	if d, ok := v.(*Dict); ok {
		if field, ok := d.values[text]; ok {
			return field, nil
		}
	}
	return Undefined{text, quoted(kind(v)) + " has no element " + text}, nil
}

// character is the i-th character of s, from its end if i is negative.
func (r *run) character(s string, i int64) (Value, bool, error) {
	if err := r.touch(len(s)); err != nil {
		return nil, false, err
	}
	if i < 0 {
		i += int64(utf8.RuneCountInString(s))
	}
	for _, c := range s {
		if i == 0 {
			return string(c), true, nil
		}
		i--
	}
	return nil, false, nil
}

type arguments struct {
	positional []expr
	names      []string
	named      []expr
}

func (a *arguments) eval(r *run) (*Call, error) {
	c := &Call{names: a.names, run: r}
	var err error
	if c.Args, err = r.evalAll(a.positional); err == nil {
		c.named, err = r.evalAll(a.named)
	}
	return c, err
}

type callExpr struct {
	of expr
	arguments
}

func (e *callExpr) eval(r *run) (Value, error) {
	f, err := e.of.eval(r)
	if err != nil {
		return nil, err
	}
	c, err := e.arguments.eval(r)
	if err != nil {
		return nil, err
	}
	return r.call(f, c)
}

func (r *run) call(f Value, c *Call) (Value, error) {
	if err := r.step(); err != nil {
		return nil, err
	}
	c.run = r
	switch f := f.(type) {
	case *Function:
		return f.Call(c)
	case *loop:
		if f.again != nil {
			return f.again(c)
		}
	case Undefined:
		return nil, f.err()
	}
	return nil, fmt.Errorf("%s is not callable", quoted(kind(f)))
}

type filterExpr struct {
	of   expr
	name string
	arguments
}

func (e *filterExpr) eval(r *run) (Value, error) {
	f := filters[e.name]
	if f == nil {
		return nil, fmt.Errorf("no filter named %s", quoted(e.name))
	}
	v, err := e.of.eval(r)
	if err != nil {
		return nil, err
	}
	c, err := e.arguments.eval(r)
	if err == nil {
		err = r.step()
	}
	if err != nil {
		return nil, err
	}
	v, err = f(c, v)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.name, err)
	}
	return v, nil
}

type testExpr struct {
	of      expr
	name    string
	negated bool
	arguments
}

func (e *testExpr) eval(r *run) (Value, error) {
	v, err := e.of.eval(r)
	if err != nil {
		return nil, err
	}
	c, err := e.arguments.eval(r)
	if err != nil {
		return nil, err
	}
	holds, err := r.test(e.name, v, c.Args)
	return holds != e.negated, err
}
