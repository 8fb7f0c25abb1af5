//go:build cuda

package cuda

// ropeKVParams mirrors Params of rope_kv.cu.
type ropeKVParams struct {
	QKV, KV, QNorm, KNorm, Rope, TokPos, TokSlot, PageTable ptr
	First                                                   int32
	_                                                       int32
}

// ropeKVOp: norms and rotates q and k of tokens first..tokens-1, and puts k and v into layer's pages.
func ropeKVOp(_ device, s shape, b *buffers, w layerWeights, layer, first, tokens int) op {
	p := ropeKVParams{QKV: b.QKV, KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), QNorm: w.QNorm, KNorm: w.KNorm, Rope: b.Rope, TokPos: b.TokPos,
		TokSlot: b.TokSlot, PageTable: b.PageTable, First: int32(first)}
	n := int64(tokens - first)
	return op{Name: "rope_kv", Unit: unit{File: "rope_kv.cu", Symbol: "rope_kv"}, Grid: [3]int{tokens - first, 1, 1}, Block: 256, PDL: true,
		Params: paramBytes(&p), Bytes: n * int64(2*s.qkvDim()) * bf16Bytes}
}
