//go:build cuda

package cuda

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// TestEveryNodeIsKnownToProfilers holds that a plan tells of each of its operations what a trace shows: name, layer, bytes, and whose context
// attention reads. So a kernel that is new to a plan needs nothing anywhere else.
func TestEveryNodeIsKnownToProfilers(t *testing.T) {
	for name, s := range testShapes() {
		for _, format := range []weight{{}, {Format: formatFP8}, {Format: formatInt4, Group: 128}} {
			if format.Format != (weight{}).Format && (s.Hidden%128 != 0 || s.Inter%128 != 0 || s.MoE.Experts > 0) {
				continue
			}
			layer := layerWeights{WQKV: format, WO: format, WGU: format, WDown: format}
			for _, blas := range []bool{false, true} {
				s := s
				s.BlasFP8 = blas
				s.Dequantised = 1
				b := &Backend{shape: s, info: backend.Info{KVBytesPerToken: 1000 * int64(s.Layers)}}
				p := &planner{device: testDevices["sm_90"], shape: s, buffers: &buffers{}, layers: []layerWeights{layer, layer}, blasOnly: blas}
				for _, st := range []stepShape{{rows: 1, decode: 1, tokens: 1, samples: 1}, {rows: 32, decode: 32, tokens: 32, samples: 32}, {rows: 200, decode: 200, tokens: 200, samples: 200, full: true},
					{rows: 1, tokens: 1000, samples: 1, longest: 1000}, {rows: 3, decode: 2, tokens: 300, samples: 3, longest: 298},
					{rows: 8, decode: 8, tokens: 8, samples: 8, drafts: true}, {rows: 9, decode: 8, tokens: 38, samples: 8, longest: 30, drafts: true}} {
					planned := b.plannedOps(p.step(st.padded(), hooks{}), nil)
					context := map[contextOf]int{}
					layers := map[int]int{}
					for i, o := range planned {
						require.NotEmpty(t, o.op.Name, "%s %+v: operation %d", name, st, i)
						if o.op.Layer >= 0 {
							layers[o.op.Layer]++
							require.True(t, o.op.Bytes > 0 || o.context != noContext, "%s %+v: %s", name, st, o.op.Name)
						}
						context[o.context]++
					}
					require.Len(t, layers, 2, "%s %+v", name, st)
					require.Contains(t, []int{0, 1}, layers[0]-layers[1], "only the first layer's norm may be a kernel where products norm for each other")
					want := func(is bool) int {
						if is {
							return 2
						}
						return 0
					}
					require.Equal(t, want(st.decode > 0), context[contextOfDecode], "%s %+v", name, st)
					require.Equal(t, want(st.rows > st.decode), context[contextOfPrefill], "%s %+v", name, st)

					batch := &backend.Batch{Rows: []backend.Row{{Position: 99}, {Position: 10, Drafts: make([]int32, 3)}, {Position: 5, Tokens: make([]int32, 7)}}}
					for i, o := range b.withContext(batch, planned) {
						bytes, pairs := map[contextOf]int64{contextOfDecode: 114_000, contextOfPrefill: 12_000}[o.context], map[contextOf]int64{contextOfDecode: 100 + 4*10 + 10, contextOfPrefill: 7*5 + 28}[o.context]
						require.Equal(t, bytes, o.op.Bytes-planned[i].op.Bytes)
						require.Equal(t, pairs*4*int64(s.qDim()), o.op.FLOPs-planned[i].op.FLOPs)
					}
				}
			}
		}
	}
}
