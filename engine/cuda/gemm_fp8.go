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
	Tokens, Parts, StageBytes                        int32
	_                                                [15]int32
}

// fp8Tile is how gemm_fp8_sm90 cuts a product: groups of 64 rows of W, turns of warpgroups that take a tile's stages one after the other; CTAs that
// share a tile's K (a cluster); the tokens it has room for; stages.
type fp8Tile struct{ groups, turns, split, tokens, stages int }

func (t fp8Tile) rows() int       { return 64 * t.groups }
func (t fp8Tile) stageBytes() int { return t.rows()*gemmFP8Step + t.tokens*gemmFP8Step*bf16Bytes }

// otherBytes is the room for what the second turn gives the first.
func (t fp8Tile) otherBytes() int { return max(16, (t.turns-1)*t.rows()*t.tokens*4) }

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
			for t.turns = 1; t.turns <= 2 && t.turns*t.groups <= 4; t.turns++ {
				if t.turns > 1 && t.tokens*t.groups > 64 || l.end == epilogueResidual && t.split == 1 && t.groups*t.turns > 2 {
					continue // registers
				}
				t.stages = min((gemmStageBytes-t.otherBytes())/t.stageBytes(), 16)
				if t.split == 1 || t.ctas(l, d) <= gemmCTAs(d, t.split) && ceilDiv(l.k, gemmFP8Step) >= t.split {
					tiles = append(tiles, t)
				}
			}
		}
	}
	return tiles
}

// cost estimates the product's time in nanoseconds on an H200.
func (t fp8Tile) cost(l linear, d device) float64 {
	const memory = 34                                                     // bytes/ns, an SM's share of the device's
	widened := [...]float64{1: 19, 2: 32, 3: 32, 4: 34}[t.groups*t.turns] // of W by so many warpgroups of an SM
	rounds, tail := 1, 1000.
	if t.split == 1 {
		rounds = ceilDiv(ceilDiv(l.n, t.rows()), d.SMs)
	} else {
		tail = 3000
	}
	steps := ceilDiv(ceilDiv(l.k, gemmFP8Step), t.split) * rounds
	return max(float64(steps*t.rows()*gemmFP8Step)/widened, float64(l.n*l.k)/float64(memory*d.SMs)) + tail
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
	// xF16 and yF16 tell that x and, of SwiGLU, the outputs lie as this kernel leaves them to itself: X_F16 of gemm_fp8_sm90.cu.
	xF16, yF16 bool
}

// norms takes the RMSNorm between c, whose outputs it is of, and next into both: next's x is c's outputs times gamma, in scaled.
func (c *fp8Call) norms(d device, next *fp8Call, scaled, squares ptr) {
	c.params.Gamma, c.params.Scaled, c.params.Squares = next.gamma, scaled, squares
	next.xF16 = true
	next.params.RMSOf, next.params.Parts = squares, int32(c.tile.ctas(c.linear, d))
}

// linkFP8 makes kernels of the calls of gemm_fp8_sm90; a norm between two of them is no kernel. Squares lie where gemm_sm90's do.
func (p *planner) linkFP8(nodes []node) []node {
	out := make([]node, 0, len(nodes))
	for i := 0; i < len(nodes); i++ {
		out = append(out, nodes[i])
		if i+1 < len(nodes) && nodes[i].fp8 != nil && nodes[i].fp8.end == epilogueSwiGLU && nodes[i+1].fp8 != nil {
			nodes[i].fp8.yF16, nodes[i+1].fp8.xF16 = true, true
		}
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

// op is the launch.
func (c *fp8Call) op(d device) op {
	l, t, p := c.linear, c.tile, c.params
	if c.w.Data != 0 {
		m, err := driver.TensorMapBytes(c.w.Data, l.n, l.k, t.rows(), gemmFP8Step)
		if err != nil {
			panic(fmt.Sprintf("tensor map of %d x %d: %v", l.n, l.k, err)) // sizes and alignment are the arena's own
		}
		p.W = m
	}
	flag := map[bool]int{true: 1}
	scales := flag[p.Parts > 0]
	rows := pad(l.m, 8) // x has room for them, and a box that reaches past the end of its matrix is copied slowly
	p.X, p.RowScale, p.Tokens = tensorMap(c.x, rows, l.k, rows), c.w.Scales, int32(l.m)
	p.StageBytes = int32(t.rows()*gemmFP8Step + rows*gemmFP8Step*bf16Bytes)
	cluster := 0
	if t.split > 1 {
		cluster = t.split
	}
	return op{Name: l.name, PDL: true, Params: paramBytes(&p), Grid: [3]int{t.ctas(l, d), 1, 1}, Block: 128*t.groups*t.turns + 32*(1+scales),
		Smem: pad(t.stages*(t.stageBytes()+16)+t.otherBytes()+4*t.tokens, 1024), Cluster: cluster,
		Unit: unit{"gemm_fp8_sm90.cu", "gemm_fp8_sm90", fmt.Sprintf("EPILOGUE=%d GROUPS=%d K=%d M=%d N=%d NORM=0 SCALES=%d SPLIT=%d STAGES=%d TOKENS=%d TURNS=%d X_F16=%d Y_F16=%d", l.end, t.groups, l.k,
			t.tokens, l.n, scales, t.split, t.stages, t.tokens, t.turns, flag[c.xF16], flag[c.yF16])},
		Bytes: int64(l.n)*int64(l.k) + int64(l.m)*int64(l.k+l.outputs())*bf16Bytes, FLOPs: 2 * int64(l.m) * int64(l.n) * int64(l.k)}
}
