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
	Q, KV                                                    driver.TensorMap
	Out, RowSlot, RowPos, RowLen, RowStart, PageTable, Pages ptr
	Scale, OfV                                               float32
	FirstRow, Rows, QTiles                                   int32
	_                                                        [13]int32
}

const (
	attnPrefillThreads = 256
	attnPrefillTile    = 128 // query tokens of a CTA
	attnPrefillKeys    = 64  // key tokens of a tile
)

// attnPrefillOp: the chunks of rows decode..rows-1, the longest of longest tokens, against their pages in layer i.
func attnPrefillOp(d device, s shape, b *buffers, w layerWeights, layer, decode, rows, longest int) op {
	if d.SM == 90 && (s.Dim == 64 || s.Dim == 128) {
		return attnPrefill90Op(d, s, b, w, layer, decode, rows, longest)
	}
	p := attnPrefillParams{QKV: b.QKV, KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), Out: b.Att, RowSlot: b.RowSlot, RowPos: b.RowPos, RowLen: b.RowLen,
		RowStart: b.RowStart, PageTable: b.PageTable, Scale: attnScale(s) * w.KV.k(), OfV: w.KV.v(), FirstRow: int32(decode)}
	return op{Name: "attn_prefill", Context: contextOfPrefill, Unit: unit{File: "attn_prefill.cu", Symbol: "attn_prefill", Defines: fmt.Sprintf("KV_FP8=%d", s.kvFP8())},
		Grid: [3]int{s.Heads, ceilDiv(longest, attnPrefillTile), rows - decode}, Block: attnPrefillThreads,
		Smem: 2 * 2 * attnPrefillKeys * (s.Dim + 8) * bf16Bytes, PDL: true, Params: paramBytes(&p)}
}

// attnPrefill90Op is attnPrefillOp on the warpgroup matrix units.
func attnPrefill90Op(d device, s shape, b *buffers, w layerWeights, layer, decode, rows, longest int) op {
	const keys, ring = 128, 4 // tokens of a tile; tiles of an e4m3 cache on their way
	p := attnPrefill90Params{Q: tensorMap(b.QKV, s.tokenRows(), s.qkvDim(), 64), Out: b.Att, RowSlot: b.RowSlot, RowPos: b.RowPos, RowLen: b.RowLen,
		RowStart: b.RowStart, PageTable: b.PageTable, Scale: attnScale(s) * w.KV.k(), OfV: w.KV.v(), FirstRow: int32(decode), Rows: int32(rows - decode),
		QTiles: int32(ceilDiv(longest, attnPrefillTile))}
	ctas := min(d.SMs, s.Heads*int(p.Rows*p.QTiles))
	smem := attnPrefillTile*s.Dim*bf16Bytes + 4*keys*s.Dim*bf16Bytes + 1024
	if s.KVFP8 {
		p.Pages = b.KV + ptr(int64(layer)*s.layerKVBytes())
		smem += ring * keys * s.Dim
	} else if b.KV != 0 {
		p.KV = tensorMap(b.KV+ptr(int64(layer)*s.layerKVBytes()), s.NumPages*2*s.KVHeads*s.Page, s.Dim, s.Page)
	}
	return op{Name: "attn_prefill", Context: contextOfPrefill, Unit: unit{File: "attn_prefill_sm90.cu", Symbol: "attn_prefill_sm90", Defines: fmt.Sprintf("KV_FP8=%d", s.kvFP8())},
		Grid: [3]int{ctas, 1, 1}, Block: 384,
		Smem: smem, PDL: true, Params: paramBytes(&p)}
}
