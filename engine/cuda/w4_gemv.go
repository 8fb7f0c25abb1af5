//go:build cuda

package cuda

import (
	"fmt"
	"slices"
	"strings"
)

// w4_gemv: products of at most 16 tokens with weights of four bits, several in one kernel where they follow each other.

const (
	w4GemvProducts = 4 // the most of one kernel: o, gate_up, down and the next layer's qkv
	w4GemvCounters = 4 // u32 behind w4_gemm's
	w4GemvRing     = 5 // the fewest steps that keep memory busy
	w4StreamTokens = 8 // the most tokens of which x may stream: 16 rows took 3.36 ms so, 3.21 with the kernels before (8B, H200)
	w4GemvLeast    = 3 // the fewest that are worth it, on devices of little shared memory
)

// w4GemvProduct mirrors Weights of w4_gemv.cu.
type w4GemvProduct struct {
	W, Scale, X, Gamma, Bias, Y  ptr
	Blocks, KB, Groups, Together int32
}

// w4GemvParams mirrors Params of w4_gemv.cu.
type w4GemvParams struct {
	Product       [w4GemvProducts]w4GemvProduct
	Arrived, Next ptr
	Tokens        int32
	NextBytes     uint32
}

// w4GemvCall is a product on w4_gemv, alone or among others.
type w4GemvCall struct {
	product
	device   device
	counters ptr // w4_gemv's
}

func (c *w4GemvCall) norms(call, ptr, ptr) bool { return false } // it norms x itself
func (c *w4GemvCall) op() op                    { return w4GemvOp([]*w4GemvCall{c}) }

// rowGroup is the define ROW_GROUP.
func (c *w4GemvCall) rowGroup() int {
	if c.w.Group == c.k {
		return 0
	}
	return c.w.Group
}

// steps is how many steps of 128 columns each warp makes for a unit of 16 rows; x of more than four for each eight tokens does not fit the registers.
func (c *w4GemvCall) steps() int        { return ceilDiv(ceilDiv(c.k, w4Step), mmaWarps) }
func (c *w4GemvCall) inRegisters() bool { return c.steps()*ceilDiv(c.m, 8) <= 4 }

// w4GemvTile is how w4_gemv lays out shared memory: steps that each warp's ring has room for, steps of an x that is kept there (0: it streams beside W),
// columns of the widest norm.
type w4GemvTile struct {
	ring, xSteps, gamma, grid, smem int
	deep                            bool // the ring keeps memory busy
}

// w4GemvTileOf lays out shared memory for calls, which follow each other. ok is false where they leave no room for a ring.
func w4GemvTileOf(calls []*w4GemvCall) (t w4GemvTile, ok bool) {
	first, needed := calls[0], 1
	for _, c := range calls {
		t.grid = max(t.grid, min(c.device.SMs, ceilDiv(c.n, 16)))
	}
	normsLarge := false
	for _, c := range calls {
		needed += c.steps() * ceilDiv(ceilDiv(c.n, 16), t.grid)
		if c.norm {
			t.gamma = max(t.gamma, c.k)
		}
		if !c.inRegisters() {
			t.xSteps = max(t.xSteps, c.steps())
			normsLarge = normsLarge || c.norm
		}
	}
	lay := func() { // struct Shared of w4_gemv.cu, and x behind it
		tiles, scales := ceilDiv(first.m, 8), w4Scales(first.k, first.w.Group)
		slot := mmaWarps * (2*w4Step*8/2 + 2*scales*8*4)
		t.smem = 2*mmaWarps*(tiles*128+4)*4 + mmaWarps*16*4 + 16*4 + max(t.gamma, 8)*bf16Bytes + tiles*4*8 + mmaWarps*t.xSteps*4*first.m*64
		if t.xSteps > 0 {
			t.smem += (mmaWarps*t.xSteps*scales - 1) * tiles * 4 * 8
		}
		t.ring = min((first.device.MaxSmem-t.smem)/slot, max(2, needed))
		t.smem += t.ring * slot
		t.deep = t.ring >= min(w4GemvRing, max(2, needed))
	}
	if lay(); !t.deep && t.xSteps > 0 && first.m <= w4StreamTokens && !normsLarge {
		t.xSteps = 0
		lay()
	}
	return t, t.ring >= min(w4GemvLeast, max(2, needed))
}

// w4GemvCall is the product on w4_gemv, if that takes it.
func (p *planner) w4GemvCall(g product) (c *w4GemvCall, ok bool) {
	c = &w4GemvCall{product: g, device: p.device, counters: p.buffers.W4Arrived + 4*w4Counters}
	if g.m > w4Tokens {
		return nil, false
	}
	_, ok = w4GemvTileOf([]*w4GemvCall{c})
	return c, ok
}

// linkInt4 makes one kernel of calls of w4_gemv that follow each other, as far as there is room. Without programmatic launches each has its own: tests
// compare the bits.
func (p *planner) linkInt4(nodes []node) []node {
	if p.noPDL {
		return nodes
	}
	out := make([]node, 0, len(nodes))
	for i := 0; i < len(nodes); {
		var calls []*w4GemvCall
		for _, n := range nodes[i:min(i+w4GemvProducts, len(nodes))] {
			c, ok := n.own.(*w4GemvCall)
			if !ok || len(calls) > 0 && c.rowGroup() != calls[0].rowGroup() {
				break
			}
			if t, _ := w4GemvTileOf(append(calls, c)); !t.deep {
				break
			}
			calls = append(calls, c)
		}
		n := nodes[i]
		if len(calls) > 1 {
			o := w4GemvOp(calls)
			n.own, n.op = nil, &o
		}
		out = append(out, n)
		i += max(1, len(calls))
	}
	return out
}

// w4GemvOp is the kernel of calls that follow each other.
func w4GemvOp(calls []*w4GemvCall) op {
	t, _ := w4GemvTileOf(calls)
	last := calls[len(calls)-1]
	p := w4GemvParams{Arrived: last.counters, Next: last.next, Tokens: int32(last.m), NextBytes: uint32(last.nextBytes)}
	o := op{Name: "w4", PDL: true, Grid: [3]int{t.grid, 1, 1}, Block: mmaThreads, Smem: t.smem}
	var defines strings.Builder
	for i, c := range calls {
		norm, together := 0, 1
		if c.norm {
			norm = 1
		}
		if !c.inRegisters() && t.xSteps == 0 {
			together = 2
		}
		p.Product[i] = w4GemvProduct{W: c.w.Data, Scale: c.w.Scales, X: c.x, Gamma: c.gamma, Bias: c.bias, Y: c.y, Blocks: int32(c.n / w4Rows), KB: int32(ceilDiv(c.k, w4Step)),
			Groups: int32(c.k / c.w.Group), Together: int32(together)}
		fmt.Fprintf(&defines, "EPILOGUE%d=%d K%d=%d N%d=%d NORM%d=%d ", i, c.end, i, c.k, i, c.n, i, norm)
		o.Name += "_" + c.name
		o.Bytes += int4Bytes(c.n, c.k, c.w.Group) + int64(c.m)*int64(c.k+c.outputs())*bf16Bytes
		o.FLOPs += 2 * int64(c.m) * int64(c.n) * int64(c.k)
	}
	ragged := 0
	if slices.ContainsFunc(calls, func(c *w4GemvCall) bool { return c.n%16 != 0 || c.k%(w4Step*mmaWarps) != 0 }) {
		ragged = 1
	}
	o.Params = paramBytes(&p)
	o.Unit = unit{"w4_gemv.cu", "w4_gemv", fmt.Sprintf("%sGAMMA=%d M=%d PRODUCTS=%d RAGGED=%d RING=%d ROW_GROUP=%d X_STEPS=%d", defines.String(), t.gamma, pad(last.m, 8), len(calls), ragged, t.ring,
		last.rowGroup(), t.xSteps)}
	return o
}
