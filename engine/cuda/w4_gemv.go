//go:build cuda

package cuda

import "fmt"

// w4GemvParams mirrors Params of w4_gemv.cu.
type w4GemvParams struct {
	W, Scale, X, Gamma, Bias, Y ptr
	Tokens                      int32
	_                           int32
}

// w4Tile is how w4_gemv cuts a product: blocks of 16 rows that a CTA works on at once, steps of 128 columns in flight of a unit.
type w4Tile struct{ blocks, span, grid, smem int }

func (l linear) w4Tile(d device, group int) w4Tile {
	tiles, steps := ceilDiv(l.m, 8), ceilDiv(ceilDiv(l.k, w4Step), mmaWarps)
	t := w4Tile{blocks: 1, span: steps}
	x := 1 // in shared memory, 16 bytes
	switch {
	case steps*tiles <= 2: // it stays in registers
	case steps*tiles <= 4:
		x = steps * 4 * tiles * mmaThreads
	default: // it streams
		most := 7 // steps of W that fit the registers, with a scale each
		switch {
		case tiles == 2:
			most = min(4, ceilDiv(steps, 2))
		case group < w4Step && group < l.k:
			most = 3
		}
		t.span = ceilDiv(steps, ceilDiv(steps, most))
	}
	gamma := 1
	if l.norm {
		gamma = ceilDiv(l.k, 8)
	}
	t.grid = min(d.SMs, ceilDiv(l.n, 16*t.blocks))
	t.smem = t.blocks*tiles*2*mmaWarps*16*8*4 + mmaWarps*16*4 + 16*4 + (gamma+x)*16 // struct Shared of w4_gemv.cu
	return t
}

// w4Op is the product on w4_gemv.
func (g product) w4Op(d device) op {
	t, norm := g.w4Tile(d, g.w.Group), 0
	if g.norm {
		norm = 1
	}
	p := w4GemvParams{W: g.w.Data, Scale: g.w.Scales, X: g.x, Gamma: g.gamma, Bias: g.bias, Y: g.y, Tokens: int32(g.m)}
	return op{Name: "w4_" + g.name, PDL: true, Params: paramBytes(&p), Grid: [3]int{t.grid, 1, 1}, Block: mmaThreads, Smem: t.smem,
		Unit: unit{"w4_gemv.cu", "w4_gemv", fmt.Sprintf("BLOCKS=%d EPILOGUE=%d GROUP=%d K=%d M=%d N=%d NORM=%d SPAN=%d",
			t.blocks, g.end, g.w.Group, g.k, pad(g.m, 8), g.n, norm, t.span)},
		Bytes: int4Bytes(g.n, g.k, g.w.Group) + int64(g.m)*int64(g.k+g.outputs())*bf16Bytes, FLOPs: 2 * int64(g.m) * int64(g.n) * int64(g.k)}
}
