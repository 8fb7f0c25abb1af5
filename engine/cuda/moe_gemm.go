//go:build cuda

package cuda

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// Mixture layers of more than gemvRows tokens: pairs are sorted by expert and multiplied by moe_gemm_sm90.

// moeTopKParams mirrors Params of moe_topk.cu.
type moeTopKParams struct {
	Logits, TokSlot, TokPos, Expert, Weight, Pair ptr
	Tokens, Layer                                 int32
}

// moeTopKOp: experts and weights of m tokens, of their logits.
func moeTopKOp(s shape, b *buffers, l layerWeights, m int) op {
	p := moeTopKParams{Logits: b.MoE.Logits, TokSlot: b.TokSlot, TokPos: b.TokPos, Expert: b.MoE.Expert, Weight: b.MoE.Weight, Pair: b.MoE.Pair,
		Tokens: int32(m), Layer: int32(l.Layer)}
	return op{Name: "moe_topk", Unit: unit{"moe_topk.cu", "moe_topk", s.MoE.defines("")}, Grid: [3]int{ceilDiv(m, 8), 1, 1}, Block: 256, PDL: true,
		Params: paramBytes(&p), Bytes: int64(m) * int64(4*s.MoE.Experts+6*s.MoE.TopK)}
}

// moeSortParams mirrors Params of moe_sort.cu.
type moeSortParams struct {
	Expert, Pair, Count, First, XN, XP ptr
	Entries, _                         int32
}

// moeSortOp: numbers of m tokens' pairs; of few tokens also rows of xn by pair.
func moeSortOp(s shape, b *buffers, m int) op {
	p := moeSortParams{Expert: b.MoE.Expert, Pair: b.MoE.Pair, Count: b.MoE.Count, First: b.MoE.First, XN: b.XN, XP: b.MoE.X, Entries: int32(m * s.MoE.TopK)}
	o := op{Name: "moe_sort", Grid: [3]int{s.MoE.Experts, 1, 1}, Block: 512, PDL: true, Params: paramBytes(&p), Bytes: 6 * int64(m) * int64(s.MoE.TopK)}
	permute := 0
	if m <= moeSortTokens {
		permute = 1
		o.Bytes += int64(m) * int64(1+s.MoE.TopK) * int64(s.Hidden) * bf16Bytes
	}
	o.Unit = unit{"moe_sort.cu", "moe_sort", s.MoE.defines(" PERMUTE=%d", permute)}
	return o
}

// moePermuteParams mirrors Params of moe_permute.cu.
type moePermuteParams struct{ XN, Pair, XP ptr }

// moePermuteOp: rows of xn by pair.
func moePermuteOp(s shape, b *buffers, m int) op {
	p := moePermuteParams{XN: b.XN, Pair: b.MoE.Pair, XP: b.MoE.X}
	return op{Name: "moe_permute", Unit: unit{"moe_permute.cu", "moe_permute", s.MoE.defines("")}, Grid: [3]int{m, 1, 1}, Block: 128, PDL: true,
		Params: paramBytes(&p), Bytes: int64(m) * int64(1+s.MoE.TopK) * int64(s.Hidden) * bf16Bytes}
}

// moeCombineParams mirrors Params of moe_combine.cu.
type moeCombineParams struct{ Y, Pair, Weight, X ptr }

// moeCombineOp: x += weighted sums of the pairs' outputs.
func moeCombineOp(s shape, b *buffers, m int) op {
	p := moeCombineParams{Y: b.MoE.X, Pair: b.MoE.Pair, Weight: b.MoE.Weight, X: b.X}
	return op{Name: "moe_combine", Unit: unit{"moe_combine.cu", "moe_combine", s.MoE.defines("")}, Grid: [3]int{m, 1, 1}, Block: 256, PDL: true,
		Params: paramBytes(&p), Bytes: int64(m) * int64(2+s.MoE.TopK) * int64(s.Hidden) * bf16Bytes}
}

// moeGEMMThreads, moeGEMMStep and moeGEMMGrain are THREADS, STEP and GRAIN of moe_gemm_sm90.cu.
const (
	moeGEMMThreads = 384
	moeGEMMStep    = 64
	moeGEMMGrain   = 32
)

// moeStageBytes is the room for stages in an SM's shared memory.
const moeStageBytes = 208 << 10

// moeTile is how moe_gemm_sm90 cuts its products: rows of an expert's matrix and pairs at most.
type moeTile struct{ rows, tokens int }

func (t moeTile) String() string { return fmt.Sprintf("%dx%d", t.rows, t.tokens) }

// moeTile follows the pairs that an expert has on average: where they do not fit a tile a matrix is read several times, and what a tile has room
// for in vain is missing for more stages. In deterministic mode there is one.
func (s shape) moeTile(tokens int) moeTile {
	switch pairs := tokens * s.MoE.TopK; {
	case s.Deterministic || pairs > 48*s.MoE.Experts:
		return moeTile{256, 160}
	case pairs > 16*s.MoE.Experts:
		return moeTile{256, 64}
	}
	return moeTile{128, 32}
}

// moeGEMMParams mirrors Params of moe_gemm_sm90.cu.
type moeGEMMParams struct {
	W, X            driver.TensorMap
	Y, Count, First ptr
	_               [26]int32
}

// moeGEMM is y[pair] = end(x[pair] w of its expertᵀ) for m tokens' pairs.
type moeGEMM struct {
	name         string
	m, n, k      int
	gated, early bool
	w, x, y      ptr
	moeTile
}

func (g moeGEMM) op(d device, s shape, b *buffers) op {
	capacity := s.tokenRows() * s.MoE.TopK
	p := moeGEMMParams{W: tensorMap(g.w, s.MoE.Experts*g.n, g.k, g.rows), X: tensorMap(g.x, capacity, g.k, moeGEMMGrain), Y: g.y, Count: b.MoE.Count, First: b.MoE.First}
	stage := (g.rows + g.tokens) * moeGEMMStep * bf16Bytes
	stages := min(moeStageBytes/stage, 16)
	flag := map[bool]int{true: 1}
	outputs := g.n
	if g.gated {
		outputs /= 2
	}
	pairs := int64(g.m) * int64(s.MoE.TopK)
	return op{Name: g.name, Unit: unit{"moe_gemm_sm90.cu", "moe_gemm_sm90", s.MoE.defines(" EARLY=%d GATED=%d K=%d N=%d ROWS=%d STAGES=%d TOKENS=%d", flag[g.early], flag[g.gated],
		g.k, g.n, g.rows, stages, g.tokens)},
		Grid: [3]int{d.SMs, 1, 1}, Block: moeGEMMThreads, Smem: pad(stages*(stage+16)+4*(3*s.MoE.Experts+1), 1024), PDL: true, Params: paramBytes(&p),
		Bytes: int64(s.MoE.distinct(g.m)*float64(g.n)*float64(g.k)*bf16Bytes) + pairs*int64(g.k+outputs)*bf16Bytes, FLOPs: 2 * pairs * int64(g.n) * int64(g.k)}
}

// moeGEMMGateUpOp: act = silu(gate) * up of each pair.
func moeGEMMGateUpOp(d device, s shape, b *buffers, l layerWeights, m int, t moeTile) op {
	return moeGEMM{name: "moe_gemm_gate_up", m: m, n: 2 * s.MoE.Inter, k: s.Hidden, gated: true, w: l.WGU.Data, x: b.MoE.X, y: b.Act, moeTile: t}.op(d, s, b)
}

// moeGEMMDownOp: each pair's output, where its input was.
func moeGEMMDownOp(d device, s shape, b *buffers, l layerWeights, m int, t moeTile) op {
	return moeGEMM{name: "moe_gemm_down", m: m, n: s.Hidden, k: s.MoE.Inter, early: true, w: l.WDown.Data, x: b.Act, y: b.MoE.X, moeTile: t}.op(d, s, b)
}
