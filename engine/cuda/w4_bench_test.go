//go:build cuda

package cuda

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func openInt4Bench(b *testing.B) *Backend {
	cfg := *benchModels()["llama-8b"]
	cfg.Quantization = &model.Quantization{Method: "awq", Scheme: "int4", Granularity: "group", GroupSize: 128}
	be := openTest(b, &cfg, weights.NewDummy(&cfg), backend.Options{MaxRows: 64, MaxTokens: 8192, MaxContext: 16384, MemFraction: 0.6, Quantization: "int4"}, settings{})
	b.Logf("%s, read %.3f TB/s, weights %.3f GB", be.Info().Device, *be.Info().ReadBandwidth/1e12, float64(be.Info().WeightBytes)/1e9)
	return be
}

// BenchmarkDecodeInt4 is BenchmarkDecode with weights of four bits in groups of 128; the head is bf16, as checkpoints have it. The floor counts
// the bytes that are there.
func BenchmarkDecodeInt4(b *testing.B) {
	be := openInt4Bench(b)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, rows := range []int{1, 8, 16, 32} {
		decodeCase(b, be, "llama-8b-int4", rows, 512)
		require.NoError(b, be.context.Bind())
		kernelTable(b, be, "llama-8b-int4", rows)
	}
}

// BenchmarkPrefillInt4 times one prompt in one step.
func BenchmarkPrefillInt4(b *testing.B) {
	be := openInt4Bench(b)
	for _, n := range []int{128, 512, 2048} {
		for range 3 {
			_, d := staticBatch(b, be, 1, n, 64)
			fmt.Printf("prefill llama-8b-int4 in=%d: %v\n", n, d)
		}
	}
}
