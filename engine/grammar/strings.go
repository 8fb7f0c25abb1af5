package grammar

import (
	"fmt"
	"regexp/syntax"
	"unicode"
)

// jsonRunes is a runeWriter for text inside a JSON string: what JSON wants escaped is, the short way where there is one.
func jsonRunes(n *nfa, from int32, ranges []rune) int32 {
	to := n.state()
	for i := 0; i < len(ranges); i += 2 {
		lo, hi := ranges[i], ranges[i+1]
		for ; lo <= hi && lo < 0x20; lo++ {
			if short, ok := shortEscapes[lo]; ok {
				n.edge(n.bytes(from, '\\', '\\'), short, short, to)
			} else {
				at := n.text(from, fmt.Sprintf(`\u00%x`, lo>>4))
				n.edge(at, "0123456789abcdef"[lo&15], "0123456789abcdef"[lo&15], to)
			}
		}
		for _, special := range []rune{'"', '\\'} {
			if lo <= special && special <= hi {
				n.edge(n.bytes(from, '\\', '\\'), byte(special), byte(special), to)
				if lo < special {
					addRange(n, from, to, lo, special-1)
				}
				lo = special + 1
			}
		}
		if lo <= hi {
			addRange(n, from, to, lo, hi)
		}
	}
	return to
}

var shortEscapes = map[rune]byte{'\b': 'b', '\f': 'f', '\n': 'n', '\r': 'r', '\t': 't'}

// anyChar adds one character of a JSON string, written in any way.
func anyChar(n *nfa, from int32) int32 {
	to := n.state()
	addRange(n, from, to, 0x20, '"'-1)
	addRange(n, from, to, '"'+1, '\\'-1)
	addRange(n, from, to, '\\'+1, unicode.MaxRune)
	escape := n.bytes(from, '\\', '\\')
	for _, c := range []byte(`"\/bfnrt`) {
		n.edge(escape, c, c, to)
	}
	// \u and four digits, no surrogate but a high and a low one together.
	u := n.bytes(escape, 'u', 'u')
	hex := func(from, to int32, lo, hi byte) {
		for _, r := range [][2]byte{{'0', '9'}, {'a', 'f'}, {'A', 'F'}} {
			if a, b := max(lo, r[0]), min(hi, r[1]); a <= b {
				n.edge(from, a, b, to)
			}
		}
	}
	either := func(from, to int32, lo, hi byte) { // lo to hi in both cases
		hex(from, to, lo, hi)
		hex(from, to, lo-'a'+'A', hi-'a'+'A')
	}
	three, two, one := n.state(), n.state(), n.state() // so many more digits
	hex(u, three, '0', '9')
	either(u, three, 'a', 'c')
	either(u, three, 'e', 'f')
	hex(three, two, '0', 'f')
	hex(two, one, '0', 'f')
	hex(one, to, '0', 'f')
	d := n.state()
	either(u, d, 'd', 'd')
	hex(d, two, '0', '7')
	high := n.state()
	hex(d, high, '8', '9')
	either(d, high, 'a', 'b')
	for range 2 {
		next := n.state()
		hex(high, next, '0', 'f')
		high = next
	}
	low := n.text(high, `\u`)
	lowD := n.state()
	either(low, lowD, 'd', 'd')
	either(lowD, two, 'c', 'f')
	return to
}

// stringRule adds a whole JSON string of any content.
func stringRule(n *nfa, from int32) int32 {
	at := n.bytes(from, '"', '"')
	loop := n.state()
	n.link(at, loop)
	n.link(anyChar(n, loop), loop)
	return n.bytes(loop, '"', '"')
}

// keyRule adds a JSON string whose text is none of names, with nothing escaped that need not be: an object's further key.
func keyRule(n *nfa, from int32, names []string) int32 {
	type node map[rune]node
	root, ends := node{}, map[string]bool{}
	for _, name := range names {
		at := root
		for _, r := range name {
			if at[r] == nil {
				at[r] = node{}
			}
			at = at[r]
		}
		ends[name] = true
	}
	start := n.bytes(from, '"', '"')
	end := n.state()
	free := n.state() // no name any more
	n.link(jsonRunes(n, free, []rune{0, unicode.MaxRune}), free)
	n.edge(free, '"', '"', end)
	var walk func(at int32, t node, prefix string)
	walk = func(at int32, t node, prefix string) {
		if !ends[prefix] {
			n.edge(at, '"', '"', end)
		}
		rest := []rune{0, unicode.MaxRune}
		for r, child := range t {
			next := jsonRunes(n, at, []rune{r, r})
			walk(next, child, prefix+string(r))
			rest = without(rest, r)
		}
		n.link(jsonRunes(n, at, rest), free)
	}
	walk(start, root, "")
	return end
}

// without takes r out of a class.
func without(class []rune, r rune) []rune {
	var out []rune
	for i := 0; i < len(class); i += 2 {
		lo, hi := class[i], class[i+1]
		if r < lo || r > hi {
			out = append(out, lo, hi)
			continue
		}
		if lo < r {
			out = append(out, lo, r-1)
		}
		if r < hi {
			out = append(out, r+1, hi)
		}
	}
	return out
}

// patternRule adds a JSON string whose text re matches somewhere.
func patternRule(n *nfa, from int32, re *syntax.Regexp) (int32, error) {
	b := regexBuilder{n, jsonRunes}
	at, err := b.anywhere(re, n.bytes(from, '"', '"'))
	if err != nil {
		return 0, err
	}
	return n.bytes(at, '"', '"'), nil
}

// addBoundedString appends, as the given rule, a JSON string of least to most characters, escaped the short way or not at all.
// It is built by hand, one group of states for each count, so that states far from both bounds can be told to be alike.
func (m *machine) addBoundedString(rule int32, least, most int, limit *budget) {
	n := newNFA(limit)
	start := n.state()
	one := n.state()
	addRange(n, start, one, 0x20, '"'-1)
	addRange(n, start, one, '"'+1, '\\'-1)
	addRange(n, start, one, '\\'+1, unicode.MaxRune)
	escape := n.bytes(start, '\\', '\\')
	for _, c := range []byte(`"\bfnrt`) {
		n.edge(escape, c, c, one)
	}
	// The states of one character, first and last included.
	char := &machine{starts: make([]int32, 1)}
	char.add(0, n, start, one, limit)
	last := int32(-1)
	for i, s := range char.states {
		if s.accept {
			last = int32(i)
		}
	}
	if limit.err != nil {
		return
	}
	for range most * len(char.states) {
		if !limit.take() {
			return
		}
	}

	open := int32(len(m.states))
	m.starts[rule] = open
	base := open + 1 // character k, from its first state on, has the numbers base + k*width ...
	width := int32(len(char.states) - 1)
	number := func(k int, s int32) int32 {
		if s == last { // the end of one character is the start of the next
			k, s = k+1, char.starts[0]
		}
		if s > last {
			s--
		}
		return base + int32(k)*width + s
	}
	end := base + int32(most+1)*width
	m.states = append(m.states, state{edges: []edge{{'"', '"', number(0, char.starts[0])}}})
	for k := range most + 1 {
		for i, s := range char.states {
			if int32(i) == last {
				continue
			}
			var edges []edge
			first := int32(i) == char.starts[0]
			if k < most {
				for _, e := range s.edges {
					edges = append(edges, edge{e.lo, e.hi, number(k, e.to)})
				}
			}
			if first && k >= least {
				edges = insertEdge(edges, edge{'"', '"', end})
			}
			m.states = append(m.states, state{edges: edges})
			id := number(k, int32(i))
			switch {
			case most-k <= maxTokenBytes: // the upper bound is near
			case k > least:
				m.alike(id, number(least, int32(i)))
			case k > 0 && k+maxTokenBytes < least:
				m.alike(id, number(0, int32(i)))
			}
		}
	}
	m.states = append(m.states, state{accept: true})
}

func (m *machine) alike(id, like int32) {
	if m.like == nil {
		m.like = map[int32]int32{}
	}
	m.like[id] = like
}

func insertEdge(edges []edge, e edge) []edge {
	for i := range edges {
		if edges[i].lo > e.hi {
			return append(edges[:i:i], append([]edge{e}, edges[i:]...)...)
		}
	}
	return append(edges, e)
}
