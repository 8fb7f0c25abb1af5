//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// gemm_swiglu_sm90: gate_up of many tokens with SwiGLU in its epilogue, on the warpgroup matrix units of sm_90a.

const (
	swigluPays   = 193 // the fewest tokens for which it beats cuBLASLt with silu_mul behind it: docs/perf-log.md
	swigluTokens = 256 // of a tile, which a cluster of two CTAs makes
	swigluLead   = 3   // stages that the first warpgroup of a CTA is ahead at the end of a tile
)

// swigluRows are the rows of W of a tile: few choices, as each is a compilation.
var swigluRows = []int{256, 224, 192}

// swigluParams mirrors Params of gemm_swiglu_sm90.cu.
type swigluParams struct {
	W, X   driver.TensorMap
	Y      ptr
	Tokens int32
	_      [29]int32
}

// fitsSwiGLU tells whether gemm_swiglu_sm90 can take the product.
func (l linear) fitsSwiGLU(d device) bool {
	return d.SM == 90 && l.end == epilogueSwiGLU && l.n%16 == 0 && l.k%8 == 0
}

// swigluTiles is the number of tiles of so many rows.
func (l linear) swigluTiles(rows int) int { return ceilDiv(l.n, rows) * ceilDiv(l.m, swigluTokens) }

// swigluCost estimates the product's time in nanoseconds on an H200: the tiles that a cluster makes one behind the other, each as long as its products
// take, or as it takes to bring x and W from L2. The last round leaves clusters idle.
func (l linear) swigluCost(d device, rows int) float64 {
	const row, l2 = 2.7, 50 // ns for a row of W, of 128 tokens and 64 columns; bytes/ns of an SM
	step := max(row*float64(rows), float64((swigluTokens/2+rows/2)*gemmStep*bf16Bytes)/l2)
	return float64(ceilDiv(l.swigluTiles(rows), d.SMs/2)*ceilDiv(l.k, gemmStep)) * step
}

// swigluTile is the rows of a tile that cost least, the most of equals.
func (l linear) swigluTile(d device) int {
	return slices.MinFunc(swigluRows, func(a, b int) int { return cmp.Compare(l.swigluCost(d, a), l.swigluCost(d, b)) })
}

// swigluOp is y = SwiGLU(x wᵀ) in tiles of so many rows, x normed already. x has room for whole tiles of tokens: a tensor copy that is cut at the end of
// the matrix is slow.
func (l linear) swigluOp(d device, rows int, w, x, y ptr) op {
	const threads, barriers = 384, 1024
	stageBytes := (swigluTokens/2 + rows) * gemmStep * bf16Bytes
	stages := gemmStageBytes / stageBytes
	p := swigluParams{W: tensorMap(w, l.n, l.k, rows/2), X: tensorMap(x, pad(l.m, swigluTokens), l.k, swigluTokens/2), Y: y, Tokens: int32(l.m)}
	return op{Name: "gemm_" + l.name, PDL: true, Params: paramBytes(&p), Grid: [3]int{2 * min(d.SMs/2, l.swigluTiles(rows)), 1, 1}, Block: threads, Cluster: 2, Smem: stages*stageBytes + barriers,
		Unit:  unit{"gemm_swiglu_sm90.cu", "gemm_swiglu_sm90", fmt.Sprintf("EPILOGUE=%d K=%d LEAD=%d M=%d N=%d NORM=0 ROWS=%d STAGES=%d", l.end, l.k, swigluLead, swigluTokens, l.n, rows, stages)},
		Bytes: int64(l.n)*int64(l.k)*bf16Bytes + int64(l.m)*int64(l.k+l.outputs())*bf16Bytes, FLOPs: 2 * int64(l.m) * int64(l.n) * int64(l.k)}
}

// ownSwiGLU tells whether gemm_swiglu_sm90 takes the product.
func (p *planner) ownSwiGLU(l linear) bool {
	return l.m >= swigluPays && l.fitsSwiGLU(p.device) && !p.blasOnly && !p.shape.Deterministic
}
