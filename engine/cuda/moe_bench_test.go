//go:build cuda

package cuda

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// qwen30BA3B is Qwen3-30B-A3B's shape.
func qwen30BA3B() *model.Config {
	return &model.Config{Architecture: "Qwen3MoeForCausalLM", Family: "qwen3_moe", DType: "bfloat16", HiddenSize: 2048, IntermediateSize: 6144, NumLayers: 48,
		NumHeads: 32, NumKVHeads: 4, HeadDim: 128, VocabSize: 151936, MaxPositions: 40960, RMSNormEps: 1e-6, RoPE: model.RoPE{Theta: 1e6, Factor: 1, AttentionFactor: 1},
		QKNorm: true, NumExperts: 128, NumExpertsPerToken: 8, MoEIntermediateSize: 768, NormTopKProb: true}
}

func openMixture(b *testing.B, set settings) *Backend {
	cfg := qwen30BA3B()
	began := time.Now()
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 32, MaxTokens: 2048, MaxContext: 4096, MemFraction: 0.95, SimulateUniformExperts: true}, set)
	fmt.Printf("qwen3-30b-a3b on %s: open %v, read %.3f TB/s, room for %d tokens of context\n", be.Info().Device, time.Since(began).Round(time.Millisecond),
		*be.Info().ReadBandwidth/1e12, be.Info().NumPages*be.Info().PageSize)
	return be
}

// BenchmarkMixture times Qwen3-30B-A3B's shape with dummy weights and experts chosen evenly: decode against the floor of what its rows are
// expected to read (backend.Info.StepWeightBytes), a prompt, and each kernel in a chain of its own kind.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench Mixture -benchtime 1x
func BenchmarkMixture(b *testing.B) {
	const steps = 40
	b.Run("steps", func(b *testing.B) {
		be := openMixture(b, settings{})
		for _, rows := range []int{1, 8, 32} {
			decodeSteps(b, be, "qwen3-30b-a3b", rows, 512, steps)
		}
		var times []time.Duration
		for range 4 {
			_, d := staticBatch(b, be, 1, 2048, 64)
			times = append(times, d)
		}
		fmt.Printf("prefill qwen3-30b-a3b in=2048: %v, %.0f tok/s\n", median(times), 2048/median(times).Seconds())
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		require.NoError(b, be.context.Bind())
		tiles(b, be, 2048)
		for _, rows := range []int{1, 8, 32} {
			decode, _ := staticBatch(b, be, rows, 512, 256)
			mixtureStep(b, be, &decode)
			kernelTable(b, be, "qwen3-30b-a3b", rows)
			for _, blocks := range []int{1, 2} {
				if rows <= gemvRows {
					mixtureChain(b, be, fmt.Sprintf("moe_gate_up rows=%d blocks=%d", rows, blocks), func(l layerWeights) op {
						return moeGateUpBlocks(be.device, be.shape, &be.buffers, l, rows, blocks)
					})
				}
			}
			if rows > gemvRows {
				tiles(b, be, rows)
			}
		}
	})
	b.Run("ahead=0", func(b *testing.B) {
		be := openMixture(b, settings{noAhead: true})
		for _, rows := range []int{1, 8} {
			decodeSteps(b, be, "qwen3-30b-a3b, nothing ahead", rows, 512, steps)
		}
	})
	b.Run("timeline", func(b *testing.B) {
		be := openMixture(b, settings{stamps: true})
		for _, rows := range []int{1, 8, 32} {
			decode, _ := staticBatch(b, be, rows, 512, 128)
			timeline(b, be, decode)
		}
	})
}

// mixtureStep runs a decode step: the chains that follow use its routing.
func mixtureStep(b *testing.B, be *Backend, decode *backend.Batch) {
	var out backend.Result
	id, err := be.Launch(decode)
	require.NoError(b, err)
	require.NoError(b, be.Wait(id, &out))
}

// tiles tries the tiles of moe_gemm_sm90 on the routing of the last step, which had m tokens.
func tiles(b *testing.B, be *Backend, m int) {
	for _, t := range []moeTile{{128, 32}, {128, 64}, {256, 64}, {128, 128}, {256, 128}} {
		if t.tokens > 2*m || m > 1000 && t.tokens < 64 {
			continue // far from what such a step wants
		}
		mixtureChain(b, be, fmt.Sprintf("moe_gemm gate_up m=%d tile=%dx%d", m, t.rows, t.tokens), func(l layerWeights) op {
			return moeGEMMGateUpOp(be.device, be.shape, &be.buffers, l, m, t)
		})
		mixtureChain(b, be, fmt.Sprintf("moe_gemm down m=%d tile=%dx%d", m, t.rows, t.tokens), func(l layerWeights) op {
			return moeGEMMDownOp(be.device, be.shape, &be.buffers, l, m, t)
		})
	}
}

// mixtureChain times an op of each layer, one behind the other, as a graph.
func mixtureChain(b *testing.B, be *Backend, name string, of func(layerWeights) op) {
	var chain []node
	for _, l := range be.planner.layers {
		chain = append(chain, nodesOf(of(l))...)
	}
	for i := range chain {
		require.NoError(b, be.ready(&chain[i]))
	}
	g, err := driver.Capture(be.stream, func() error { return be.enqueue(chain) })
	require.NoError(b, err)
	us := timeGraph(b, be, g, 2) * 1e3 / float64(len(chain))
	fmt.Printf("chain %s: %.2f us, %.3f of read of the bytes expected, %.0f TFLOP/s\n", name, us, float64(chain[0].op.Bytes)/us*1e6 / *be.info.ReadBandwidth, float64(chain[0].op.FLOPs)/us/1e6)
	require.NoError(b, g.Destroy())
}
