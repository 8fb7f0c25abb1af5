// Package jinja renders the part of Jinja that chat templates are written in, as transformers sets it up: trim_blocks, lstrip_blocks,
// loop controls, no change of a value in place.
//
// A template comes with a model, which may be anybody's. It is held to a budget of work and of memory: every step and every byte that is
// read or made is paid for before it happens, so that no template, whatever its loops, products and recursions, takes more than [Limits]
// allows. A rendering that would is an error.
//
//	t, err := jinja.Parse("{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}")
//	text, err := t.Render(map[string]jinja.Value{"messages": jinja.NewList(...)}, jinja.Limits{Work: 1 << 30, Bytes: 1 << 25})
package jinja

import (
	"errors"
	"fmt"
	"strings"
)

// Template is a parsed template. It may be rendered by many goroutines at once.
type Template struct{ body []stmt }

// Limits bound one rendering.
type Limits struct {
	// Work is the number of bytes that may be read or made; a step of the evaluator counts as stepWork of them.
	Work int64
	// Bytes is what may be allocated for strings, lists and scopes, in all, freed or not.
	Bytes int64
}

const (
	stepWork = 64 // about what a step costs in copied bytes
	// Sizes that allocations are charged with.
	itemBytes, entryBytes, scopeBytes = 16, 96, 256

	maxMacroDepth = 100
	maxValueDepth = 200 // of a value that is printed or compared
	maxRange      = 100_000
)

// Render runs the template. Errors tell the line; what a [Function] returned is wrapped.
func (t *Template) Render(variables map[string]Value, l Limits) (string, error) {
	var b strings.Builder
	r := &run{budget: &budget{work: l.Work, bytes: l.Bytes}, out: &b, scope: &scope{names: map[string]Value{}}}
	for name, v := range globals {
		r.scope.names[name] = v
	}
	for name, v := range variables {
		r.scope.names[name] = v
	}
	r.scope = &scope{names: map[string]Value{}, parent: r.scope}
	err := r.body(t.body)
	switch {
	case errors.Is(err, errBreak), errors.Is(err, errContinue):
		return "", errors.New("break or continue outside of a loop")
	case err != nil:
		return "", err
	}
	return b.String(), nil
}

// budget is what is left to a rendering.
type budget struct{ work, bytes int64 }

var (
	errWork  = errors.New("the template does too much work for this conversation")
	errBytes = errors.New("the template takes too much memory for this conversation")
)

// touch pays for n bytes that are read.
func (b *budget) touch(n int) error {
	if b.work -= int64(n); b.work < 0 || n < 0 {
		b.work = -1
		return errWork
	}
	return nil
}

func (b *budget) step() error { return b.touch(stepWork) }

// take pays for n bytes that are made.
func (b *budget) take(n int) error {
	if n < 0 || int64(n) > b.bytes {
		b.bytes = 0
		return errBytes
	}
	b.bytes -= int64(n)
	return b.touch(n)
}

// times pays for count pieces of size bytes, whatever their product.
func (b *budget) times(count int64, size int) error {
	if count <= 0 || size == 0 {
		return b.step()
	}
	if count > b.bytes/int64(size) {
		b.bytes = 0
		return errBytes
	}
	return b.take(int(count) * size)
}

// run is one rendering, or a part of it with output of its own.
type run struct {
	*budget
	scope *scope
	out   *strings.Builder
	depth int // of macros
}

// scope holds the names that a block sets.
type scope struct {
	names  map[string]Value
	parent *scope
}

func (s *scope) get(name string) (Value, bool) {
	for ; s != nil; s = s.parent {
		if v, ok := s.names[name]; ok {
			return v, true
		}
	}
	return nil, false
}

// inner is r with a scope inside of parent, and with out.
func (r *run) inner(parent *scope, out *strings.Builder) (*run, error) {
	if err := r.take(scopeBytes); err != nil {
		return nil, err
	}
	return &run{r.budget, &scope{names: map[string]Value{}, parent: parent}, out, r.depth}, nil
}

func (r *run) set(name string, v Value) error {
	if _, ok := r.scope.names[name]; !ok {
		if err := r.take(entryBytes); err != nil {
			return err
		}
	}
	r.scope.names[name] = v
	return nil
}

func (r *run) write(s string) error {
	// The builder may hold twice of it while it grows.
	if err := r.take(2 * len(s)); err != nil {
		return err
	}
	r.out.WriteString(s)
	return nil
}

// captured runs f with an output of its own, and returns that.
func (r *run) captured(parent *scope, f func(r *run) error) (string, error) {
	var b strings.Builder
	in, err := r.inner(parent, &b)
	if err != nil {
		return "", err
	}
	if err := f(in); err != nil {
		return "", err
	}
	return b.String(), nil
}

// lineError is an error with the line of the template where it came up.
type lineError struct {
	line int
	err  error
}

func (e *lineError) Error() string { return fmt.Sprintf("line %d: %v", e.line, e.err) }
func (e *lineError) Unwrap() error { return e.err }
