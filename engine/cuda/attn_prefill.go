//go:build cuda

package cuda

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// attnPrefillParams mirrors Params of attn_prefill.cu.
type attnPrefillParams struct {
	QKV, KV, Out, RowSlot, RowPos, RowLen, RowStart, PageTable ptr
	Scale, OfV                                                 float32
	FirstRow, _                                                int32
}

// attnPrefill90Params mirrors Params of attn_prefill_sm90.cu.
type attnPrefill90Params struct {
	Q, KV                                                             driver.TensorMap
	Out, RowSlot, RowPos, RowLen, RowStart, PageTable, Pages, Widened ptr
	Scale, OfV                                                        float32
	FirstRow, Rows, QTiles                                            int32
	_                                                                 [11]int32
}

// kvWidenParams mirrors Params of kv_widen.cu.
type kvWidenParams struct {
	KV, Out, First, RowSlot, RowPos, RowLen, PageTable ptr
	FirstRow, _                                        int32
}

const (
	attnPrefillThreads = 256
	attnPrefillTile    = 128 // query tokens of a CTA
	attnPrefillKeys    = 64  // key tokens of a tile
)

// prefillAttention lists what makes attention's output of the chunks of rows decode..rows-1, the longest of longest tokens, against their pages in
// layer i. widens tells that pages of an e4m3 cache are copied as f16 first, for which there is room.
func prefillAttention(d device, s shape, b *buffers, w layerWeights, layer, decode, rows, longest int, widens bool) []node {
	if !attnPrefill90(d, s) {
		return nodesOf(attnPrefillOp(s, b, w, layer, decode, rows, longest))
	}
	o := attnPrefill90Op(d, s, b, w, layer, decode, rows, longest, widens && s.KVFP8)
	if !s.KVFP8 || !widens {
		return nodesOf(o)
	}
	return nodesOf(kvWidenOp(d, s, b, layer, decode, rows), o)
}

// attnPrefill90 tells whether prefill attention runs on the warpgroup matrix units.
func attnPrefill90(d device, s shape) bool { return d.SM == 90 && (s.Dim == 64 || s.Dim == 128) }

// widenedPages is the room for f16 copies of an e4m3 cache's pages, which all layers share: of one sequence of any length, or of many shorter ones.
func (s shape) widenedPages(d device) int {
	if !s.KVFP8 || !attnPrefill90(d, s) {
		return 0
	}
	return max(s.MaxPages, widenedSteps*s.MaxTokens/s.Page)
}

func (s shape) widenedBytes(d device) int64 {
	return int64(s.widenedPages(d)) * 2 * int64(s.kvDim()) * int64(s.Page) * bf16Bytes
}

// widenedSteps is how many times a step's tokens the contexts of its prefill rows may have together before attention widens tile by tile. 16 times
// 8,192 tokens of an 8B model take 0.5 GB.
const widenedSteps = 16

// kvWidenOp copies the pages of rows decode..rows-1 in layer i, widened.
func kvWidenOp(d device, s shape, b *buffers, layer, decode, rows int) op {
	p := kvWidenParams{KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), Out: b.Widened, First: b.WidenedFirst, RowSlot: b.RowSlot, RowPos: b.RowPos, RowLen: b.RowLen,
		PageTable: b.PageTable, FirstRow: int32(decode)}
	return op{Name: "kv_widen", Context: contextOfPrefill, Unit: unit{File: "kv_widen.cu", Symbol: "kv_widen", Defines: "KV_FP8=1"},
		Grid: [3]int{max(1, 8*d.SMs/(rows-decode)), rows - decode, 1}, Block: 256, PDL: true, Params: paramBytes(&p)}
}

// attnPrefillOp is prefill attention on any GPU.
func attnPrefillOp(s shape, b *buffers, w layerWeights, layer, decode, rows, longest int) op {
	p := attnPrefillParams{QKV: b.QKV, KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), Out: b.Att, RowSlot: b.RowSlot, RowPos: b.RowPos, RowLen: b.RowLen,
		RowStart: b.RowStart, PageTable: b.PageTable, Scale: attnScale(s) * w.KV.k(), OfV: w.KV.v(), FirstRow: int32(decode)}
	return op{Name: "attn_prefill", Context: contextOfPrefill, Unit: unit{File: "attn_prefill.cu", Symbol: "attn_prefill", Defines: fmt.Sprintf("KV_FP8=%d", s.kvFP8())},
		Grid: [3]int{s.Heads, ceilDiv(longest, attnPrefillTile), rows - decode}, Block: attnPrefillThreads,
		Smem: 2 * 2 * attnPrefillKeys * (s.Dim + 8) * bf16Bytes, PDL: true, Params: paramBytes(&p)}
}

// attnPrefill90Op is attnPrefillOp on the warpgroup matrix units. widened tells that it reads an e4m3 cache from kvWidenOp's copy.
func attnPrefill90Op(d device, s shape, b *buffers, w layerWeights, layer, decode, rows, longest int, widened bool) op {
	const keys, ring = 128, 4 // tokens of a tile; tiles of an e4m3 cache on their way
	p := attnPrefill90Params{Q: tensorMap(b.QKV, s.tokenRows(), s.qkvDim(), 64), Out: b.Att, RowSlot: b.RowSlot, RowPos: b.RowPos, RowLen: b.RowLen,
		RowStart: b.RowStart, PageTable: b.PageTable, Scale: attnScale(s) * w.KV.k(), OfV: w.KV.v(), FirstRow: int32(decode), Rows: int32(rows - decode),
		QTiles: int32(ceilDiv(longest, attnPrefillTile))}
	ctas := min(d.SMs, s.Heads*int(p.Rows*p.QTiles))
	smem := attnPrefillTile*s.Dim*bf16Bytes + 4*keys*s.Dim*bf16Bytes + 1024
	defines := fmt.Sprintf("KV_FP8=%d", s.kvFP8())
	switch {
	case widened:
		defines += " WIDENED=1"
		p.Widened, p.KV = b.WidenedFirst, tensorMap(b.Widened, s.widenedPages(d)*2*s.KVHeads*s.Page, s.Dim, s.Page)
	case s.KVFP8:
		p.Pages = b.KV + ptr(int64(layer)*s.layerKVBytes())
		smem += ring * keys * s.Dim
	case b.KV != 0:
		p.KV = tensorMap(b.KV+ptr(int64(layer)*s.layerKVBytes()), s.NumPages*2*s.KVHeads*s.Page, s.Dim, s.Page)
	}
	return op{Name: "attn_prefill", Context: contextOfPrefill, Unit: unit{File: "attn_prefill_sm90.cu", Symbol: "attn_prefill_sm90", Defines: defines},
		Grid: [3]int{ctas, 1, 1}, Block: 384,
		Smem: smem, PDL: true, Params: paramBytes(&p)}
}
