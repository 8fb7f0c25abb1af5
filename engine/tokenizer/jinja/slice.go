package jinja

import (
	"errors"
	"fmt"
	"unicode/utf8"
)

type sliceExpr struct {
	of    expr
	parts [3]expr
}

func (e *sliceExpr) eval(r *run) (Value, error) {
	v, err := e.of.eval(r)
	if err != nil {
		return nil, err
	}
	var parts [3]*int64
	for i, part := range e.parts {
		if part == nil {
			continue
		}
		at, err := part.eval(r)
		if err != nil {
			return nil, err
		}
		switch at := at.(type) {
		case int64:
			parts[i] = &at
		case nil:
		default:
			return nil, fmt.Errorf("slice indices must be integers or None, not %s", kind(at))
		}
	}
	switch v := v.(type) {
	case *List:
		places, err := sliced(len(v.Items), parts)
		if err == nil {
			err = r.take(itemBytes * places.count)
		}
		if err != nil {
			return nil, err
		}
		items := make([]Value, places.count)
		for i := range items {
			items[i] = v.Items[places.first+i*places.step]
		}
		return &List{items, v.tuple}, nil
	case string:
		return r.sliceString(v, parts)
	case Undefined:
		return nil, v.err()
	}
	return nil, fmt.Errorf("%s cannot be sliced", quoted(kind(v)))
}

func (r *run) sliceString(s string, parts [3]*int64) (Value, error) {
	if err := r.touch(len(s)); err != nil {
		return nil, err
	}
	n := utf8.RuneCountInString(s)
	places, err := sliced(n, parts)
	if err != nil {
		return nil, err
	}
	if n == len(s) && places.step == 1 {
		return s[places.first : places.first+places.count], nil
	}
	if err := r.take(4*n + 4*places.count); err != nil {
		return nil, err
	}
	runes := []rune(s)
	out := make([]rune, places.count)
	for i := range out {
		out[i] = runes[places.first+i*places.step]
	}
	return string(out), nil
}

// places are what a slice takes.
type places struct{ first, step, count int }

// sliced reads a slice as Python does, of something n long.
func sliced(n int, parts [3]*int64) (places, error) {
	step := int64(1)
	if parts[2] != nil {
		step = *parts[2]
	}
	if step == 0 {
		return places{}, errors.New("slice step cannot be zero")
	}
	step = min(max(step, -int64(n)-1), int64(n)+1)
	low, high := int64(0), int64(n) // where an end may lie
	start, stop := low, high
	if step < 0 {
		low, high = -1, int64(n)-1
		start, stop = high, low
	}
	place := func(at int64) int64 {
		if at < 0 {
			at = max(at+int64(n), low)
		}
		return min(at, high)
	}
	if parts[0] != nil {
		start = place(*parts[0])
	}
	if parts[1] != nil {
		stop = place(*parts[1])
	}
	count := (stop - start + step - 1) / step
	if step < 0 {
		count = (start - stop - step - 1) / -step
	}
	return places{int(start), int(step), int(max(count, 0))}, nil
}
