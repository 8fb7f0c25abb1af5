//go:build cuda

package cuda

import (
	"fmt"
	"math"
)

// attnDecodeParams mirrors Params of attn_decode.cu.
type attnDecodeParams struct {
	QKV, KV, Out, QNorm, KNorm, Rope, RowSlot, RowCtx, RowFrom, PageTable, Part, Arrived ptr
	Scale, ToK, ToV, OfV                                                                 float32
	PrefixSplits, _                                                                      int32
}

const (
	attnDecodeThreads = 128
	attnDecodeCTAs    = 3  // of an SM
	attnMaxSplits     = 32 // of one sequence; MAX_SPLITS of attn_decode.cu
	draftSplits       = 16 // of one sequence where rows may have drafts: one number for one row and for a row with all its drafts
)

// attnDecodeTile is the number of tokens of a warp's step: as many bytes of either cache.
func (s shape) attnDecodeTile() int { return 16 * (1 + s.kvFP8()) }

// attnSplits is the most pieces that one sequence's cache is cut into at a number of rows: enough to fill the device twice over
// would be too many partial results, one wave is just right.
func attnSplits(d device, s shape, rows int) int {
	if s.Deterministic {
		return 4 // whatever the rows
	}
	if s.MaxVerify > 0 && rows <= gemvRows {
		return draftSplits
	}
	return max(1, min(attnMaxSplits, attnDecodeCTAs*d.SMs/(rows*s.KVHeads)))
}

// attnScratchBytes is the room for attn_decode's counters and partial results, or gemm_sm90's sums of squares.
func attnScratchBytes(d device, s shape) int64 {
	return attnCounterBytes(s) + max(attnPartBytes(d, s), gemmSquaresBytes(d))
}

func attnCounterBytes(s shape) int64 { return int64(pad(bucketFor(s.MaxRows)*s.KVHeads*4, 256)) }

func attnPartBytes(d device, s shape) int64 {
	most := 0
	for rows := 1; rows <= bucketFor(s.MaxRows); rows++ {
		most = max(most, rows*max(attnSplits(d, s, rows), prefixPlaces(d, s, rows)))
	}
	return int64(most) * int64(s.Heads) * int64(s.Dim+4) * 4
}

// attnDecodeOp: one query token a row against its pages in layer i.
func attnDecodeOp(d device, s shape, b *buffers, w layerWeights, layer, rows int) op {
	p := attnDecodeParamsOf(s, b, w, layer)
	return op{Name: "attn_decode", Context: contextOfDecode, Unit: unit{File: "attn_decode.cu", Symbol: "attn_decode", Defines: fmt.Sprintf("CTAS=%d KV_FP8=%d TILE=%d", attnDecodeCTAs, s.kvFP8(), s.attnDecodeTile())}, Grid: [3]int{attnSplits(d, s, rows), s.KVHeads, rows},
		Block: attnDecodeThreads, PDL: true, Params: paramBytes(&p), Bytes: int64(rows) * int64(s.qkvDim()+s.qDim()) * bf16Bytes}
}

func attnDecodeParamsOf(s shape, b *buffers, w layerWeights, layer int) attnDecodeParams {
	return attnDecodeParams{QKV: b.QKV, KV: b.KV + ptr(int64(layer)*s.layerKVBytes()), Out: b.Att, QNorm: w.QNorm, KNorm: w.KNorm, Rope: b.Rope,
		RowSlot: b.RowSlot, RowCtx: b.RowCtx, RowFrom: b.RowFrom, PageTable: b.PageTable, Arrived: b.AttnScratch, Part: b.AttnScratch + ptr(attnCounterBytes(s)),
		Scale: attnScale(s) * w.KV.k(), ToK: 1 / w.KV.k(), ToV: 1 / w.KV.v(), OfV: w.KV.v()}
}

// attnScale brings scores to base 2: log2(e) / sqrt(head dimension).
func attnScale(s shape) float32 { return float32(math.Log2E / math.Sqrt(float64(s.Dim))) }
