package tokenizer

import "sync"

// scratch is the working memory of one Encode, kept for the next.
type scratch struct {
	spans, other []span // what a pre-tokenizer reads and writes
	found        []span
	symbols      []int32
	merges       []uint64
	heap         []uint64
	prev, next   []int32
}

// keptScratch is the number of entries above which a slice is not kept: a rare huge text should not hold memory for good.
const keptScratch = 1 << 18

var scratches = sync.Pool{New: func() any { return &scratch{} }}

func (s *scratch) free() {
	if cap(s.spans) > keptScratch || cap(s.other) > keptScratch || cap(s.found) > keptScratch || cap(s.symbols) > keptScratch || cap(s.heap) > keptScratch {
		return
	}
	scratches.Put(s)
}

// links returns the links of a list of n symbols.
func (s *scratch) links(n int) (prev, next []int32) {
	if cap(s.prev) < n {
		s.prev, s.next = make([]int32, n), make([]int32, n)
	}
	prev, next = s.prev[:n], s.next[:n]
	for i := range prev {
		prev[i], next[i] = int32(i)-1, int32(i)+1
	}
	next[n-1] = -1
	return prev, next
}
