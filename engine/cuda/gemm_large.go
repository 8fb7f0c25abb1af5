//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// gemm_large_sm90: the products of more tokens than gemm_sm90 takes, on the warpgroup matrix units of sm_90a.

const (
	largeTokens = 256 // of a cluster's tile
	largeLead   = 3   // stages that the first warpgroup of a CTA is ahead at the end of a tile
)

// largeRows are the tiles' rows of W: few, as each is a compilation.
var largeRows = []int{256, 224, 192, 128}

// largeParams mirrors Params of gemm_large_sm90.cu.
type largeParams struct {
	W, X                                   driver.TensorMap
	Bias, Y, Gamma, Scaled, Squares, RMSOf ptr
	Tokens, Parts                          int32
	_                                      [18]int32
}

// largeTile is how gemm_large_sm90 cuts a product: rows of W of a tile, and the lead of a CTA's first warpgroup.
type largeTile struct{ rows, lead int }

// stages is as many as fit.
func (t largeTile) stages() int { return min(gemmStageBytes/t.stageBytes(), 8) }

func (t largeTile) stageBytes() int { return (largeTokens/2 + t.rows) * gemmStep * bf16Bytes }

// fitsLarge tells whether gemm_large_sm90 can take the product.
func (l linear) fitsLarge(d device) bool {
	return d.SM == 90 && l.n%8 == 0 && l.k%8 == 0 && l.end <= epilogueSwiGLU
}

// tiles is the number of tiles of a product, each of which a cluster makes.
func (t largeTile) tiles(l linear) int { return ceilDiv(l.n, t.rows) * ceilDiv(l.m, largeTokens) }

// cost estimates the product's time in nanoseconds on an H100: the tiles that a cluster makes one behind the other, each as long as its products
// take, or as it takes to bring x and W from L2. The last round leaves clusters idle.
func (t largeTile) cost(l linear, d device) float64 {
	const row, l2 = 2.7, 50 // ns for a row of W, of 128 tokens and 64 columns; bytes/ns of an SM
	step := max(row*float64(t.rows), float64(largeTokens/2*gemmStep*bf16Bytes+t.rows/2*gemmStep*bf16Bytes)/l2)
	return float64(ceilDiv(t.tiles(l), d.SMs/2)*ceilDiv(l.k, gemmStep)) * step
}

// largeTile is the tile of least cost, the widest of equals.
func (l linear) largeTile(d device) largeTile {
	tiles := make([]largeTile, len(largeRows))
	for i, rows := range largeRows {
		tiles[i] = largeTile{rows, largeLead}
	}
	return slices.MinFunc(tiles, func(a, b largeTile) int { return cmp.Compare(a.cost(l, d), b.cost(l, d)) })
}

// largeCall is one launch of gemm_large_sm90.
type largeCall struct {
	linear
	tile   largeTile
	device device
	gamma  ptr // where norm is set
	params largeParams
}

// callLarge is the product of x, normed already, on gemm_large_sm90.
func (l linear) callLarge(d device, t largeTile, w, x ptr, p largeParams) *largeCall {
	p.W, p.X, p.Tokens = tensorMap(w, l.n, l.k, t.rows/2), tensorMap(x, l.m, l.k, largeTokens/2), int32(l.m)
	return &largeCall{linear: l, tile: t, device: d, params: p}
}

func (c *largeCall) norms(next call, scaled, squares ptr) bool {
	n, ok := next.(*largeCall)
	if !ok || c.end != epilogueResidual || !n.end.takesNorm() {
		return false
	}
	c.params.Gamma, c.params.Scaled, c.params.Squares = n.gamma, scaled, squares
	n.params.RMSOf, n.params.Parts = squares, int32(ceilDiv(c.n, c.tile.rows))
	return true
}

// largeSquaresBytes is the room for squares between two products, where gemm_sm90's are.
func largeSquaresBytes(s shape) int64 {
	return int64(ceilDiv(s.Hidden, largeRows[len(largeRows)-1])*s.tokenRows()) * 4
}

func (c *largeCall) op() op {
	l, t := c.linear, c.tile
	return op{Name: l.name, PDL: true, Params: paramBytes(&c.params), Grid: [3]int{2 * min(c.device.SMs/2, t.tiles(l)), 1, 1}, Block: 384, Cluster: 2,
		Smem: t.stages()*t.stageBytes() + 1024,
		Unit: unit{"gemm_large_sm90.cu", "gemm_large_sm90", fmt.Sprintf("EPILOGUE=%d K=%d LEAD=%d M=%d N=%d NORM=0 ROWS=%d STAGES=%d", l.end, l.k, t.lead, largeTokens, l.n, t.rows,
			t.stages())},
		Bytes: int64(l.n)*int64(l.k)*bf16Bytes + int64(l.m)*int64(l.k+l.outputs())*bf16Bytes, FLOPs: 2 * int64(l.m) * int64(l.n) * int64(l.k)}
}
