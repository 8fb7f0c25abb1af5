//go:build cuda

package cuda

import (
	"cmp"
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

// ropeKVParams mirrors Params of rope_kv.cu.
type ropeKVParams struct {
	QKV, KV, QNorm, KNorm, Rope, TokPos, TokSlot, PageTable ptr
	First                                                   int32
	ToK, ToV                                                float32
	_                                                       int32
}

// ropeKVOp: norms and rotates q and k of tokens first..tokens-1, and puts k and v into layer's pages.
func ropeKVOp(_ device, s shape, b *buffers, w layerWeights, layer, first, tokens int) op {
	p := ropeKVParams{QKV: b.QKV, KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), QNorm: w.QNorm, KNorm: w.KNorm, Rope: b.Rope, TokPos: b.TokPos,
		TokSlot: b.TokSlot, PageTable: b.PageTable, First: int32(first), ToK: 1 / w.KV.k(), ToV: 1 / w.KV.v()}
	n := int64(tokens - first)
	return op{Name: "rope_kv", Unit: unit{File: "rope_kv.cu", Symbol: "rope_kv", Defines: fmt.Sprintf("KV_FP8=%d", s.kvFP8())}, Grid: [3]int{tokens - first, 1, 1}, Block: 256, PDL: true,
		Params: paramBytes(&p), Bytes: n * (int64(s.qkvDim()+s.qDim())*bf16Bytes + 2*int64(s.kvDim())*s.kvBytes())}
}

// kvFP8 is the option value of an e4m3 KV cache.
const kvFP8 = "fp8_e4m3"

// kvScale is what a layer's K and V are divided by before they are rounded to e4m3; 0: 1, which suits most models.
type kvScale struct{ K, V float32 }

// cacheScales are the scales that a checkpoint gives layer.
func cacheScales(w *weights.Store, layer int) (s kvScale) {
	for part, to := range map[string]*float32{"k": &s.K, "v": &s.V} {
		if t, ok := w.Tensor(fmt.Sprintf("model.layers.%d.self_attn.%s_proj.weight", layer, part)); ok {
			*to = t.CacheScale
		}
	}
	return s
}

func (s kvScale) k() float32 { return cmp.Or(s.K, 1) }
func (s kvScale) v() float32 { return cmp.Or(s.V, 1) }

// draftKVOp: k, normed and rotated, and v of tokens 0..rows-1 into layer's pages; q and k in place stay as they are.
func draftKVOp(d device, s shape, b *buffers, w layerWeights, layer, rows int) op {
	o := ropeKVOp(d, s, b, w, layer, 0, rows)
	o.Name, o.Bytes = "draft_kv", int64(rows)*2*int64(s.kvDim())*(bf16Bytes+s.kvBytes())
	o.Unit.Defines += " KV_ONLY=1"
	return o
}
