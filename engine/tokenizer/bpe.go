package tokenizer

import (
	"math/bits"
	"sync/atomic"
	"unicode/utf8"
)

// bpe is a byte-pair encoding: a piece of text becomes symbols, and the pair of neighbours with the lowest rank (the leftmost
// of equals) is merged until no pair can be.
type bpe struct {
	vocab map[string]int32 // of raw bytes if byteLevel, else of text
	pairs pairTable
	// byteLevel pieces begin as bytes, others as runes. byteIDs holds the symbol of each byte: of byteLevel, or of byte fallback;
	// -1 where there is none.
	byteLevel    bool
	byteIDs      [256]int32
	byteFallback bool
	ascii        [utf8.RuneSelf]int32 // symbol of an ASCII rune, -1 for none
	unknown      int32                // -1: what has no symbol is left out
	fuseUnknown  bool
	ignoreMerges bool // a piece that is a token becomes it even if merges lead elsewhere
	longest      int  // bytes of the longest token

	// whole remembers for each token if encoding its text gives the token itself: 0 not tried yet, else wholeYes or wholeNo.
	// It saves the merging for most words.
	whole []atomic.Uint32
}

const (
	wholeYes = 1
	wholeNo  = 2
)

// shortPiece is the number of symbols up to which scanning for the best pair beats a heap.
const shortPiece = 48

// appendIDs appends the ids of piece.
func (m *bpe) appendIDs(ids []int32, piece string, sc *scratch) []int32 {
	if len(piece) > m.longest || len(piece) == 0 {
		return m.merge(ids, piece, sc)
	}
	id, ok := m.vocab[piece]
	if !ok {
		return m.merge(ids, piece, sc)
	}
	if m.ignoreMerges {
		return append(ids, id)
	}
	switch m.whole[id].Load() {
	case wholeYes:
		return append(ids, id)
	case wholeNo:
		return m.merge(ids, piece, sc)
	}
	start := len(ids)
	ids = m.merge(ids, piece, sc)
	if len(ids) == start+1 && ids[start] == id {
		m.whole[id].Store(wholeYes)
	} else {
		m.whole[id].Store(wholeNo)
	}
	return ids
}

func (m *bpe) merge(ids []int32, piece string, sc *scratch) []int32 {
	sc.symbols = m.appendSymbols(sc.symbols[:0], piece)
	switch n := len(sc.symbols); {
	case n <= 1:
		return append(ids, sc.symbols...)
	case n <= shortPiece:
		return append(ids, m.mergeShort(sc.symbols, sc)...)
	default:
		return m.mergeLong(ids, sc.symbols, sc)
	}
}

// appendSymbols appends what merging of piece begins with.
func (m *bpe) appendSymbols(dst []int32, piece string) []int32 {
	unknown := false // the last symbol is an unknown one that more may be fused with
	for i := 0; i < len(piece); {
		id, size := int32(-1), 1
		switch c := piece[i]; {
		case m.byteLevel:
			id = m.byteIDs[c]
		case c < utf8.RuneSelf:
			id = m.ascii[c]
		default:
			_, size = utf8.DecodeRuneInString(piece[i:])
			if v, ok := m.vocab[piece[i:i+size]]; ok {
				id = v
			}
		}
		text := piece[i : i+size]
		i += size
		if id >= 0 {
			dst = append(dst, id)
			unknown = false
			continue
		}
		if m.byteFallback {
			if all, ok := m.appendBytes(dst, text); ok {
				dst = all
				unknown = false
				continue
			}
		}
		if m.unknown >= 0 && !(unknown && m.fuseUnknown) {
			dst = append(dst, m.unknown)
			unknown = true
		}
	}
	return dst
}

func (m *bpe) appendBytes(dst []int32, text string) ([]int32, bool) {
	for i := range len(text) {
		if m.byteIDs[text[i]] < 0 {
			return nil, false
		}
		dst = append(dst, m.byteIDs[text[i]])
	}
	return dst, true
}

// mergeShort merges in place and returns what is left of symbols.
func (m *bpe) mergeShort(symbols []int32, sc *scratch) []int32 {
	// merges[i] is the merge of symbols i and i+1: rank and id as the pair table packs them.
	merges := sc.merges[:0]
	for i := 1; i < len(symbols); i++ {
		merges = append(merges, m.pairs.get(symbols[i-1], symbols[i]))
	}
	sc.merges = merges
	for {
		best, at := noMerge, -1
		for i, v := range merges {
			if v>>32 < best>>32 {
				best, at = v, i
			}
		}
		if at < 0 {
			return symbols
		}
		symbols[at] = int32(uint32(best))
		symbols = append(symbols[:at+1], symbols[at+2:]...)
		merges = append(merges[:at], merges[at+1:]...)
		if at > 0 {
			merges[at-1] = m.pairs.get(symbols[at-1], symbols[at])
		}
		if at < len(merges) {
			merges[at] = m.pairs.get(symbols[at], symbols[at+1])
		}
	}
}

// mergeLong takes O(n log n) whatever the text: a linked list of symbols and a heap of rank and place. Entries of the heap
// whose pair has changed since are recognised by their rank.
func (m *bpe) mergeLong(ids, symbols []int32, sc *scratch) []int32 {
	n := len(symbols)
	prev, next := sc.links(n)
	heap := sc.heap[:0]
	for i := range n - 1 {
		if v := m.pairs.get(symbols[i], symbols[i+1]); v != noMerge {
			heap = append(heap, v&^0xffffffff|uint64(uint32(i)))
		}
	}
	for i := len(heap)/2 - 1; i >= 0; i-- {
		siftDown(heap, i)
	}
	push := func(i int32) {
		if v := m.pairs.get(symbols[i], symbols[next[i]]); v != noMerge {
			heap = append(heap, v&^0xffffffff|uint64(uint32(i)))
			siftUp(heap, len(heap)-1)
		}
	}
	for len(heap) > 0 {
		top := heap[0]
		heap[0] = heap[len(heap)-1]
		heap = heap[:len(heap)-1]
		siftDown(heap, 0)

		i := int32(uint32(top))
		if symbols[i] < 0 || next[i] < 0 {
			continue
		}
		j := next[i]
		v := m.pairs.get(symbols[i], symbols[j])
		if v>>32 != top>>32 {
			continue
		}
		symbols[i], symbols[j] = int32(uint32(v)), -1
		next[i] = next[j]
		if next[i] >= 0 {
			prev[next[i]] = i
			push(i)
		}
		if prev[i] >= 0 {
			push(prev[i])
		}
	}
	sc.heap = heap
	for i := int32(0); i >= 0; i = next[i] {
		ids = append(ids, symbols[i])
	}
	return ids
}

func siftDown(h []uint64, i int) {
	for {
		child := 2*i + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && h[child+1] < h[child] {
			child++
		}
		if h[i] <= h[child] {
			return
		}
		h[i], h[child] = h[child], h[i]
		i = child
	}
}

func siftUp(h []uint64, i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if h[parent] <= h[i] {
			return
		}
		h[i], h[parent] = h[parent], h[i]
		i = parent
	}
}

// noMerge is what pairTable.get returns for a pair that does not merge: its rank is above all others.
const noMerge = ^uint64(0)

// pairTable maps a pair of symbols to the rank of their merge (high 32 bits) and its symbol (low 32): an open hash table, as
// it is the hottest look-up of all and twice as fast as a map.
type pairTable struct {
	slots []pairSlot
	shift int
}

type pairSlot struct{ key, value uint64 }

const emptySlot = ^uint64(0)

func newPairTable(n int) pairTable {
	log := bits.Len(uint(max(n, 8))*2 - 1)
	t := pairTable{slots: make([]pairSlot, 1<<log), shift: 64 - log}
	for i := range t.slots {
		t.slots[i].key = emptySlot
	}
	return t
}

func pairKey(a, b int32) uint64 { return uint64(uint32(a))<<32 | uint64(uint32(b)) }

// put sets the merge of a and b. It is called at most as often as newPairTable was told.
func (t *pairTable) put(a, b int32, rank uint32, id int32) {
	key := pairKey(a, b)
	for i := key * 0x9E3779B97F4A7C15 >> t.shift; ; i = (i + 1) & uint64(len(t.slots)-1) {
		if s := &t.slots[i]; s.key == emptySlot || s.key == key {
			*s = pairSlot{key, uint64(rank)<<32 | uint64(uint32(id))}
			return
		}
	}
}

func (t *pairTable) get(a, b int32) uint64 {
	key := pairKey(a, b)
	for i := key * 0x9E3779B97F4A7C15 >> t.shift; ; i = (i + 1) & uint64(len(t.slots)-1) {
		s := &t.slots[i]
		if s.key == key {
			return s.value
		}
		if s.key == emptySlot {
			return noMerge
		}
	}
}
