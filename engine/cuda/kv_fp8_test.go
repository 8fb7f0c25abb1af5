//go:build cuda

package cuda

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// fp8KVTolerance is what another order of sums may change of a log probability where the cache holds e4m3: a rounding of bf16 that tips an
// element of K or V to its other neighbour moves it by 2^-3 of itself instead of 2^-8. One element in 16 tips (the bf16 error is 2^-4 of the
// distance), out of 64 in a score: errors of log probabilities grow by about 2^4/sqrt(16) = 4 on those of bf16Tolerance.
const fp8KVTolerance = 4 * bf16Tolerance

func TestConformanceOfFP8Cache(t *testing.T) {
	needGPU(t)
	backendtest.Run(t, backendtest.Suite{
		Open: func(cfg *model.Config, w *weights.Store, o backend.Options) (backend.Backend, error) {
			return Open(cfg, w, o)
		},
		Options: backend.Options{KVDType: kvFP8}, PageSizes: []int{64, 16}, Tolerance: fp8KVTolerance,
	})
}

// TestFP8CacheAccuracy compares an e4m3 cache with a bf16 one by the mean divergence of what they predict, teacher-forced, from the CPU's fp32:
// on the GPU it is no further from there than the CPU's own e4m3 cache, whose only rounding that is, and the bf16 cache's rounding on top.
func TestFP8CacheAccuracy(t *testing.T) {
	needGPU(t)
	for name, cfg := range backendtest.Models() {
		t.Run(name, func(t *testing.T) {
			w := weights.NewDummy(cfg)
			prompt := randomPrompt(7, 200, cfg.VocabSize)
			logits := func(open func(o backend.Options) (backend.Backend, error), dtype string) [][]float32 {
				o := testOptions
				o.KVDType = dtype
				b, err := open(o)
				require.NoError(t, err)
				defer func() { require.NoError(t, b.Close()) }()
				var all [][]float32
				for n := 20; n <= len(prompt); n += 20 { // prefixes, each prefilled in two chunks and then two tokens decoded
					for _, row := range play(t, b, 0, prompt[:n], 128, 2, backend.Sampling{TopP: 1, RepetitionPenalty: 1, Bias: forced0}, true) {
						all = append(all, row.Logits)
					}
				}
				return all
			}
			onCPU := func(o backend.Options) (backend.Backend, error) { return cpu.Open(cfg, w, o) }
			onGPU := func(o backend.Options) (backend.Backend, error) { return Open(cfg, w, o) }
			exact := logits(onCPU, "float32")
			from := func(other [][]float32) (mean float64) {
				for i := range exact {
					mean += divergence(exact[i], other[i]) / float64(len(exact))
				}
				return mean
			}
			rounded, plain, got := from(logits(onCPU, kvFP8)), from(logits(onGPU, "bfloat16")), from(logits(onGPU, kvFP8))
			t.Logf("KL from fp32, nats: e4m3 cache on the CPU %.2e, bf16 cache on the GPU %.2e, e4m3 cache on the GPU %.2e", rounded, plain, got)
			assert.Less(t, got, 1.5*(rounded+plain), "divergence")
		})
	}
}

// forced0 has every sequence continue with token 0, so that all see the same context.
var forced0 = []backend.TokenBias{{Token: 0, Bias: 1e4}}

// BenchmarkDecodeKV times whole decode steps with either cache, one step ahead, against the floor of their bytes.
//
//	go test -tags cuda -run '^$' -bench BenchmarkDecodeKV -benchtime 1x ./engine/cuda
func BenchmarkDecodeKV(b *testing.B) {
	cfg := benchModels()["llama-8b"]
	for _, dtype := range []string{"bfloat16", kvFP8} {
		b.Run("model=llama-8b/kv="+dtype, func(b *testing.B) {
			be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 128, MaxTokens: 8192, MaxContext: 4096, MemFraction: 0.9, KVDType: dtype}, settings{})
			decodeCase(b, be, "llama-8b kv="+dtype, 128, 1024)
		})
	}
}
