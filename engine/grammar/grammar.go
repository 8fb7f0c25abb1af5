package grammar

import (
	"sync"
	"sync/atomic"
	"time"
)

// Spec is what an output must be: one of the two is set.
type Spec struct {
	// Regex in Go's syntax matches the whole output.
	Regex string
	// JSONSchema is a JSON Schema; "{}" or "true" allows any JSON value.
	JSONSchema string
}

// Grammar is a compiled [Spec] for one [Vocabulary]. It is safe for concurrent use.
type Grammar struct {
	vocab   *Vocabulary
	machine machine
	locals  []atomic.Pointer[local] // by state

	relativeMu sync.Mutex // of the two below; held while a local is worked out
	relative   relative
	localWords int

	mu    sync.Mutex
	masks map[string][]uint32 // by the key of configs
}

// keptGrammars is the number of grammars that a vocabulary remembers.
const keptGrammars = 16

// warmTime bounds the work on masks ahead of their use.
const warmTime = 100 * time.Millisecond

// Compile compiles spec for v, or returns what it compiled for an equal spec before. It takes milliseconds, as it works out the
// costly part of the masks, so call it where a request is taken in, not where steps are launched. A spec that cannot be used
// is an *Error.
func Compile(spec Spec, v *Vocabulary) (*Grammar, error) {
	v.mu.Lock()
	g, ok := v.compiled[spec]
	v.mu.Unlock()
	if ok {
		return g, nil
	}
	m, err := compile(spec)
	if err != nil {
		return nil, err
	}
	g = &Grammar{
		vocab: v, machine: *m, locals: make([]atomic.Pointer[local], len(m.states)), relative: relative{ids: map[string]int32{}},
		masks: map[string][]uint32{},
	}
	g.warm(time.Now().Add(warmTime))
	v.keep(spec, g)
	return g, nil
}

func (v *Vocabulary) keep(spec Spec, g *Grammar) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if _, ok := v.compiled[spec]; !ok {
		v.order = append(v.order, spec)
	}
	v.compiled[spec] = g
	if len(v.order) > keptGrammars {
		delete(v.compiled, v.order[0])
		v.order = v.order[1:]
	}
}

// warm works out what states allow, those with the most edges first: they take the longest.
func (g *Grammar) warm(deadline time.Time) {
	for _, wide := range []int{64, 8, 1} {
		for s := range g.machine.states {
			width := 0
			for _, e := range g.machine.states[s].edges {
				width += int(e.hi-e.lo) + 1
			}
			if width >= wide {
				if time.Now().After(deadline) {
					return
				}
				g.local(int32(s))
			}
		}
	}
}

func compile(spec Spec) (*machine, error) {
	switch {
	case spec.Regex != "" && spec.JSONSchema != "":
		return nil, &Error{Problem: "want a regular expression or a JSON schema, not both"}
	case len(spec.Regex) > maxSpec || len(spec.JSONSchema) > maxSpec:
		return nil, &Error{Problem: "is longer than 256 KiB"}
	case spec.JSONSchema != "":
		return compileSchema(spec.JSONSchema)
	}
	return compileRegex(spec.Regex)
}

func compileRegex(pattern string) (*machine, error) {
	re, err := parseRegex(pattern)
	if err != nil {
		return nil, err
	}
	limit := newBudget()
	n := newNFA(limit)
	start := n.state()
	b := regexBuilder{n, writeUTF8}
	end, err := b.whole(re, start)
	if err != nil {
		return nil, err
	}
	m := &machine{starts: make([]int32, 1)}
	m.add(0, n, start, end, limit)
	return m.finish(limit, "no text matches the regular expression")
}

// finish checks a machine whose rules are all there.
func (m *machine) finish(limit *budget, nothing string) (*machine, error) {
	if limit.err != nil {
		return nil, limit.err
	}
	matches, loops := m.trim()
	if !matches {
		return nil, &Error{Problem: nothing}
	}
	if loops {
		return nil, &Error{Problem: "a $ref leads back to itself without anything between"}
	}
	return m, nil
}
