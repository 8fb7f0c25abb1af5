package grammar

import (
	"fmt"
	"time"
)

// nfa is a rule under construction: states with edges over bytes, calls of other rules, and empty edges. Building works from
// left to right: each method adds what follows state from and returns the state behind it.
type nfa struct {
	states []nfaState
	limit  *budget
}

type nfaState struct {
	edges []edge
	calls []call
	empty []int32
}

// edge leads to a state over the bytes lo to hi.
type edge struct {
	lo, hi byte
	to     int32
}

// call matches a whole rule, then goes on at state to.
type call struct {
	rule int32
	to   int32
}

func newNFA(limit *budget) *nfa { return &nfa{limit: limit} }

// state adds a state. Over budget it returns the last one again; the caller sees it in budget.err.
func (n *nfa) state() int32 {
	if !n.limit.take() && len(n.states) > 0 {
		return int32(len(n.states) - 1)
	}
	n.states = append(n.states, nfaState{})
	return int32(len(n.states) - 1)
}

func (n *nfa) link(from, to int32) {
	n.states[from].empty = append(n.states[from].empty, to)
}

func (n *nfa) bytes(from int32, lo, hi byte) int32 {
	to := n.state()
	n.edge(from, lo, hi, to)
	return to
}

func (n *nfa) edge(from int32, lo, hi byte, to int32) {
	n.states[from].edges = append(n.states[from].edges, edge{lo, hi, to})
}

func (n *nfa) text(from int32, s string) int32 {
	for i := range len(s) {
		from = n.bytes(from, s[i], s[i])
	}
	return from
}

func (n *nfa) call(from, rule int32) int32 {
	to := n.state()
	n.states[from].calls = append(n.states[from].calls, call{rule, to})
	return to
}

// budget bounds what one Compile may build, and for how long.
type budget struct {
	left     int
	deadline time.Time
	err      error
}

func newBudget() *budget { return &budget{left: maxStates, deadline: time.Now().Add(maxTime)} }

func (b *budget) take() bool {
	if b.left > 0 {
		b.left--
		return true
	}
	if b.err == nil {
		b.err = &Error{Problem: fmt.Sprintf("too complex: needs more than %d states", maxStates)}
	}
	return false
}

// exceeded tells if there is nothing left.
func (b *budget) exceeded() bool {
	if b.err == nil && time.Now().After(b.deadline) {
		b.err = &Error{Problem: fmt.Sprintf("too complex: takes more than %v to compile", maxTime)}
	}
	return b.err != nil
}
