package jinja

import (
	"errors"
	"fmt"
)

type forStmt struct {
	targets         []string
	over, condition expr
	body, otherwise []stmt
	recursive       bool
	line            int
}

func (s *forStmt) exec(r *run) error {
	v, err := s.over.eval(r)
	if err != nil {
		return at(s.line, err)
	}
	return at(s.line, s.loop(r, v, 1))
}

// loop runs the body for each item of v, in a scope of its own each time.
func (s *forStmt) loop(r *run, v Value, depth int) error {
	items, err := r.items(v)
	if err != nil {
		return err
	}
	if s.condition != nil {
		if items, err = s.chosen(r, items); err != nil {
			return err
		}
	}
	if len(items) == 0 {
		return r.body(s.otherwise)
	}
	l := &loop{items: items, depth: depth}
	if s.recursive {
		l.again = func(c *Call) (Value, error) {
			if c.run.depth+depth > maxMacroDepth {
				return nil, fmt.Errorf("loops call each other more than %d deep", maxMacroDepth)
			}
			v, _ := c.Arg(0, "")
			return c.run.captured(r.scope, func(in *run) error { return s.loop(in, v, depth+1) })
		}
	}
	for i, item := range items {
		if err := r.step(); err != nil {
			return err
		}
		in, err := r.inner(r.scope, r.out)
		if err != nil {
			return err
		}
		l.at = i
		in.scope.names["loop"] = l
		if err := in.unpack(s.targets, item); err != nil {
			return err
		}
		if err := in.body(s.body); errors.Is(err, errBreak) {
			break
		} else if err != nil && !errors.Is(err, errContinue) {
			return err
		}
	}
	return nil
}

// chosen are the items that meet the condition.
func (s *forStmt) chosen(r *run, items []Value) (kept []Value, err error) {
	if err := r.take(itemBytes * len(items)); err != nil {
		return nil, err
	}
	in, err := r.inner(r.scope, r.out)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		if err := in.unpack(s.targets, item); err != nil {
			return nil, err
		}
		v, err := s.condition.eval(in)
		if err != nil {
			return nil, err
		}
		if truth(v) {
			kept = append(kept, item)
		}
	}
	return kept, nil
}

// loop is the variable loop.
type loop struct {
	items   []Value
	at      int
	depth   int
	again   func(c *Call) (Value, error) // of a recursive loop
	changed []Value                      // what loop.changed saw last
}

func (l *loop) field(name string) (Value, bool) {
	n := int64(len(l.items))
	i := int64(l.at)
	neighbour := func(at int64, which string) Value {
		if at >= 0 && at < n {
			return l.items[at]
		}
		return Undefined{problem: "there is no " + which + " item"}
	}
	switch name {
	case "index":
		return i + 1, true
	case "index0":
		return i, true
	case "revindex":
		return n - i, true
	case "revindex0":
		return n - i - 1, true
	case "first":
		return i == 0, true
	case "last":
		return i == n-1, true
	case "length":
		return n, true
	case "depth":
		return int64(l.depth), true
	case "depth0":
		return int64(l.depth - 1), true
	case "previtem":
		return neighbour(i-1, "previous"), true
	case "nextitem":
		return neighbour(i+1, "next"), true
	case "cycle":
		return &Function{"cycle", func(c *Call) (Value, error) {
			if len(c.Args) == 0 {
				return nil, errors.New("no items for cycling given")
			}
			return c.Args[l.at%len(c.Args)], nil
		}}, true
	case "changed":
		return &Function{"changed", func(c *Call) (Value, error) {
			same, err := c.run.equal(&List{Items: l.changed}, &List{Items: c.Args}, 0)
			if l.changed == nil {
				same = false
			}
			l.changed = append([]Value{}, c.Args...)
			return !same, err
		}}, true
	}
	return nil, false
}
