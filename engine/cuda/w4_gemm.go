//go:build cuda

package cuda

import "fmt"

const (
	w4GEMMTokens = 256     // the most tokens that w4_gemm takes; for more, a bf16 copy pays
	w4Counters   = 1 << 14 // tiles that CTAs may share
)

// w4GEMMParams mirrors Params of w4_gemm.cu.
type w4GEMMParams struct {
	W, Scale, X, Bias, Y, Part, Arrived ptr
	Tokens                              int32
	_                                   int32
}

// w4GEMMTile is how w4_gemm cuts a product: blocks of 16 rows of a warp, tokens of a tile.
type w4GEMMTile struct{ threads, blocks, tokens, stages, across, smem int }

func (l linear) w4GEMMTile(d device, group int) w4GEMMTile {
	t := w4GEMMTile{threads: 256, blocks: 2, tokens: 64}
	if l.m <= 32 {
		t.tokens = 32
	}
	rows := t.threads / 2 * t.blocks
	stage := rows*w4Step/2 + t.tokens*w4Step*bf16Bytes + rows*4*w4Scales(l.k, group)
	t.stages = min(8, (d.MaxSmem-1024)/stage)
	t.smem = t.stages * stage
	t.across = max(1, min(d.SMs/ceilDiv(l.m, t.tokens), ceilDiv(l.n, rows)*ceilDiv(l.k, w4Step)))
	return t
}

// w4GEMMBytes is the room for sums of tiles that CTAs share: two tiles a CTA, of at most 256 rows and 64 tokens.
func w4GEMMBytes(d device) int64 { return int64(d.SMs) * 2 * 256 * 64 * 4 }

// w4GEMMOp is the product on w4_gemm: x is normed already.
func (g product) w4GEMMOp(d device, b *buffers) op {
	t := g.w4GEMMTile(d, g.w.Group)
	p := w4GEMMParams{W: g.w.Data, Scale: g.w.Scales, X: g.x, Bias: g.bias, Y: g.y, Part: b.W4Part, Arrived: b.W4Arrived, Tokens: int32(g.m)}
	return op{Name: "w4_" + g.name, PDL: true, Params: paramBytes(&p), Grid: [3]int{t.across, ceilDiv(g.m, t.tokens), 1}, Block: t.threads, Smem: t.smem,
		Unit: unit{"w4_gemm.cu", "w4_gemm", fmt.Sprintf("BLOCKS=%d EPILOGUE=%d GROUP=%d K=%d M=%d N=%d NORM=0 STAGES=%d THREADS=%d TOKENS=%d",
			t.blocks, g.end, g.w.Group, g.k, t.tokens, g.n, t.stages, t.threads, t.tokens)},
		Bytes: int4Bytes(g.n, g.k, g.w.Group) + int64(g.m)*int64(g.k+g.outputs())*bf16Bytes, FLOPs: 2 * int64(g.m) * int64(g.n) * int64(g.k)}
}

// fitsW4GEMM tells whether w4_gemm takes the product.
func (l linear) fitsW4GEMM() bool {
	return l.m <= w4GEMMTokens && l.n%2 == 0 && ceilDiv(l.m, 32)*ceilDiv(l.n, 128) <= w4Counters
}
