//go:build cuda

package cuda

import (
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// plannedOp is an operation of a plan, as profilers are told of it: all of it comes from the node, and nothing knows it by its name.
type plannedOp struct {
	op      trace.Op
	context contextOf
	unit    uint64 // as which its kernel notes time stamps; 0: it does not
}

// contextOf says whose context an operation reads beside its Bytes: that depends on the batch, and a plan is made for many.
type contextOf uint8

const (
	noContext contextOf = iota
	contextOfDecode
	contextOfPrefill
)

// noteGraph keeps what a graph holds, with the stack of its capture, for the profilers that see its replays.
func (b *Backend) noteGraph(st stepShape, nodes []node) {
	if b.graphOps == nil {
		b.graphOps = map[stepShape][]plannedOp{}
	}
	b.graphOps[st] = b.plannedOps(nodes, trace.Stack(1))
}

// tellGraph tells a profiler, if there is one, what the graph launched next holds.
func (b *Backend) tellGraph(st stepShape, batch *backend.Batch) {
	b.tellPlanned(true, b.graphOps[st], batch)
}

// tell tells a profiler, if there is one, what is launched next, kernel by kernel.
func (b *Backend) tell(nodes []node, batch *backend.Batch) {
	if !trace.WantOps() && b.stamps == nil {
		return
	}
	if b.stamps != nil {
		for i := range nodes { // a kernel has a number for its stamps from when its module is loaded
			if nodes[i].op != nil {
				_, _ = b.function(nodes[i].op.Unit) // the launch tells of an error
			}
		}
	}
	b.tellPlanned(false, b.plannedOps(nodes, trace.Stack(1)), batch)
}

func (b *Backend) tellPlanned(graph bool, planned []plannedOp, batch *backend.Batch) {
	if trace.WantOps() || trace.WantTimes() {
		planned = b.withContext(batch, planned)
		ops := make([]trace.Op, len(planned))
		for i := range planned {
			ops[i] = planned[i].op
		}
		trace.StepOps(graph, ops)
	}
	if b.stamps != nil {
		b.stamps.launch(uint64(b.launched)-1, planned)
	}
}

// markNode tells a profiler which operation is enqueued or captured next.
func (b *Backend) markNode(n *node) {
	name := "hook"
	switch {
	case n.op != nil:
		name = n.op.Name
	case n.gemm != nil:
		name = n.gemm.Name
	}
	trace.NextNode(n.layer-1, name)
}

// tellOp tells a profiler, if there is one, of a kernel that is launched next, ahead of the step's own.
func (b *Backend) tellOp(o *op) {
	if trace.WantOps() {
		trace.StepOps(false, []trace.Op{{Name: o.Name, Symbol: o.Unit.Symbol, Layer: -1, Bytes: o.Bytes, FLOPs: o.FLOPs, Stack: trace.Stack(1)}})
	}
}

// withContext is planned with what depends on the rows and is in no plan: attention reads keys and values of each row's context once, and
// makes two products of every query with each position before it.
func (b *Backend) withContext(batch *backend.Batch, planned []plannedOp) []plannedOp {
	var parts [contextOfPrefill + 1]struct{ bytes, flops int64 }
	perToken := b.info.KVBytesPerToken / int64(b.shape.Layers)
	perPair := 4 * int64(b.shape.qDim())
	for i := range batch.Rows {
		r := &batch.Rows[i]
		n, before := int64(r.NumTokens()), int64(r.Position)
		part := &parts[contextOfPrefill]
		if len(r.Tokens) == 0 {
			part = &parts[contextOfDecode]
		}
		part.bytes += (before + n) * perToken
		part.flops += (n*before + n*(n+1)/2) * perPair
	}
	planned = slices.Clone(planned)
	for i := range planned {
		o := &planned[i]
		o.op.Bytes, o.op.FLOPs = o.op.Bytes+parts[o.context].bytes, o.op.FLOPs+parts[o.context].flops
	}
	return planned
}

func (b *Backend) plannedOps(nodes []node, stack []uintptr) []plannedOp {
	planned := make([]plannedOp, 0, len(nodes))
	for _, n := range nodes {
		o := plannedOp{op: trace.Op{Layer: n.layer - 1, Stack: stack}}
		switch {
		case n.op != nil:
			o.op.Name, o.op.Symbol, o.op.Bytes, o.op.FLOPs, o.context = n.op.Name, n.op.Unit.Symbol, n.op.Bytes, n.op.FLOPs, n.op.Context
			if b.stamps != nil {
				o.unit = b.stamps.units[n.op.Unit]
			}
		case n.gemm != nil:
			g := n.gemm
			o.op.Name, o.op.Bytes, o.op.FLOPs, o.op.FP8 = g.Name, gemmBytes(g), 2*int64(g.M)*int64(g.N)*int64(g.K), g.FP8
		default:
			continue // a hook's copies are seen as what they are
		}
		planned = append(planned, o)
	}
	return planned
}

// gemmBytes is what a product must move: weights, inputs and outputs once.
func gemmBytes(g *driver.GEMM) int64 {
	in, out := int64(bf16Bytes), int64(bf16Bytes)
	if g.FP8 {
		in = 1
	}
	if g.F32 {
		out = 4
	}
	if g.Accumulate {
		out *= 2
	}
	return int64(g.N)*int64(g.K)*in + int64(g.M)*int64(g.K)*in + int64(g.M)*int64(g.N)*out
}
