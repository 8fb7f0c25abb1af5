//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// w4_gemm_sm90: products with weights of four bits on the warpgroup matrix units of sm_90a.

const w4GEMM90Tokens = 64 // the most tokens it takes

// w4GEMM90Params mirrors Params of w4_gemm_sm90.cu.
type w4GEMM90Params struct {
	W, Scale                                  driver.TensorMap
	X, Bias, Y, Gamma, Scaled, Squares, RMSOf ptr
	Tokens, Parts                             int32
	_                                         [16]int32
}

// w4GEMM90Tile is how w4_gemm_sm90 cuts a product: warpgroups of a CTA, 64 rows of W each; CTAs that share a tile's K (a cluster); stages.
type w4GEMM90Tile struct{ groups, split, tokens, stages int }

func (t w4GEMM90Tile) rows() int { return 64 * t.groups }

// stageBytes is sizeof(Stage): x, W and its scales of 128 columns.
func (t w4GEMM90Tile) stageBytes() int {
	return pad(t.tokens*w4Step*bf16Bytes+t.rows()*(w4Step/2+4), 1024)
}

// ctas is the grid. A cluster has one tile; without clusters a CTA has as many as it takes.
func (t w4GEMM90Tile) ctas(l linear, d device) int {
	if t.split == 1 {
		return min(d.SMs, ceilDiv(l.n, t.rows()))
	}
	return ceilDiv(l.n, t.rows()) * t.split
}

// w4GEMM90Tiles lists every tile that the product may be cut into: none where the kernel does not take it.
func (l linear) w4GEMM90Tiles(d device, group int) []w4GEMM90Tile {
	if d.SM != 90 || l.m > w4GEMM90Tokens || w4Scales(l.k, group) != 1 {
		return nil
	}
	t, most := w4GEMM90Tile{tokens: 32}, 4
	if l.m > t.tokens {
		t.tokens, most = 64, 3 // registers
	}
	var tiles []w4GEMM90Tile
	for _, t.split = range []int{1, 2, 4} {
		for t.groups = 1; t.groups <= most; t.groups++ {
			t.stages = min(gemmStageBytes/t.stageBytes(), 16)
			if t.split == 1 || t.ctas(l, d) <= gemmCTAs(d, t.split) && ceilDiv(l.k, w4Step) >= t.split {
				tiles = append(tiles, t)
			}
		}
	}
	return tiles
}

// cost estimates the product's time in nanoseconds on an H200 (docs/perf-log.md): what a CTA brings from memory and from L2, unless a step's own latency or
// the memory of all takes longer.
func (t w4GEMM90Tile) cost(l linear, d device) float64 {
	const memory, own, l2, exchange, latency, meet = 4500, 40, 100, 25, 200, 1000 // bytes/ns: the device's, an SM's share at most, L2 into an SM, between SMs; ns
	rounds := 1
	if t.split == 1 {
		rounds = ceilDiv(ceilDiv(l.n, t.rows()), d.SMs)
	}
	w, x := float64(t.rows()*(w4Step/2+4)), float64(t.tokens*w4Step*bf16Bytes) // of all tokens: the tile, and with it the order of sums, is the same for fewer
	cta := float64(ceilDiv(ceilDiv(l.k, w4Step), t.split)*rounds) * max(w/own, (w+x)/l2, latency)
	all := float64(int4Bytes(l.n, l.k, w4Step)) / memory
	tail := 0.
	if t.split > 1 {
		tail = meet + float64(t.rows()*t.tokens*4)/exchange
	}
	return max(cta, all) + cta/20 + tail
}

// w4GEMM90Tile is the tile of least cost. ok is false where w4_gemm_sm90 does not take the product.
func (l linear) w4GEMM90Tile(d device, group int) (t w4GEMM90Tile, ok bool) {
	tiles := l.w4GEMM90Tiles(d, group)
	if len(tiles) == 0 {
		return t, false
	}
	return slices.MinFunc(tiles, func(a, b w4GEMM90Tile) int { return cmp.Compare(a.cost(l, d), b.cost(l, d)) }), true
}

// w4GEMM90Call is one launch of w4_gemm_sm90: x is normed already.
type w4GEMM90Call struct {
	product
	tile   w4GEMM90Tile
	device device
	params w4GEMM90Params
}

func (g product) w4GEMM90Call(d device, t w4GEMM90Tile) *w4GEMM90Call {
	p := w4GEMM90Params{X: g.x, Bias: g.bias, Y: g.y, Tokens: int32(g.m)}
	// A row of the maps is a block of eight of W, a box a step of such blocks.
	p.W = w4Map(g.w.Data, g.n/w4Rows, pad(g.k, w4Step)*w4Rows/8, t.rows()/w4Rows, w4Step*w4Rows/8)
	p.Scale = w4Map(g.w.Scales, g.n/w4Rows, g.k/g.w.Group*w4Rows, t.rows()/w4Rows, w4Rows)
	return &w4GEMM90Call{product: g, tile: t, device: d, params: p}
}

// w4Map describes words to the tensor copies. A plan made without memory, for its list of kernels, has none.
func w4Map(p ptr, rows, cols, boxRows, boxCols int) (m driver.TensorMap) {
	if p == 0 {
		return m
	}
	m, err := driver.TensorMapWords(p, rows, cols, boxRows, boxCols)
	if err != nil {
		panic(fmt.Sprintf("tensor map of %d x %d words: %v", rows, cols, err)) // sizes and alignment are the arena's own
	}
	return m
}

func (c *w4GEMM90Call) norms(next call, scaled, squares ptr) bool {
	n, ok := next.(*w4GEMM90Call)
	if !ok || c.end != epilogueResidual || !n.end.takesNorm() {
		return false
	}
	c.params.Gamma, c.params.Scaled, c.params.Squares = n.gamma, scaled, squares
	n.params.RMSOf, n.params.Parts = squares, int32(c.tile.ctas(c.linear, c.device))
	return true
}

func (c *w4GEMM90Call) op() op {
	t, cluster, scales := c.tile, 0, 0
	if t.split > 1 {
		cluster = t.split
	}
	if c.params.Parts > 0 {
		scales = 1
	}
	return op{Name: "w4_" + c.name, PDL: true, Params: paramBytes(&c.params), Grid: [3]int{t.ctas(c.linear, c.device), 1, 1}, Block: 128*t.groups + 128, Cluster: cluster,
		Smem: pad(t.stages*(t.stageBytes()+16)+4*(128*t.groups+t.tokens), 1024),
		Unit: unit{"w4_gemm_sm90.cu", "w4_gemm_sm90", fmt.Sprintf("EPILOGUE=%d GROUP=%d GROUPS=%d K=%d M=%d N=%d NORM=0 SCALES=%d SPLIT=%d STAGES=%d TOKENS=%d",
			c.end, c.w.Group, t.groups, c.k, t.tokens, c.n, scales, t.split, t.stages, t.tokens)},
		Bytes: int4Bytes(c.n, c.k, c.w.Group) + int64(c.m)*int64(c.k+c.outputs())*bf16Bytes, FLOPs: 2 * int64(c.m) * int64(c.n) * int64(c.k)}
}
