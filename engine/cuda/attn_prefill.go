//go:build cuda

package cuda

// attnPrefillParams mirrors Params of attn_prefill.cu.
type attnPrefillParams struct {
	QKV, KV, Out, RowSlot, RowPos, RowLen, RowStart, PageTable ptr
	Scale                                                      float32
	FirstRow                                                   int32
}

const (
	attnPrefillThreads = 256
	attnPrefillTile    = 128 // query tokens of a CTA
	attnPrefillKeys    = 64  // key tokens of a tile
)

// attnPrefillOp: the chunks of rows decode..rows-1, the longest of longest tokens, against their pages in layer i.
func attnPrefillOp(_ device, s shape, b *buffers, layer, decode, rows, longest int) op {
	p := attnPrefillParams{QKV: b.QKV, KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), Out: b.Att, RowSlot: b.RowSlot, RowPos: b.RowPos, RowLen: b.RowLen,
		RowStart: b.RowStart, PageTable: b.PageTable, Scale: attnScale(s), FirstRow: int32(decode)}
	return op{Name: "attn_prefill", Unit: unit{File: "attn_prefill.cu", Symbol: "attn_prefill"},
		Grid: [3]int{s.Heads, ceilDiv(longest, attnPrefillTile), rows - decode}, Block: attnPrefillThreads,
		Smem: 2 * 2 * attnPrefillKeys * (s.Dim + 8) * bf16Bytes, PDL: true, Params: paramBytes(&p)}
}
