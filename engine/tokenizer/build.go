package tokenizer

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"sync/atomic"
	"unicode/utf8"
)

// maxID bounds ids, so that a lying file cannot make us allocate without end. The largest vocabularies are below 2^19.
const maxID = 1 << 22

// sparseIDs is how far ids may go beyond eight times the number of tokens.
const sparseIDs = 1 << 16

// add puts a token into the tables.
func (t *Tokenizer) add(content string, id int64) error {
	if id < 0 || id >= maxID {
		return fmt.Errorf("token %q has id %d: want 0 to %d", short(content), id, maxID-1)
	}
	if int(id) >= len(t.content) {
		n := int(id) + 1
		t.content = slices.Grow(t.content, n-len(t.content))[:n]
		t.exists = slices.Grow(t.exists, n-len(t.exists))[:n]
		t.special = slices.Grow(t.special, n-len(t.special))[:n]
	}
	if t.exists[id] && t.content[id] != content {
		return fmt.Errorf("tokens %q and %q share id %d", short(t.content[id]), short(content), id)
	}
	t.content[id], t.exists[id] = content, true
	t.ids[content] = int32(id)
	return nil
}

// short cuts a token down to what an error message can bear.
func short(s string) string {
	const most = 40
	if len(s) <= most {
		return s
	}
	cut := most
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// newBPE makes a model of the tokens in vocab, whose merges and other settings are still missing.
func newBPE(vocab map[string]int32, byByte bool, size int) *bpe {
	m := &bpe{byteLevel: byByte, unknown: -1, whole: make([]atomic.Uint32, size)}
	m.vocab = make(map[string]int32, len(vocab))
	for i := range m.byteIDs {
		m.byteIDs[i] = -1
	}
	for i := range m.ascii {
		m.ascii[i] = -1
	}
	for token, id := range vocab {
		text := token
		if byByte {
			var ok bool
			if text, ok = byteLevel().bytes(token); !ok {
				continue // no text leads to it
			}
			if len(text) == 1 {
				m.byteIDs[text[0]] = id
			}
		} else {
			if b, ok := fallbackByte(token); ok && token == fmt.Sprintf("<0x%02X>", b) {
				m.byteIDs[b] = id
			}
			if len(token) == 1 && token[0] < utf8.RuneSelf {
				m.ascii[token[0]] = id
			}
		}
		m.vocab[text] = id
		m.longest = max(m.longest, len(text))
	}
	return m
}

// setMerges gives merge i the rank i. vocab is as newBPE got it.
func (m *bpe) setMerges(merges [][2]string, vocab map[string]int32) error {
	if len(merges) >= math.MaxUint32 {
		return fmt.Errorf("%d merges are too many", len(merges))
	}
	m.pairs = newPairTable(len(merges))
	var joined []byte
	for rank, pair := range merges {
		var ids [2]int32
		for i, part := range pair {
			id, ok := vocab[part]
			if !ok {
				return fmt.Errorf("merge %d needs token %q, which is not in the vocabulary", rank+1, short(part))
			}
			ids[i] = id
		}
		joined = append(append(joined[:0], pair[0]...), pair[1]...)
		id, ok := vocab[string(joined)]
		if !ok {
			return fmt.Errorf("merge %d makes token %q, which is not in the vocabulary", rank+1, short(string(joined)))
		}
		m.pairs.put(ids[0], ids[1], uint32(rank), id)
	}
	return nil
}

// setScores makes merges the way SentencePiece does: any two neighbours whose concatenation is a token may merge, the one
// with the highest score first.
func (m *bpe) setScores(vocab map[string]int32, score func(id int32) float32) {
	type merge struct {
		left, right, id int32
	}
	var merges []merge
	for token, id := range vocab {
		for i := 1; i < len(token); i++ {
			if !utf8.RuneStart(token[i]) {
				continue
			}
			left, ok := vocab[token[:i]]
			if !ok {
				continue
			}
			if right, ok := vocab[token[i:]]; ok {
				merges = append(merges, merge{left, right, id})
			}
		}
	}
	sort.Slice(merges, func(i, j int) bool { return score(merges[i].id) > score(merges[j].id) })
	m.pairs = newPairTable(len(merges))
	rank := uint32(0)
	for i, g := range merges {
		if i > 0 && score(merges[i-1].id) != score(g.id) {
			rank++
		}
		m.pairs.put(g.left, g.right, rank, g.id)
	}
}

// finish makes the tables that depend on all tokens. perToken is the part of decoding that looks at one token alone.
func (t *Tokenizer) finish(added []*addedToken, perToken func(string) string) {
	var raw, cooked []*addedToken
	for _, a := range added {
		if a.normalized {
			cooked = append(cooked, a)
		} else {
			raw = append(raw, a)
		}
	}
	t.raw = newAddedMatcher(raw, func(a *addedToken) string { return a.content })
	t.cooked = newAddedMatcher(cooked, func(a *addedToken) string { return t.normalize(a.content) })

	t.text = make([]string, len(t.content))
	t.isByte = make([]bool, len(t.content))
	for id, content := range t.content {
		if !t.exists[id] {
			continue
		}
		if t.decoding.mode == byteFallback {
			if b, ok := fallbackByte(content); ok {
				t.text[id], t.isByte[id] = string([]byte{b}), true
				continue
			}
		}
		t.text[id] = perToken(content)
	}
	// An added token that is looked for in normalised text decodes to that form.
	for _, a := range cooked {
		t.text[a.id] = perToken(t.normalize(a.content))
	}
}
