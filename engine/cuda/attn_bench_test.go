//go:build cuda

package cuda

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// BenchmarkAttnPrefill times prefill attention alone, launches one behind the other: one sequence, from its start.
func BenchmarkAttnPrefill(b *testing.B) {
	for _, tokens := range []int{512, 2048, 8192} {
		for _, c := range []struct{ portable, fp8, widens bool }{{}, {fp8: true}, {fp8: true, widens: true}, {portable: true}, {portable: true, fp8: true}} {
			b.Run(fmt.Sprintf("heads=32/kv=8/dim=128/portable=%v/fp8=%v/widens=%v/tokens=%d", c.portable, c.fp8, c.widens, tokens), func(b *testing.B) {
				s := testShapes()["llama-8b"]
				s.MaxTokens, s.NumPages, s.KVFP8 = tokens, tokens/s.Page, c.fp8
				r := newRig(b, s)
				pages := make([]int32, s.MaxPages)
				for i := range pages {
					pages[i] = int32(i)
				}
				one := func(v int) ptr { return put(r, []int32{int32(v)}) }
				bufs := &buffers{QKV: r.putBF16(r.normal(tokens*s.qkvDim(), 1)), KV: (&attnRig{rig: r}).putKV(r.normal(int(s.layerKVBytes()/s.kvBytes()), 1)), Att: r.room(2 * tokens * s.qDim()),
					RowSlot: one(0), RowPos: one(0), RowLen: one(tokens), RowStart: one(0), PageTable: put(r, pages)}
				bufs.Widened, bufs.WidenedFirst = r.room(int(s.widenedBytes(r.device))), one(0)
				var ops []op
				for range 8 {
					if c.portable {
						ops = append(ops, attnPrefillOp(s, bufs, layerWeights{}, 0, 0, 1, tokens))
						continue
					}
					for _, n := range prefillAttention(r.device, s, bufs, layerWeights{}, 0, 0, 1, tokens, c.widens) {
						ops = append(ops, *n.op)
					}
				}
				for i := range ops {
					ops[i].PDL = false
				}
				us := r.timeAll(b, ops) * float64(len(ops)) / 8
				b.ReportMetric(2*float64(s.Heads*s.Dim)*float64(tokens)*float64(tokens)/us/1e6, "TFLOP/s")
				b.ReportMetric(us, "us")
			})
		}
	}
}

// BenchmarkAttnDecode times decode attention alone: rows of one context or of evenly spread ones, layers in turn so that their pages are
// cold, and no overlap with the kernel before.
func BenchmarkAttnDecode(b *testing.B) {
	for _, fp8 := range []bool{false, true} {
		for _, rows := range []int{1, 16, 32, 64, 128, 256} {
			for _, c := range []struct {
				ctx    int
				spread bool
			}{{512, false}, {1024, false}, {2048, false}, {2048, true}} {
				b.Run(fmt.Sprintf("heads=32/kv=8/dim=128/fp8=%v/batch=%d/ctx=%d/spread=%v", fp8, rows, c.ctx, c.spread), func(b *testing.B) {
					r, ops, bytes := attnDecodeChain(b, fp8, rows, c.ctx, c.spread)
					us := r.timeAll(b, ops)
					b.ReportMetric(us, "us")
					b.ReportMetric(bytes/us/1e3, "GB/s")
				})
			}
		}
	}
}

// attnDecodeChain is decode attention of all layers of a cache of a gigabyte or more, rows of ctx tokens, or where spread is set of evenly
// spread lengths up to ctx; and the bytes of K and V of a layer.
func attnDecodeChain(b testing.TB, fp8 bool, rows, ctx int, spread bool) (*rig, []op, float64) {
	s := testShapes()["llama-8b"]
	s.KVFP8, s.NumPages = fp8, rows*ctx/s.Page // the other sizes are one for all, and so is the compilation
	s.Layers = int(max(2, 1<<30/s.layerKVBytes()))
	r := newRig(b, s)
	pages, slots, ctxs := make([]int32, rows*s.MaxPages), make([]int32, rows), make([]int32, rows)
	for i, p := range r.random.Perm(s.NumPages) {
		pages[i/(ctx/s.Page)*s.MaxPages+i%(ctx/s.Page)] = int32(p)
	}
	tokens := 0.0
	for i := range slots {
		slots[i], ctxs[i] = int32(i), int32(ctx)
		if spread {
			ctxs[i] = int32(ctx * (i*37%rows + 1) / rows)
		}
		tokens += float64(ctxs[i])
	}
	kvBytes := int64(s.Layers) * s.layerKVBytes()
	kv, err := driver.Alloc(kvBytes)
	require.NoError(b, err)
	b.Cleanup(func() { require.NoError(b, driver.Free(kv)) })
	require.NoError(b, driver.Memset(kv, 0x3C, kvBytes, r.stream))
	bufs := &buffers{QKV: r.putBF16(r.normal(rows*s.qkvDim(), 1)), KV: kv, Att: r.room(2 * rows * s.qDim()), Rope: put(r, make([]float32, ctx*s.Dim)), RowSlot: put(r, slots),
		RowCtx: put(r, ctxs), PageTable: put(r, pages), AttnScratch: put(r, make([]byte, attnScratchBytes(r.device, s)))}
	ops := make([]op, s.Layers)
	for i := range ops {
		ops[i] = attnDecodeOp(r.device, s, bufs, layerWeights{}, i, rows)
		ops[i].PDL = false
	}
	return r, ops, tokens * float64(2*s.kvDim()) * float64(s.kvBytes())
}

// timeAll is the time of one of ops, launched one behind the other in a graph: the median of several such runs, microseconds.
func (r *rig) timeAll(b *testing.B, ops []op) float64 {
	b.Helper()
	before, err := driver.NewEvent()
	require.NoError(b, err)
	after, err := driver.NewEvent()
	require.NoError(b, err)
	r.run(ops...)
	graph, err := driver.Capture(r.stream, func() error { r.enqueue(ops...); return nil })
	require.NoError(b, err)
	defer func() { require.NoError(b, graph.Destroy()) }()
	var all []float64
	for i := range max(b.N, 5) + 1 {
		require.NoError(b, before.Record(r.stream))
		require.NoError(b, r.context.Launch(graph, r.stream))
		require.NoError(b, after.Record(r.stream))
		require.NoError(b, after.Synchronize())
		ms, err := before.Milliseconds(after)
		require.NoError(b, err)
		if i > 0 {
			all = append(all, ms*1e3/float64(len(ops)))
		}
	}
	slices.Sort(all)
	return all[len(all)/2]
}
