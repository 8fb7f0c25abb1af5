package jinja

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
)

type binaryExpr struct {
	operator string
	a, b     expr
}

var errRange = errors.New("a number is out of range")

func (e *binaryExpr) eval(r *run) (Value, error) {
	if err := r.step(); err != nil {
		return nil, err
	}
	a, err := e.a.eval(r)
	if err != nil {
		return nil, err
	}
	b, err := e.b.eval(r)
	if err != nil {
		return nil, err
	}
	if e.operator == "~" {
		return r.concat(a, b)
	}
	return r.arithmetic(e.operator, a, b)
}

func (r *run) concat(a, b Value) (Value, error) {
	x, err := r.str(a)
	if err != nil {
		return nil, err
	}
	y, err := r.str(b)
	if err == nil {
		err = r.take(len(x) + len(y))
	}
	if err != nil {
		return nil, err
	}
	return x + y, nil
}

func (r *run) arithmetic(o string, a, b Value) (Value, error) {
	for _, v := range []Value{a, b} {
		if u, ok := v.(Undefined); ok {
			return nil, u.err()
		}
	}
	ai, af, aFloat, aNumber := number64(a)
	bi, bf, bFloat, bNumber := number64(b)
	switch {
	case aNumber && bNumber && (aFloat || bFloat || o == "/"):
		return floats(o, af, bf)
	case aNumber && bNumber:
		return integers(o, ai, bi)
	}
	switch x := a.(type) {
	case string:
		if y, ok := b.(string); ok && o == "+" {
			return r.concat(x, y)
		}
		if bNumber && !bFloat && o == "*" {
			return r.repeat(x, bi)
		}
		if o == "%" {
			return r.format(x, b)
		}
	case *List:
		if y, ok := b.(*List); ok && o == "+" {
			if err := r.take(itemBytes * (len(x.Items) + len(y.Items))); err != nil {
				return nil, err
			}
			return &List{slices.Concat(x.Items, y.Items), x.tuple}, nil
		}
		if bNumber && !bFloat && o == "*" {
			if err := r.times(bi, itemBytes*len(x.Items)); err != nil {
				return nil, err
			}
			if len(x.Items) == 0 {
				return x, nil
			}
			return &List{slices.Repeat(x.Items, int(max(bi, 0))), x.tuple}, nil
		}
	}
	if aNumber && !aFloat && o == "*" {
		switch b.(type) {
		case string, *List:
			return r.arithmetic(o, b, a)
		}
	}
	return nil, fmt.Errorf("unsupported operand type(s) for %s: %s and %s", o, quoted(kind(a)), quoted(kind(b)))
}

func (r *run) repeat(s string, n int64) (Value, error) {
	if err := r.times(n, len(s)); err != nil {
		return nil, err
	}
	if s == "" || n <= 0 {
		return "", nil
	}
	return strings.Repeat(s, int(n)), nil
}

func floats(o string, a, b float64) (Value, error) {
	switch o {
	case "+":
		return a + b, nil
	case "-":
		return a - b, nil
	case "*":
		return a * b, nil
	case "**":
		return math.Pow(a, b), nil
	}
	if b == 0 {
		return nil, errors.New("division by zero")
	}
	switch o {
	case "/":
		return a / b, nil
	case "//":
		return math.Floor(a / b), nil
	}
	m := math.Mod(a, b)
	if m != 0 && (m < 0) != (b < 0) {
		m += b
	}
	return m, nil
}

func integers(o string, a, b int64) (Value, error) {
	switch o {
	case "+":
		if s := a + b; (s > a) == (b > 0) {
			return s, nil
		}
		return nil, errRange
	case "-":
		if d := a - b; (d < a) == (b > 0) {
			return d, nil
		}
		return nil, errRange
	case "*":
		return product(a, b)
	case "**":
		return power(a, b)
	}
	switch {
	case b == 0:
		return nil, errors.New("integer division or modulo by zero")
	case a == math.MinInt64 && b == -1:
		return nil, errRange
	}
	q, m := a/b, a%b
	if m != 0 && (m < 0) != (b < 0) {
		q, m = q-1, m+b
	}
	if o == "//" {
		return q, nil
	}
	return m, nil
}

func product(a, b int64) (Value, error) {
	p := a * b
	if a != 0 && (p/a != b || a == -1 && b == math.MinInt64) {
		return nil, errRange
	}
	return p, nil
}

func power(a, b int64) (Value, error) {
	if b < 0 {
		if a == 0 {
			return nil, errors.New("0 to a negative power")
		}
		return math.Pow(float64(a), float64(b)), nil
	}
	if a == 0 || a == 1 || a == -1 {
		b = min(b, 2+b%2) // the same, and soon done
	}
	out := int64(1)
	for range b {
		v, err := product(out, a)
		if err != nil {
			return nil, err
		}
		out = v.(int64)
	}
	return out, nil
}
