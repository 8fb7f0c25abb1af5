//go:build cuda

package cuda

import (
	"cmp"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// attn_prefix: decode rows that begin with the same pages read them together.

// attnPrefixParams mirrors Params of attn_prefix.cu.
type attnPrefixParams struct {
	QKV, KV, QNorm, Rope, RowSlot, RowCtx, RowFrom, PageTable, Part ptr
	Scale                                                           float32
	Rows, Places, _                                                 int32
}

const (
	prefixQueries = 64 // of a CTA: heads of rows
	prefixThreads = 128
	prefixTile    = 64 // tokens; what is shared is a multiple
	prefixSplits  = 16 // at most, of either kernel
	// prefixPays is how many tokens less have to be read in a layer, of all rows, before the second kernel pays. On an H200 with 8B, decode
	// steps, each row alone and then together: 16 rows and 1,024 tokens 4.30 and 4.70 ms, 32 and 1,024 4.86 and 4.61, 16 and 4,096 5.05 and 4.95, 32
	// and 4,096 7.19 and 4.92, 128 and 1,024 7.77 and 6.17, 128 and 4,096 14.37 and 7.14.
	prefixPays = 32768
)

// canShare tells whether rows of s may read pages together. With drafts or in deterministic mode sums have one order.
func (s shape) canShare() bool {
	return s.Prefixes && !s.Deterministic && !s.KVFP8 && s.Window == 0 && s.MaxVerify == 0
}

// prefixRows is the number of rows of a block.
func (s shape) prefixRows() int { return prefixQueries / (s.Heads / s.KVHeads) }

// prefixPieces is the most pieces that what a block shares is cut into: two CTAs an SM are one wave.
func prefixPieces(d device, s shape, rows int) int {
	return max(1, min(prefixSplits, 2*d.SMs/(ceilDiv(rows, s.prefixRows())*s.KVHeads)))
}

// prefixPlaces is the number of partial results of a row.
func prefixPlaces(d device, s shape, rows int) int {
	if !s.canShare() {
		return 0
	}
	return prefixPieces(d, s, rows) + min(prefixSplits, attnSplits(d, s, rows))
}

// attnPrefixOp: the queries of decode rows against the pages that they share, in layer i.
func attnPrefixOp(d device, s shape, b *buffers, w layerWeights, layer, rows int) op {
	p := attnPrefixParams{QKV: b.QKV, KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), QNorm: w.QNorm, Rope: b.Rope, RowSlot: b.RowSlot, RowCtx: b.RowCtx,
		RowFrom: b.RowFrom, PageTable: b.PageTable, Part: b.AttnScratch + ptr(attnCounterBytes(s)), Scale: attnScale(s), Rows: int32(rows),
		Places: int32(prefixPlaces(d, s, rows))}
	return op{Name: "attn_prefix", Context: contextOfDecode, Unit: unit{File: "attn_prefix.cu", Symbol: "attn_prefix", Defines: "KV_FP8=0"},
		Grid: [3]int{prefixPieces(d, s, rows), s.KVHeads, ceilDiv(rows, s.prefixRows())}, Block: prefixThreads,
		Smem: (4*prefixTile + prefixQueries) * (s.Dim + 8) * bf16Bytes, PDL: true, Params: paramBytes(&p)}
}

// behindPrefixOp is attnDecodeOp for rows that go on behind what attn_prefix has read.
func behindPrefixOp(d device, s shape, b *buffers, w layerWeights, layer, rows int) op {
	o := attnDecodeOp(d, s, b, w, layer, rows)
	p := attnDecodeParamsOf(s, b, w, layer)
	p.PrefixSplits = int32(prefixPieces(d, s, rows))
	o.Params, o.Unit.Defines = paramBytes(&p), o.Unit.Defines+" PREFIX=1"
	o.Grid[0] = prefixPlaces(d, s, rows) - prefixPieces(d, s, rows)
	return o
}

// prefixes finds what the decode rows of a batch share. It keeps its memory from step to step.
type prefixes struct {
	pays  int      // tokens less to be read, from which on it is done
	seen  []uint64 // by page: the last step in which a row began with it
	step  uint64
	order []int   // of the batch's decode rows: those that share follow each other
	from  []int32 // by place in order: tokens that the row shares with its block
}

// find tells whether sharing pays, for blocks of so many rows.
func (x *prefixes) find(rows []backend.Row, page, block int) bool {
	x.order = x.order[:0]
	x.step++
	alike := false
	for i := range rows {
		if len(rows[i].Tokens) > 0 {
			continue
		}
		x.order = append(x.order, i)
		first := int(rows[i].Pages[0])
		if missing := first + 1 - len(x.seen); missing > 0 {
			x.seen = append(x.seen, make([]uint64, missing)...)
		}
		alike = alike || x.seen[first] == x.step
		x.seen[first] = x.step
	}
	if !alike {
		return false
	}
	// Equal pages are equal beginnings, for a page that is shared lies in all its sequences at the same place. Sorting by the first of them is enough
	// to bring most together, and cheap.
	slices.SortStableFunc(x.order, func(a, b int) int { return cmp.Compare(rows[a].Pages[0], rows[b].Pages[0]) })
	x.from = append(x.from[:0], make([]int32, len(x.order))...)
	saved := 0
	for first := 0; first < len(x.order); first += block {
		part := x.order[first:min(first+block, len(x.order))]
		at, n := longestRun(part, func(i int) int32 { return rows[i].Pages[0] })
		leader := &rows[part[at]]
		shared := leader.Position / page
		for _, i := range part[at+1 : at+n] {
			shared = commonPages(leader.Pages[:shared], rows[i].Pages[:min(shared, rows[i].Position/page)])
		}
		tokens := shared * page / prefixTile * prefixTile
		if n < 2 || tokens == 0 {
			continue
		}
		for k := at; k < at+n; k++ {
			x.from[first+k] = int32(tokens)
		}
		saved += (n - 1) * tokens
	}
	return saved >= x.pays
}

// longestRun is the first and the number of the most neighbours in list with the same key.
func longestRun(list []int, key func(int) int32) (at, n int) {
	for first := 0; first < len(list); {
		end := first + 1
		for end < len(list) && key(list[end]) == key(list[first]) {
			end++
		}
		if end-first > n {
			at, n = first, end-first
		}
		first = end
	}
	return at, n
}

func commonPages(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
