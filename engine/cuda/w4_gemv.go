//go:build cuda

package cuda

import "fmt"

// w4GemvParams mirrors Params of w4_gemv.cu.
type w4GemvParams struct {
	W, Scale, X, Gamma, Bias, Y, Next ptr
	Tokens                            int32
	NextBytes                         uint32
}

// w4GemvTile is how w4_gemv cuts a product: steps of 128 columns of a unit of 16 rows that each warp has room for, and whether x is kept in shared
// memory or in registers.
type w4GemvTile struct {
	ring       int
	xShared    bool
	grid, smem int
}

// w4GemvTile has the deepest ring that fits, as far as there are steps for it. ok is false where w4_gemv does not take the product: x leaves no room for
// a ring that keeps memory busy.
func (l linear) w4GemvTile(d device, group int) (t w4GemvTile, ok bool) {
	if l.m > w4Tokens {
		return t, false
	}
	tiles, steps, scales, gamma := ceilDiv(l.m, 8), ceilDiv(ceilDiv(l.k, w4Step), mmaWarps), w4Scales(l.k, group), 1
	if l.norm {
		gamma = ceilDiv(l.k, 8)
	}
	// struct Shared of w4_gemv.cu.
	t = w4GemvTile{xShared: steps*tiles > 4, grid: min(d.SMs, ceilDiv(l.n, 16))}
	t.smem = tiles*2*mmaWarps*16*8*4 + mmaWarps*16*4 + 16*4 + gamma*16 + tiles*4*8
	if t.xShared {
		t.smem += (mmaWarps*steps*scales-1)*tiles*4*8 + mmaWarps*steps*4*l.m*64
	}
	slot := mmaWarps * (2*w4Step*8/2 + 2*scales*8*4)
	t.ring = min((d.MaxSmem-t.smem)/slot, max(2, steps*ceilDiv(ceilDiv(l.n, 16), t.grid)+1))
	t.smem += t.ring * slot
	return t, t.ring >= 2 && (t.ring >= 4 || t.ring > steps*ceilDiv(ceilDiv(l.n, 16), t.grid))
}

// w4GemvOp is the product on w4_gemv.
func (g product) w4GemvOp(d device, t w4GemvTile) op {
	norm, shared := 0, 0
	if g.norm {
		norm = 1
	}
	if t.xShared {
		shared = 1
	}
	p := w4GemvParams{W: g.w.Data, Scale: g.w.Scales, X: g.x, Gamma: g.gamma, Bias: g.bias, Y: g.y, Next: g.next, Tokens: int32(g.m), NextBytes: uint32(g.nextBytes)}
	return op{Name: "w4_" + g.name, PDL: true, Params: paramBytes(&p), Grid: [3]int{t.grid, 1, 1}, Block: mmaThreads, Smem: t.smem,
		Unit: unit{"w4_gemv.cu", "w4_gemv", fmt.Sprintf("EPILOGUE=%d GROUP=%d K=%d M=%d N=%d NORM=%d RING=%d X_SHARED=%d",
			g.end, g.w.Group, g.k, pad(g.m, 8), g.n, norm, t.ring, shared)},
		Bytes: int4Bytes(g.n, g.k, g.w.Group) + int64(g.m)*int64(g.k+g.outputs())*bf16Bytes, FLOPs: 2 * int64(g.m) * int64(g.n) * int64(g.k)}
}
