//go:build cuda

package cuda

import (
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// noteGraph keeps what a graph holds, with the stack of its capture, for the profilers that see its replays.
func (b *Backend) noteGraph(st stepShape, nodes []node) {
	if b.graphOps == nil {
		b.graphOps = map[stepShape][]trace.Op{}
	}
	b.graphOps[st] = b.traceOps(nodes, trace.Stack(1))
	if b.stamps != nil {
		if b.graphNodes == nil {
			b.graphNodes = map[stepShape][]node{}
		}
		b.graphNodes[st] = nodes
	}
}

// tellGraph tells a profiler, if there is one, what the graph launched next holds.
func (b *Backend) tellGraph(st stepShape, batch *backend.Batch) {
	wanted := trace.WantOps()
	if !wanted && b.stamps == nil {
		return
	}
	ops := b.graphOps[st]
	if wanted {
		ops = b.attentionOf(batch, slices.Clone(ops))
		trace.StepOps(true, ops)
	}
	if b.stamps != nil {
		b.stamps.plan(uint64(b.launched)-1, b.graphNodes[st], ops)
	}
}

// tell tells a profiler, if there is one, what is launched next, kernel by kernel.
func (b *Backend) tell(nodes []node, batch *backend.Batch) {
	if !trace.WantOps() && b.stamps == nil {
		return
	}
	ops := b.attentionOf(batch, b.traceOps(nodes, trace.Stack(1)))
	trace.StepOps(false, ops)
	if b.stamps != nil {
		for i := range nodes { // a module is loaded at its first launch, and its kernels have a number from then on
			if nodes[i].op != nil {
				_, _ = b.function(nodes[i].op.Unit) // the launch tells of an error
			}
		}
		b.stamps.plan(uint64(b.launched)-1, nodes, ops)
	}
}

// markNode tells a profiler which operation is enqueued or captured next.
func (b *Backend) markNode(n *node) {
	name := "hook"
	switch {
	case n.op != nil:
		name = n.op.Name
	case n.gemm != nil:
		name = b.shape.gemmName(n.gemm)
	}
	trace.NextNode(n.layer-1, name)
}

// tellOp tells a profiler, if there is one, of a kernel that is launched next, ahead of the step's own.
func (b *Backend) tellOp(o *op) {
	if trace.WantOps() {
		trace.StepOps(false, []trace.Op{{Name: o.Name, Symbol: o.Unit.Symbol, Layer: -1, Bytes: o.Bytes, FLOPs: o.FLOPs, Stack: trace.Stack(1)}})
	}
}

// attentionOf adds to attention's operations what depends on the rows and is in no plan: keys and values of each row's context read once,
// and two products of every query with each position before it.
func (b *Backend) attentionOf(batch *backend.Batch, ops []trace.Op) []trace.Op {
	var decode, prefill struct{ bytes, flops int64 }
	perToken := b.info.KVBytesPerToken / int64(b.shape.Layers)
	perPair := 4 * int64(b.shape.qDim())
	for i := range batch.Rows {
		r := &batch.Rows[i]
		n, before := int64(r.NumTokens()), int64(r.Position)
		part := &prefill
		if len(r.Tokens) == 0 {
			part = &decode
		}
		part.bytes += (before + n) * perToken
		part.flops += (n*before + n*(n+1)/2) * perPair
	}
	for i := range ops {
		switch o := &ops[i]; o.Name {
		case "attn_decode":
			o.Bytes, o.FLOPs = o.Bytes+decode.bytes, o.FLOPs+decode.flops
		case "attn_prefill":
			o.Bytes, o.FLOPs = o.Bytes+prefill.bytes, o.FLOPs+prefill.flops
		}
	}
	return ops
}

func (b *Backend) traceOps(nodes []node, stack []uintptr) []trace.Op {
	ops := make([]trace.Op, 0, len(nodes))
	for _, n := range nodes {
		o := trace.Op{Layer: n.layer - 1, Stack: stack}
		switch {
		case n.op != nil:
			o.Name, o.Symbol, o.Bytes, o.FLOPs = n.op.Name, n.op.Unit.Symbol, n.op.Bytes, n.op.FLOPs
		case n.gemm != nil:
			o.Name, o.Bytes, o.FLOPs = b.shape.gemmName(n.gemm), gemmBytes(n.gemm), 2*int64(n.gemm.M)*int64(n.gemm.N)*int64(n.gemm.K)
		default:
			continue // a hook's copies are seen as what they are
		}
		ops = append(ops, o)
	}
	return ops
}

// gemmName is the operation that a matrix product of this shape is.
func (s shape) gemmName(g *driver.GEMM) string {
	switch {
	case g.N == s.Vocab:
		return "gemm_head"
	case g.N == 2*s.Inter:
		return "gemm_gate_up"
	case g.N == s.qkvDim() && g.K == s.Hidden && !g.Accumulate:
		return "gemm_qkv"
	case g.K == s.Inter:
		return "gemm_down"
	}
	return "gemm_o"
}

// gemmBytes is what a product must move: weights, inputs and outputs once.
func gemmBytes(g *driver.GEMM) int64 {
	out := int64(bf16Bytes)
	if g.F32 {
		out = 4
	}
	if g.Accumulate {
		out *= 2
	}
	return int64(g.N)*int64(g.K)*bf16Bytes + int64(g.M)*int64(g.K)*bf16Bytes + int64(g.M)*int64(g.N)*out
}
