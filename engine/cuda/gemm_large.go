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
	// Rows of a tile whose K is split: fewer would read x too often, more do not fit the registers.
	leastSplitRows, mostSplitRows = 96, 208
)

// largeRows are the tiles' rows of W: few, as each is a compilation.
var largeRows = []int{256, 224, 192, 128}

// largePays tells for which products it beats cuBLASLt (docs/perf-log.md).
func (l linear) largePays() bool { return l.end == epilogueSwiGLU && l.m > 192 }

// largeParams mirrors Params of gemm_large_sm90.cu.
type largeParams struct {
	W, X                                           driver.TensorMap
	Bias, Y, Logits, Gamma, Scaled, Squares, RMSOf ptr
	Tokens, Parts                                  int32
	_                                              [16]int32
}

// largeTile is how gemm_large_sm90 cuts a product: rows of W of a CTA; pairs of CTAs in a cluster that split K, or rows (wide); and the lead of a CTA's
// first warpgroup.
type largeTile struct{ rows, split, wide, lead int }

// stages is as many as fit.
func (t largeTile) stages() int { return min(gemmStageBytes/t.stageBytes(), 8) }

func (t largeTile) stageBytes() int { return (largeTokens/2 + t.rows) * gemmStep * bf16Bytes }

// fitsLarge tells whether gemm_large_sm90 can take the product.
func (l linear) fitsLarge(d device) bool {
	return d.SM == 90 && l.n%8 == 0 && l.k%8 == 0 && l.end != epilogueHeadFast
}

// tiles is the number of tiles of a product, each of which a cluster makes.
func (t largeTile) tiles(l linear) int {
	return ceilDiv(l.n, t.rows*t.wide) * ceilDiv(l.m, largeTokens)
}

// cluster is the number of a cluster's CTAs.
func (t largeTile) cluster() int { return 2 * t.split * t.wide }

// ctas is the grid: clusters take tiles one by one, but for those that split K, which have one.
func (t largeTile) ctas(l linear, d device) int {
	if t.split > 1 {
		return t.tiles(l) * t.cluster()
	}
	return min(gemmCTAs(d, t.cluster())/t.cluster(), t.tiles(l)) * t.cluster()
}

// cost estimates the product's time in nanoseconds on an H100: the tiles that a cluster makes one behind the other, each as long as its products
// take, or as it takes to bring x and W from L2. The last round leaves clusters idle.
func (t largeTile) cost(l linear, d device) float64 {
	const row, l2, exchange, boundary = 2.7, 50, 40, 1000 // ns for a row of W, of 128 tokens and 64 columns; bytes/ns from L2 to an SM, and between SMs; ns
	step := max(row*float64(t.rows), float64(largeTokens/2*gemmStep*bf16Bytes+t.rows/2*gemmStep*bf16Bytes)/l2)
	steps := ceilDiv(l.k, gemmStep)
	if t.split > 1 {
		return float64(ceilDiv(steps, t.split))*step + float64(t.rows/t.split*512)/exchange + boundary
	}
	return float64(ceilDiv(t.tiles(l), d.SMs/2)*steps) * step
}

// largeTiles lists the tiles that the product may be cut into, widest first.
func (l linear) largeTiles(d device) []largeTile {
	tiles := make([]largeTile, len(largeRows))
	for i, rows := range largeRows {
		tiles[i] = largeTile{rows, 1, 1, largeLead}
	}
	// So many rows that every cluster of four has one tile.
	block := 16
	if l.end == epilogueSwiGLU {
		block = 32
	}
	clusters := max(1, gemmCTAs(d, 4)/4/ceilDiv(l.m, largeTokens)) // for the same tokens
	rows := max(leastSplitRows, pad(ceilDiv(l.n, clusters), block))
	if rows <= mostSplitRows && l.k > 2*gemmStep {
		tiles = append(tiles, largeTile{rows, 2, 1, 0})
	}
	return tiles
}

// largeTile is the tile of least cost, the widest of equals.
func (l linear) largeTile(d device) largeTile {
	return slices.MinFunc(l.largeTiles(d), func(a, b largeTile) int { return cmp.Compare(a.cost(l, d), b.cost(l, d)) })
}

// largeCall is one launch of gemm_large_sm90.
type largeCall struct {
	linear
	tile   largeTile
	device device
	gamma  ptr // where norm is set
	params largeParams
}

// callLarge is the product of x, normed already, on gemm_large_sm90. x has room for whole tiles of tokens: a copy that is cut at the end of the matrix
// takes a third longer (docs/perf-log.md).
func (l linear) callLarge(d device, t largeTile, w, x ptr, p largeParams) *largeCall {
	p.W, p.X, p.Tokens = tensorMap(w, l.n, l.k, t.rows/2), tensorMap(x, pad(l.m, largeTokens), l.k, largeTokens/2/t.wide), int32(l.m)
	return &largeCall{linear: l, tile: t, device: d, params: p}
}

func (c *largeCall) norms(next call, scaled, squares ptr) bool {
	n, ok := next.(*largeCall)
	if !ok || c.end != epilogueResidual || !n.end.takesNorm() {
		return false
	}
	c.params.Gamma, c.params.Scaled, c.params.Squares = n.gamma, scaled, squares
	n.params.RMSOf, n.params.Parts = squares, int32(ceilDiv(c.n, c.tile.rows/c.tile.split))
	return true
}

// largeSquaresBytes is the room for squares between two products, where gemm_sm90's are: for each token a sum of as few rows as are finished
// together.
func largeSquaresBytes(s shape) int64 {
	return int64(2*ceilDiv(s.Hidden, leastSplitRows)*s.tokenRows()) * 4
}

func (c *largeCall) op() op {
	l, t := c.linear, c.tile
	return op{Name: l.name, PDL: true, Params: paramBytes(&c.params), Grid: [3]int{t.ctas(l, c.device), 1, 1}, Block: 384, Cluster: t.cluster(),
		Smem: t.stages()*t.stageBytes() + 1024,
		Unit: unit{"gemm_large_sm90.cu", "gemm_large_sm90", fmt.Sprintf("EPILOGUE=%d K=%d LEAD=%d M=%d N=%d NORM=0 ROWS=%d SPLIT=%d STAGES=%d WIDE=%d", l.end, l.k, t.lead, largeTokens, l.n, t.rows,
			t.split, t.stages(), t.wide)},
		Bytes: int64(l.n)*int64(l.k)*bf16Bytes + int64(l.m)*int64(l.k+l.outputs())*bf16Bytes, FLOPs: 2 * int64(l.m) * int64(l.n) * int64(l.k)}
}
