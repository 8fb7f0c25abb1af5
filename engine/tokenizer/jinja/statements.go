package jinja

import (
	"errors"
	"fmt"
	"strings"
)

// stmt is a statement of a template.
type stmt interface{ exec(r *run) error }

var errBreak, errContinue = errors.New("break"), errors.New("continue")

func (r *run) body(all []stmt) error {
	for _, st := range all {
		if err := r.step(); err != nil {
			return err
		}
		if err := st.exec(r); err != nil {
			return err
		}
	}
	return nil
}

// at gives err the line, unless it has one or is no error.
func at(line int, err error) error {
	var located *lineError
	if err == nil || errors.As(err, &located) || errors.Is(err, errBreak) || errors.Is(err, errContinue) {
		return err
	}
	return &lineError{line, err}
}

type textStmt string

func (s textStmt) exec(r *run) error { return r.write(string(s)) }

type outputStmt struct {
	e    expr
	line int
}

func (s *outputStmt) exec(r *run) error {
	v, err := s.e.eval(r)
	if err == nil {
		var text string
		if text, err = r.str(v); err == nil {
			err = r.write(text)
		}
	}
	return at(s.line, err)
}

type jumpStmt struct{ to error }

func (s jumpStmt) exec(*run) error { return s.to }

type ifBranch struct {
	condition expr // nil: else
	body      []stmt
}

type ifStmt struct {
	branches []ifBranch
	line     int
}

func (s *ifStmt) exec(r *run) error {
	for _, b := range s.branches {
		if b.condition != nil {
			v, err := b.condition.eval(r)
			if err != nil {
				return at(s.line, err)
			}
			if !truth(v) {
				continue
			}
		}
		return r.body(b.body)
	}
	return nil
}

// unpack sets names to the items of v, or the only name to v.
func (r *run) unpack(names []string, v Value) error {
	if len(names) == 1 {
		return r.set(names[0], v)
	}
	items, err := r.items(v)
	if err != nil {
		return err
	}
	if len(items) != len(names) {
		return fmt.Errorf("%d values for %d names", len(items), len(names))
	}
	for i, name := range names {
		if err := r.set(name, items[i]); err != nil {
			return err
		}
	}
	return nil
}

type setStmt struct {
	names     []string
	attribute string // of a namespace
	value     expr
	body      []stmt
	filters   expr // of the body, or nil
	isBlock   bool
	line      int
}

func (s *setStmt) exec(r *run) error {
	v, err := s.evaluate(r)
	if err != nil {
		return at(s.line, err)
	}
	if s.attribute == "" {
		return at(s.line, r.unpack(s.names, v))
	}
	space, _ := r.scope.get(s.names[0])
	n, ok := space.(*namespace)
	if !ok {
		return at(s.line, errors.New("cannot assign attribute on non-namespace object"))
	}
	if _, there := n.values[s.attribute]; !there {
		if err := r.take(entryBytes); err != nil {
			return at(s.line, err)
		}
	}
	n.values[s.attribute] = v
	return nil
}

func (s *setStmt) evaluate(r *run) (Value, error) {
	if !s.isBlock {
		return s.value.eval(r)
	}
	return r.filteredBlock(s.body, s.filters)
}

// filteredBlock renders body and applies filters, if there are any, to the text.
func (r *run) filteredBlock(body []stmt, filters expr) (Value, error) {
	text, err := r.captured(r.scope, func(in *run) error { return in.body(body) })
	if err != nil || filters == nil {
		return text, err
	}
	in, err := r.inner(r.scope, r.out)
	if err != nil {
		return nil, err
	}
	in.scope.names[blockName] = text
	return filters.eval(in)
}

// blockText is the text that the filters of a block begin with.
type blockText struct{}

const blockName = "\x00block"

func (*blockText) eval(r *run) (Value, error) { return r.scope.names[blockName], nil }

type filterStmt struct {
	filters expr
	body    []stmt
	line    int
}

func (s *filterStmt) exec(r *run) error {
	v, err := r.filteredBlock(s.body, s.filters)
	if err == nil {
		var text string
		if text, err = r.str(v); err == nil {
			err = r.write(text)
		}
	}
	return at(s.line, err)
}

type withStmt struct {
	names  []string
	values []expr
	body   []stmt
	line   int
}

func (s *withStmt) exec(r *run) error {
	in, err := r.inner(r.scope, r.out)
	if err != nil {
		return err
	}
	for i, name := range s.names {
		v, err := s.values[i].eval(r)
		if err == nil {
			err = in.set(name, v)
		}
		if err != nil {
			return at(s.line, err)
		}
	}
	return in.body(s.body)
}

// macro is what macro and call define.
type macro struct {
	name     string
	params   []string
	defaults []expr // nil where a parameter has none
	body     []stmt
}

type macroStmt struct{ m *macro }

func (s *macroStmt) exec(r *run) error { return r.set(s.m.name, s.m.function(r.scope)) }

// function is the macro as a function; names in its body are looked up in scope, where it was defined.
func (m *macro) function(defined *scope) *Function {
	return &Function{Name: m.name, Call: func(c *Call) (Value, error) {
		if c.run.depth >= maxMacroDepth {
			return nil, fmt.Errorf("macros call each other more than %d deep", maxMacroDepth)
		}
		var b strings.Builder
		in, err := c.run.inner(defined, &b)
		if err != nil {
			return nil, err
		}
		in.depth++
		if len(c.Args) > len(m.params) {
			return nil, fmt.Errorf("macro %q takes not more than %d argument(s)", m.name, len(m.params))
		}
		for i, name := range m.params {
			v, ok := c.Arg(i, name)
			if !ok {
				v = Undefined{name: name}
				if m.defaults[i] != nil {
					if v, err = m.defaults[i].eval(in); err != nil {
						return nil, err
					}
				}
			}
			if err := in.set(name, v); err != nil {
				return nil, err
			}
		}
		if v, ok := c.Named("caller"); ok {
			if err := in.set("caller", v); err != nil {
				return nil, err
			}
		}
		if err := in.body(m.body); err != nil {
			return nil, err
		}
		return b.String(), nil
	}}
}

type callStmt struct {
	call   *callExpr
	caller *macro
	line   int
}

func (s *callStmt) exec(r *run) error {
	f, err := s.call.of.eval(r)
	if err != nil {
		return at(s.line, err)
	}
	c, err := s.call.arguments.eval(r)
	if err != nil {
		return at(s.line, err)
	}
	c.names, c.named = append(c.names, "caller"), append(c.named, s.caller.function(r.scope))
	v, err := r.call(f, c)
	if err == nil {
		var text string
		if text, err = r.str(v); err == nil {
			err = r.write(text)
		}
	}
	return at(s.line, err)
}
