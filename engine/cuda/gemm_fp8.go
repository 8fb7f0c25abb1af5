//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// gemm_fp8_sm90: the products of 17 to 64 tokens with weights of e4m3 on the warpgroup matrix units of sm_90a.

const (
	gemmFP8Pays = 64  // the most tokens it takes
	gemmFP8Step = 128 // columns of a stage
)

// gemmFP8Params mirrors Params of gemm_fp8_sm90.cu.
type gemmFP8Params struct {
	W, X                                             driver.TensorMap
	RowScale, Bias, Y, Gamma, Scaled, Squares, RMSOf ptr
	Tokens, Parts                                    int32
	_                                                [16]int32
}

// fp8Tile is how gemm_fp8_sm90 cuts a product: warpgroups of a CTA, 64 rows of W each; CTAs that share a tile's K (a cluster); stages.
type fp8Tile struct{ groups, split, tokens, stages int }

func (t fp8Tile) rows() int       { return 64 * t.groups }
func (t fp8Tile) stageBytes() int { return t.rows()*gemmFP8Step + t.tokens*gemmFP8Step*bf16Bytes }

// ctas is the grid. A cluster has one tile; without clusters a CTA has as many as it takes.
func (t fp8Tile) ctas(l linear, d device) int {
	if t.split == 1 {
		return min(d.SMs, ceilDiv(l.n, t.rows()))
	}
	return ceilDiv(l.n, t.rows()) * t.split
}

// fp8Tiles lists every tile that the product may be cut into.
func (l linear) fp8Tiles(d device) []fp8Tile {
	t := fp8Tile{tokens: 32}
	if l.m > t.tokens {
		t.tokens = 64
	}
	var tiles []fp8Tile
	for _, t.split = range []int{1, 2, 4} {
		for t.groups = 1; t.groups <= 4; t.groups++ {
			t.stages = min(gemmStageBytes/t.stageBytes(), 16)
			if t.split == 1 || t.ctas(l, d) <= gemmCTAs(d, t.split) && ceilDiv(l.k, gemmFP8Step) >= t.split {
				tiles = append(tiles, t)
			}
		}
	}
	return tiles
}

// cost estimates the product's time in nanoseconds on an H100, as gemmTile's does.
func (t fp8Tile) cost(l linear, d device) float64 {
	const memory, l2, exchange = 3100, 40, 40 // bytes/ns: the device's, an SM's, between SMs
	rounds := 1
	if t.split == 1 {
		rounds = ceilDiv(ceilDiv(l.n, t.rows()), d.SMs)
	}
	cta := float64(ceilDiv(ceilDiv(l.k, gemmFP8Step), t.split)*rounds*t.stageBytes()) / l2
	all := float64(l.n*l.k) / memory
	tail := 0.
	if t.split > 1 {
		tail = 1000 + float64(t.rows()*t.tokens*4)/exchange
	}
	return max(cta, all) + cta/20 + tail
}

// fp8Tile is the tile of least cost.
func (l linear) fp8Tile(d device) fp8Tile {
	return slices.MinFunc(l.fp8Tiles(d), func(a, b fp8Tile) int { return cmp.Compare(a.cost(l, d), b.cost(l, d)) })
}

// fp8Call is one launch of gemm_fp8_sm90.
type fp8Call struct {
	linear
	tile   fp8Tile
	w      weight
	x      ptr // normed already, or, with params.RMSOf, times gamma
	gamma  ptr // where norm is set
	params gemmFP8Params
}

func (c *fp8Call) op(d device) op { return c.linear.fp8Op(d, c.tile, c.w, c.x, c.params) }

// norms takes the RMSNorm between c, whose outputs it is of, and next into both: next's x is c's outputs times gamma, in scaled.
func (c *fp8Call) norms(d device, next *fp8Call, scaled, squares ptr) {
	c.params.Gamma, c.params.Scaled, c.params.Squares = next.gamma, scaled, squares
	next.params.RMSOf, next.params.Parts = squares, int32(c.tile.ctas(c.linear, d))
}

// linkFP8 makes kernels of the calls of gemm_fp8_sm90; a norm between two of them is no kernel. Squares lie where gemm_sm90's do.
func (p *planner) linkFP8(nodes []node) []node {
	out := make([]node, 0, len(nodes))
	for i := 0; i < len(nodes); i++ {
		out = append(out, nodes[i])
		if i+2 >= len(nodes) || nodes[i+1].op == nil || nodes[i+1].op.Name != "rmsnorm" {
			continue
		}
		if c, after := nodes[i].fp8, nodes[i+2].fp8; c != nil && after != nil && c.end == epilogueResidual {
			c.norms(p.device, after, p.buffers.XN, p.buffers.AttnScratch+ptr(attnCounterBytes(p.shape)))
			i++
		}
	}
	for i := range out {
		if c := out[i].fp8; c != nil {
			o := c.op(p.device)
			out[i].op = &o
		}
	}
	return out
}

// fp8Op is the product of x with w.
func (l linear) fp8Op(d device, t fp8Tile, w weight, x ptr, p gemmFP8Params) op {
	if w.Data != 0 {
		m, err := driver.TensorMapBytes(w.Data, l.n, l.k, t.rows(), gemmFP8Step)
		if err != nil {
			panic(fmt.Sprintf("tensor map of %d x %d: %v", l.n, l.k, err)) // sizes and alignment are the arena's own
		}
		p.W = m
	}
	scales := 0
	if p.Parts > 0 {
		scales = 1
	}
	p.X, p.RowScale, p.Tokens = tensorMap(x, l.m, l.k, t.tokens), w.Scales, int32(l.m)
	cluster := 0
	if t.split > 1 {
		cluster = t.split
	}
	return op{Name: l.name, PDL: true, Params: paramBytes(&p), Grid: [3]int{t.ctas(l, d), 1, 1}, Block: 128*t.groups + 32, Smem: pad(t.stages*(t.stageBytes()+16)+4*(128*t.groups+t.tokens), 1024), Cluster: cluster,
		Unit:  unit{"gemm_fp8_sm90.cu", "gemm_fp8_sm90", fmt.Sprintf("EPILOGUE=%d GROUPS=%d K=%d M=%d N=%d NORM=0 SCALES=%d SPLIT=%d STAGES=%d TOKENS=%d", l.end, t.groups, l.k, t.tokens, l.n, scales, t.split, t.stages, t.tokens)},
		Bytes: int64(l.n)*int64(l.k) + int64(l.m)*int64(l.k+l.outputs())*bf16Bytes, FLOPs: 2 * int64(l.m) * int64(l.n) * int64(l.k)}
}
