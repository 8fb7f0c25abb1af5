package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// addedToken is a token that is found in the text before anything else looks at it.
type addedToken struct {
	id                    int32
	content               string
	singleWord            bool // only where no word character touches it
	stripLeft, stripRight bool // takes the white space around it along
	normalized            bool // looked for in the normalised text
	special               bool
}

// addedMatcher finds added tokens: the leftmost, and the longest of those that begin there.
type addedMatcher struct {
	tokens []*addedToken
	starts [256]bool // first bytes
	nodes  []trieNode
}

type trieNode struct {
	next  map[byte]int32
	token int32 // index into tokens, -1 for none
}

// newAddedMatcher looks for text(token); of two tokens with one text the first is taken. It returns nil for no tokens.
func newAddedMatcher(tokens []*addedToken, text func(*addedToken) string) *addedMatcher {
	m := &addedMatcher{nodes: []trieNode{{token: -1}}}
	for _, t := range tokens {
		s := text(t)
		if s == "" {
			continue
		}
		m.starts[s[0]] = true
		at := int32(0)
		for i := range len(s) {
			child, ok := m.nodes[at].next[s[i]]
			if !ok {
				child = int32(len(m.nodes))
				if m.nodes[at].next == nil {
					m.nodes[at].next = map[byte]int32{}
				}
				m.nodes[at].next[s[i]] = child
				m.nodes = append(m.nodes, trieNode{token: -1})
			}
			at = child
		}
		if m.nodes[at].token < 0 {
			m.nodes[at].token = int32(len(m.tokens))
			m.tokens = append(m.tokens, t)
		}
	}
	if len(m.tokens) == 0 {
		return nil
	}
	return m
}

// find returns the first token in s from i on and where it lies; nil for none.
func (m *addedMatcher) find(s string, i int) (t *addedToken, start, end int) {
	for ; i < len(s); i++ {
		if !m.starts[s[i]] {
			continue
		}
		at := int32(0)
		for j := i; j < len(s); j++ {
			child, ok := m.nodes[at].next[s[j]]
			if !ok {
				break
			}
			at = child
			if n := m.nodes[at].token; n >= 0 {
				t, end = m.tokens[n], j+1
			}
		}
		if t != nil {
			return t, i, end
		}
	}
	return nil, 0, 0
}

// cut calls plain for the parts of s without an added token, with their offset, and token for each added token, in order.
func (m *addedMatcher) cut(s string, plain func(part string, at int), token func(id int32)) {
	if m == nil {
		plain(s, 0)
		return
	}
	done := 0
	for i := 0; ; {
		t, start, end := m.find(s, i)
		if t == nil {
			break
		}
		i = end
		if t.singleWord && (wordBefore(s[:start]) || wordAfter(s[end:])) {
			continue
		}
		if t.stripLeft {
			start = max(done, spacesBefore(s, start))
		}
		if t.stripRight {
			end = spacesAfter(s, end)
		}
		if done < start {
			plain(s[done:start], done)
		}
		token(t.id)
		done = end
	}
	if done < len(s) {
		plain(s[done:], done)
	}
}

func wordBefore(s string) bool {
	r, n := utf8.DecodeLastRuneInString(s)
	return n > 0 && isWord(r)
}

func wordAfter(s string) bool {
	r, n := utf8.DecodeRuneInString(s)
	return n > 0 && isWord(r)
}

// isWord is \w as Unicode's technical standard 18 defines it.
func isWord(r rune) bool {
	return runeClasses().of(r)&(classLetter|classMark) != 0 || unicode.Is(unicode.Other_Alphabetic, r) || unicode.Is(unicode.Nl, r) ||
		unicode.Is(unicode.Nd, r) || unicode.Is(unicode.Pc, r) || unicode.Is(unicode.Join_Control, r)
}

func spacesBefore(s string, i int) int {
	for i > 0 {
		r, n := utf8.DecodeLastRuneInString(s[:i])
		if !unicode.Is(unicode.White_Space, r) {
			break
		}
		i -= n
	}
	return i
}

func spacesAfter(s string, i int) int {
	for i < len(s) {
		r, n := utf8.DecodeRuneInString(s[i:])
		if !unicode.Is(unicode.White_Space, r) {
			break
		}
		i += n
	}
	return i
}
