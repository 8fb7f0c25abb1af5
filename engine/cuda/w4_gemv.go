//go:build cuda

package cuda

import "fmt"

// w4GemvParams mirrors Params of w4_gemv.cu.
type w4GemvParams struct {
	W, Scale, X, Gamma, Bias, Y, Next ptr
	Tokens                            int32
	NextBytes                         uint32
}

// w4Tile is how w4_gemv cuts a product: steps of 128 columns in flight of a unit of 16 rows, and where x is kept.
type w4Tile struct{ span, place, grid, smem int }

const (
	xInRegisters = iota
	xInShared
	xStreams
)

func (l linear) w4Tile(d device, group int) w4Tile {
	tiles, steps, scales, gamma := ceilDiv(l.m, 8), ceilDiv(ceilDiv(l.k, w4Step), mmaWarps), 1, 1
	if group < w4Step && group < l.k {
		scales = w4Step / group
	}
	if l.norm {
		gamma = ceilDiv(l.k, 8)
	}
	// struct Shared of w4_gemv.cu.
	t := w4Tile{grid: min(d.SMs, ceilDiv(l.n, 16)), smem: tiles*2*mmaWarps*16*8*4 + mmaWarps*16*4 + 16*4 + gamma*16}
	sums, x := mmaWarps*steps*scales*tiles*4*8, mmaWarps*steps*4*l.m*64
	most := 7 // steps of W that fit the registers
	switch {
	case steps*tiles <= 2 && (scales < 4 || steps*tiles == 1):
		t.place = xInRegisters
		sums, x = tiles*4*8, 0
	case t.smem+sums+x <= d.MaxSmem:
		t.place = xInShared
		most = 7 / tiles
	default:
		t.place = xStreams
		sums, x = tiles*4*8, 0
		most = min(4, pad(ceilDiv(steps, tiles), 2))
	}
	if scales > 1 {
		most = min(most, 2)
	}
	t.span = steps
	if t.place != xInRegisters {
		t.span = ceilDiv(steps, ceilDiv(steps, most))
	}
	if t.place == xStreams {
		t.span = pad(t.span, 2) // two steps of x are on the way
	}
	t.smem += sums + x
	return t
}

// w4Op is the product on w4_gemv.
func (g product) w4Op(d device) op {
	t, norm := g.w4Tile(d, g.w.Group), 0
	if g.norm {
		norm = 1
	}
	p := w4GemvParams{W: g.w.Data, Scale: g.w.Scales, X: g.x, Gamma: g.gamma, Bias: g.bias, Y: g.y, Next: g.next, Tokens: int32(g.m), NextBytes: uint32(g.nextBytes)}
	return op{Name: "w4_" + g.name, PDL: true, Params: paramBytes(&p), Grid: [3]int{t.grid, 1, 1}, Block: mmaThreads, Smem: t.smem,
		Unit: unit{"w4_gemv.cu", "w4_gemv", fmt.Sprintf("EPILOGUE=%d GROUP=%d K=%d M=%d N=%d NORM=%d SPAN=%d X_PLACE=%d",
			g.end, g.w.Group, g.k, pad(g.m, 8), g.n, norm, t.span, t.place)},
		Bytes: int4Bytes(g.n, g.k, g.w.Group) + int64(g.m)*int64(g.k+g.outputs())*bf16Bytes, FLOPs: 2 * int64(g.m) * int64(g.n) * int64(g.k)}
}
