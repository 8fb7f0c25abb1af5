package grammar

import (
	"encoding/binary"
	"slices"
)

// machine is a compiled set of rules: a pushdown automaton whose rules are deterministic over bytes. State numbers are global.
type machine struct {
	states   []state
	starts   []int32 // first state of each rule
	hasCalls bool
	// like names, for some states, another that allows the same for as long as a token can be.
	like map[int32]int32
}

type state struct {
	edges  []edge // sorted, disjoint
	calls  []call
	accept bool // the rule may end here
}

// step returns the state that b leads to, or -1.
func (m *machine) step(s int32, b byte) int32 {
	edges := m.states[s].edges
	if len(edges) > 8 {
		lo, hi := 0, len(edges)
		for lo < hi {
			mid := (lo + hi) / 2
			if edges[mid].hi < b {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		if lo < len(edges) && edges[lo].lo <= b {
			return edges[lo].to
		}
		return -1
	}
	for _, e := range edges {
		if b < e.lo {
			return -1
		}
		if b <= e.hi {
			return e.to
		}
	}
	return -1
}

// add makes the rule start..end of n deterministic and appends it to m as the given rule.
func (m *machine) add(rule int32, n *nfa, start, end int32, limit *budget) {
	d := determiniser{m: m, n: n, end: end, limit: limit, seen: map[string]int32{}, mark: make([]bool, len(n.states))}
	m.starts[rule] = d.subset([]int32{start})
	for len(d.todo) > 0 && !limit.exceeded() {
		next := d.todo[len(d.todo)-1]
		d.todo = d.todo[:len(d.todo)-1]
		d.expand(next)
	}
}

// determiniser is the subset construction. Calls of one rule from a subset go on at one subset.
type determiniser struct {
	m     *machine
	n     *nfa
	end   int32
	limit *budget
	seen  map[string]int32
	todo  []subset
	mark  []bool
	key   []byte
}

type subset struct {
	id      int32
	members []int32
}

// subset returns the state for a set of states of the nfa, which it closes over empty edges.
func (d *determiniser) subset(members []int32) int32 {
	closed := members[:0:0]
	work := slices.Clone(members)
	for len(work) > 0 {
		s := work[len(work)-1]
		work = work[:len(work)-1]
		if d.mark[s] {
			continue
		}
		d.mark[s] = true
		closed = append(closed, s)
		work = append(work, d.n.states[s].empty...)
	}
	slices.Sort(closed)
	d.key = d.key[:0]
	kept := closed[:0]
	accept := false
	for _, s := range closed {
		d.mark[s] = false
		accept = accept || s == d.end
		if len(d.n.states[s].edges) > 0 || len(d.n.states[s].calls) > 0 || s == d.end {
			kept = append(kept, s)
			d.key = binary.LittleEndian.AppendUint32(d.key, uint32(s))
		}
	}
	if id, ok := d.seen[string(d.key)]; ok {
		return id
	}
	if !d.limit.take() {
		return int32(max(0, len(d.m.states)-1))
	}
	id := int32(len(d.m.states))
	d.m.states = append(d.m.states, state{accept: accept})
	d.seen[string(d.key)] = id
	d.todo = append(d.todo, subset{id, kept})
	return id
}

func (d *determiniser) expand(s subset) {
	var edges []edge
	calls := map[int32][]int32{}
	var rules []int32
	for _, member := range s.members {
		edges = append(edges, d.n.states[member].edges...)
		for _, c := range d.n.states[member].calls {
			if calls[c.rule] == nil {
				rules = append(rules, c.rule)
			}
			calls[c.rule] = append(calls[c.rule], c.to)
		}
	}
	// Cut the bytes where any edge begins or ends; within a part, the same edges apply.
	var cut [257]bool
	for _, e := range edges {
		cut[e.lo], cut[int(e.hi)+1] = true, true
	}
	slices.SortFunc(edges, func(a, b edge) int { return int(a.lo) - int(b.lo) })
	var out []edge
	var to []int32
	lo, begun := 0, 0
	var active []edge // begin at or before lo and do not end before it
	for b := 1; b <= 256; b++ {
		if b < 256 && !cut[b] {
			continue
		}
		for ; begun < len(edges) && int(edges[begun].lo) <= lo; begun++ {
			active = append(active, edges[begun])
		}
		active = slices.DeleteFunc(active, func(e edge) bool { return int(e.hi) < lo })
		to = to[:0]
		for _, e := range active {
			to = append(to, e.to)
		}
		if len(to) > 0 {
			target := d.subset(to)
			if n := len(out); n > 0 && out[n-1].to == target && int(out[n-1].hi)+1 == lo {
				out[n-1].hi = byte(b - 1)
			} else {
				out = append(out, edge{byte(lo), byte(b - 1), target})
			}
		}
		lo = b
	}
	slices.Sort(rules)
	var outCalls []call
	for _, rule := range rules {
		outCalls = append(outCalls, call{rule, d.subset(calls[rule])})
	}
	d.m.states[s.id].edges, d.m.states[s.id].calls = out, outCalls
}

// trim takes out what cannot lead to an end, so that a matcher never runs into a dead end. It tells if rule 0 matches
// anything at all, and if some rule could call itself without having matched a byte, which a matcher must never do.
func (m *machine) trim() (matches, loops bool) {
	live := make([]bool, len(m.states))
	for changed := true; changed; {
		changed = false
		for i := len(m.states) - 1; i >= 0; i-- {
			if live[i] {
				continue
			}
			s := &m.states[i]
			ok := s.accept
			for _, e := range s.edges {
				ok = ok || live[e.to]
			}
			for _, c := range s.calls {
				ok = ok || live[m.starts[c.rule]] && live[c.to]
			}
			if ok {
				live[i], changed = true, true
			}
		}
	}
	for i := range m.states {
		s := &m.states[i]
		s.edges = slices.DeleteFunc(s.edges, func(e edge) bool { return !live[e.to] })
		s.calls = slices.DeleteFunc(s.calls, func(c call) bool { return !live[m.starts[c.rule]] || !live[c.to] })
		m.hasCalls = m.hasCalls || len(s.calls) > 0
	}
	return live[m.starts[0]], m.leftRecursive()
}

// leftRecursive looks for a state that comes to be called or returned to again before any byte is matched.
func (m *machine) leftRecursive() bool {
	empty := m.emptyStates()
	const (
		open = 1
		done = 2
	)
	visited := make([]uint8, len(m.states))
	var visit func(s int32) bool
	visit = func(s int32) bool {
		switch visited[s] {
		case open:
			return true
		case done:
			return false
		}
		visited[s] = open
		for _, c := range m.states[s].calls {
			if visit(m.starts[c.rule]) || empty[m.starts[c.rule]] && visit(c.to) {
				return true
			}
		}
		visited[s] = done
		return false
	}
	for _, s := range m.starts {
		if visit(s) {
			return true
		}
	}
	for s := range m.states {
		if visit(int32(s)) {
			return true
		}
	}
	return false
}

// emptyStates tells from which states the rule may end without another byte.
func (m *machine) emptyStates() []bool {
	empty := make([]bool, len(m.states))
	for changed := true; changed; {
		changed = false
		for i := len(m.states) - 1; i >= 0; i-- {
			if empty[i] {
				continue
			}
			ok := m.states[i].accept
			for _, c := range m.states[i].calls {
				ok = ok || empty[m.starts[c.rule]] && empty[c.to]
			}
			if ok {
				empty[i], changed = true, true
			}
		}
	}
	return empty
}
