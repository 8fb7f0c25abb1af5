package grammar

import (
	"bytes"
	"slices"
	"sort"
	"sync"

	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// Vocabulary is what a model can write: the bytes of each token, as a trie in preorder. It is made once for a model and is
// safe for concurrent use; it remembers the grammars compiled for it last.
type Vocabulary struct {
	size  int // ids are 0..size-1
	eos   []int32
	texts [][]byte // by id; nil for tokens that are no text

	// The trie without its root, node by node in preorder.
	nodes  []trieNode
	tokens []int32 // of all nodes, in the nodes' order

	mu       sync.Mutex
	compiled map[Spec]*Grammar
	order    []Spec // of compiled, oldest first
}

type trieNode struct {
	b      byte
	depth  uint8 // 0 for a token's first byte
	end    int32 // index behind the node's subtree
	tokens int32 // where its tokens begin in Vocabulary.tokens; they end where the next node's begin
}

// maxTokenBytes is how long tokens may be that a grammar allows; longer ones (rare runs of spaces) are never allowed.
const maxTokenBytes = 250

// NewVocabulary makes a vocabulary of size tokens. text gives a token's bytes, or none for tokens that are no text (special
// ones): those are never allowed, but for eos, which ends a complete value.
func NewVocabulary(size int, text func(id int32) []byte, eos []int32) *Vocabulary {
	v := &Vocabulary{size: size, eos: slices.Clone(eos), texts: make([][]byte, size), compiled: map[Spec]*Grammar{}}
	var ids []int32
	for id := range int32(size) {
		if b := text(id); len(b) > 0 && len(b) <= maxTokenBytes && !slices.Contains(eos, id) {
			v.texts[id] = b
			ids = append(ids, id)
		}
	}
	v.nodes, v.tokens = buildTrie(ids, func(id int32) []byte { return v.texts[id] })
	return v
}

// FromTokenizer makes the vocabulary of a model of size tokens, which may be more than the tokenizer knows.
func FromTokenizer(t *tokenizer.Tokenizer, size int, eos []int32) *Vocabulary {
	return NewVocabulary(size, func(id int32) []byte {
		if t.IsSpecial(id) {
			return nil
		}
		return t.TokenBytes(id)
	}, eos)
}

// MaskWords is the length of a mask: one bit a token.
func (v *Vocabulary) MaskWords() int { return (v.size + 31) / 32 }

// buildTrie makes a trie of the texts of ids, which it sorts. A last node marks the end of tokens.
func buildTrie(ids []int32, text func(int32) []byte) (nodes []trieNode, tokens []int32) {
	sort.Slice(ids, func(i, j int) bool { return bytes.Compare(text(ids[i]), text(ids[j])) < 0 })
	var open []int32 // the nodes on the path to the last text
	var path []byte
	for _, id := range ids {
		t := text(id)
		common := 0
		for common < len(path) && common < len(t) && path[common] == t[common] {
			common++
		}
		for _, n := range open[common:] {
			nodes[n].end = int32(len(nodes))
		}
		open, path = open[:common], path[:common]
		for _, b := range t[common:] {
			open = append(open, int32(len(nodes)))
			nodes = append(nodes, trieNode{b: b, depth: uint8(len(path)), tokens: int32(len(tokens))})
			path = append(path, b)
		}
		tokens = append(tokens, id)
	}
	for _, n := range open {
		nodes[n].end = int32(len(nodes))
	}
	return append(nodes, trieNode{tokens: int32(len(tokens))}), tokens
}
