//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestW4Chain holds that w4_gemv's chains of products have the bits of the same products one by one, three times over, and leave their counters at zero.
func TestW4Chain(t *testing.T) {
	r := newRig(t, testShapes()["llama-8b"])
	for _, c := range []struct{ hidden, inter, qkv, tokens int }{{1024, 2304, 640, 1}, {1024, 2304, 640, 7}, {1024, 2304, 640, 16}, {512, 14336, 48, 3}, {512, 14336, 48, 8}, {4096, 14336, 6144, 7}, {4096, 4096, 6144, 2}, {4096, 4096, 6144, 9}} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			r := r.in(t)
			matrix := func(n, k int) weight {
				data, scales := encodeAll(int4Tensor(r.random, n, k, w4Step, true))
				return weight{Format: formatInt4, Data: put(r, data), Scales: put(r, scales), Group: w4Step}
			}
			att, stream := r.normal(c.tokens*c.hidden, 1), r.normal(c.tokens*c.hidden, 1)
			gamma, bias := r.putBF16(r.normal(c.hidden, 1)), r.putBF16(r.normal(c.qkv, 1))
			products := []product{
				{linear: linear{name: "o", m: c.tokens, n: c.hidden, k: c.hidden, end: epilogueResidual}, w: matrix(c.hidden, c.hidden), x: r.putBF16(att)},
				{linear: linear{name: "gate_up", m: c.tokens, n: 2 * c.inter, k: c.hidden, norm: true, end: epilogueSwiGLU}, w: matrix(2*c.inter, c.hidden), gamma: gamma},
				{linear: linear{name: "down", m: c.tokens, n: c.hidden, k: c.inter, end: epilogueResidual}, w: matrix(c.hidden, c.inter)},
				{linear: linear{name: "qkv", m: c.tokens, n: c.qkv, k: c.hidden, norm: true, end: epilogueBias}, w: matrix(c.qkv, c.hidden), gamma: gamma, bias: bias},
			}
			p := &planner{device: r.device, shape: r.shape, buffers: &buffers{W4Arrived: put(r, make([]uint32, w4Counters+w4GemvCounters))}}
			run := func(link bool) (out [3][]uint16) {
				x, act, qkv := r.putBF16(stream), r.room(c.tokens*c.inter*bf16Bytes), r.room(c.tokens*c.qkv*bf16Bytes)
				var nodes []node
				for i, g := range products {
					g.y = []ptr{x, act, x, qkv}[i]
					if i > 0 {
						g.x = []ptr{0, x, act, x}[i]
					}
					call, ok := p.w4GemvCall(g)
					require.True(t, ok)
					nodes = append(nodes, node{own: call})
				}
				if link {
					nodes = p.linkInt4(nodes)
					require.Less(t, len(nodes), len(products), "nothing is chained")
				}
				var ops []op
				for _, n := range p.linkGEMMs(nodes) {
					ops = append(ops, *n.op)
				}
				r.prepare(ops...)
				r.run(ops...)
				return [3][]uint16{get[uint16](r, x, c.tokens*c.hidden), get[uint16](r, act, c.tokens*c.inter), get[uint16](r, qkv, c.tokens*c.qkv)}
			}
			want := run(false)
			for range 3 {
				require.Equal(t, want, run(true))
				require.Equal(t, make([]uint32, w4Counters+w4GemvCounters), get[uint32](r, p.buffers.W4Arrived, w4Counters+w4GemvCounters))
			}
		})
	}
}
