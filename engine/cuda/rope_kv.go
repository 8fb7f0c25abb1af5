//go:build cuda

package cuda

import (
	"cmp"
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

// ropeKVParams mirrors Params of rope_kv.cu.
type ropeKVParams struct {
	QKV, KV, QNorm, KNorm, Rope, TokPos, TokSlot, PageTable, First ptr
	ToK, ToV                                                       float32
}

// ropeKVOp: norms and rotates q and k of the tokens of row first and the rows behind it, of tokens in all, and puts k and v into layer's pages.
// Where those tokens begin the device knows: a graph serves any number of decode rows before them.
func ropeKVOp(_ device, s shape, b *buffers, w layerWeights, layer, first, tokens int) op {
	p := ropeKVParams{QKV: b.QKV, KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), QNorm: w.QNorm, KNorm: w.KNorm, Rope: b.Rope, TokPos: b.TokPos,
		TokSlot: b.TokSlot, PageTable: b.PageTable, First: b.RowStart + ptr(4*first), ToK: 1 / w.KV.k(), ToV: 1 / w.KV.v()}
	n := int64(tokens - first) // at least: rows that are padding have no tokens
	return op{Name: "rope_kv", Unit: unit{File: "rope_kv.cu", Symbol: "rope_kv", Defines: fmt.Sprintf("KV_FP8=%d", s.kvFP8())}, Grid: [3]int{tokens, 1, 1}, Block: 256, PDL: true,
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

// draftKVOp: k, normed and rotated, and v of decode rows 0..rows-1 into layer's pages; q and k in place stay as they are.
func draftKVOp(d device, s shape, b *buffers, w layerWeights, layer, rows int) op {
	o := ropeKVOp(d, s, b, w, layer, 0, rows)
	o.Name, o.Bytes = "draft_kv", int64(rows)*2*int64(s.kvDim())*(bf16Bytes+s.kvBytes())
	o.Unit.Defines += " KV_ONLY=1"
	return o
}
