//go:build cuda

package cuda

import (
	"fmt"
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
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 32, MaxTokens: 8192, MaxContext: 16384, MemFraction: 0.9, SimulateUniformExperts: true}, set)
	fmt.Printf("qwen3-30b-a3b on %s: open %v, read %.3f TB/s, room for %d tokens of context\n", be.Info().Device, time.Since(began).Round(time.Millisecond),
		*be.Info().ReadBandwidth/1e12, be.Info().NumPages*be.Info().PageSize)
	return be
}

// BenchmarkMixture times Qwen3-30B-A3B's shape with dummy weights and experts chosen evenly: decode steps against the floor of what their rows are
// expected to read (backend.Info.StepWeightBytes) and prompts; each kernel in a chain of its own kind; the tiles of moe_gemm_sm90; and where a step's
// time goes.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench Mixture -benchtime 1x
func BenchmarkMixture(b *testing.B) {
	b.Run("steps", func(b *testing.B) {
		be := openMixture(b, settings{})
		for _, rows := range []int{1, 2, 4, 8, 16, 32} {
			b.Run(fmt.Sprintf("rows=%d", rows), func(b *testing.B) { decodeSteps(b, be, "qwen3-30b-a3b", rows, 512, 60) })
		}
		for _, n := range []int{512, 2048, 8192} {
			b.Run(fmt.Sprintf("prompt=%d", n), func(b *testing.B) {
				var times []time.Duration
				for range 6 {
					_, d := staticBatch(b, be, 1, n, 64)
					times = append(times, d)
				}
				fmt.Printf("prefill qwen3-30b-a3b in=%d: %v, %.0f tok/s\n", n, median(times), float64(n)/median(times).Seconds())
			})
		}
	})
	b.Run("kernels", func(b *testing.B) {
		be := openMixture(b, settings{})
		own(b, be.context)
		for _, rows := range []int{1, 8, 32} {
			decode, _ := staticBatch(b, be, rows, 512, 256)
			mixtureStep(b, be, &decode)
			kernelTable(b, be, "qwen3-30b-a3b", rows)
		}
		staticBatch(b, be, 1, 2048, 64)
		prefillTable(b, be, 2048)
	})
	b.Run("tiles", func(b *testing.B) {
		be := openMixture(b, settings{})
		for _, n := range []int{32, 128, 512, 2048} {
			b.Run(fmt.Sprintf("tokens=%d", n), func(b *testing.B) {
				own(b, be.context)
				staticBatch(b, be, 1, n, 64)
				tiles(b, be, n)
			})
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

// prefillTable times each kind of kernel of a prompt's step, those of all layers one behind the other.
func prefillTable(b *testing.B, be *Backend, n int) {
	var names []string
	chains := map[string][]node{}
	for _, node := range be.planner.step(stepShape{rows: 1, tokens: n, samples: 1, longest: n}.padded(), hooks{}) {
		name := ""
		switch {
		case node.op != nil:
			name = node.op.Name
		case node.gemm != nil:
			name = node.gemm.Name
		}
		if chains[name] == nil {
			names = append(names, name)
		}
		chains[name] = append(chains[name], node)
	}
	for _, name := range names {
		us := chainTime(b, be, chains[name])
		fmt.Printf("prefill in=%d %s: %.1f us, %.2f ms a step\n", n, name, us, us*float64(len(chains[name]))/1e3)
	}
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
	for _, t := range []moeTile{{128, 32}, {128, 64}, {256, 64}, {128, 128}, {128, 256}, {256, 128}, {256, 160}} {
		if t.tokens > 2*m || m > 1000 && t.tokens < 64 {
			continue // far from what such a step wants
		}
		for name, of := range map[string]func(layerWeights) op{
			"gate_up": func(l layerWeights) op { return moeGEMMGateUpOp(be.device, be.shape, &be.buffers, l, m, t) },
			"down":    func(l layerWeights) op { return moeGEMMDownOp(be.device, be.shape, &be.buffers, l, m, t) },
		} {
			var chain []node
			for _, l := range be.planner.layers {
				chain = append(chain, nodesOf(of(l))...)
			}
			us := chainTime(b, be, chain)
			fmt.Printf("moe_gemm %s m=%d tile=%v: %.2f us, %.3f of read of the bytes expected, %.0f TFLOP/s\n", name, m, t, us,
				float64(chain[0].op.Bytes)/us*1e6 / *be.info.ReadBandwidth, float64(chain[0].op.FLOPs)/us/1e6)
		}
	}
}

// chainTime is the time of a node of the chain, which runs as a graph, in microseconds.
func chainTime(b *testing.B, be *Backend, chain []node) float64 {
	for i := range chain {
		require.NoError(b, be.ready(&chain[i]))
	}
	g, err := driver.Capture(be.stream, func() error { return be.enqueue(chain) })
	require.NoError(b, err)
	us := timeGraph(b, be, g, 3) * 1e3 / float64(len(chain))
	require.NoError(b, g.Destroy())
	return us
}
