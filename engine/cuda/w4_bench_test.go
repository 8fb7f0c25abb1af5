//go:build cuda

package cuda

import (
	"fmt"
	"maps"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func openInt4Bench(b *testing.B, set settings) *Backend {
	cfg := *benchModels()["llama-8b"]
	cfg.Quantization = &model.Quantization{Method: "awq", Scheme: "int4", Granularity: "group", GroupSize: 128}
	be := openTest(b, &cfg, weights.NewDummy(&cfg), backend.Options{MaxRows: 64, MaxTokens: 8192, MaxContext: 16384, MemFraction: 0.6, Quantization: "int4"}, set)
	b.Logf("%s, read %.3f TB/s, weights %.3f GB", be.Info().Device, *be.Info().ReadBandwidth/1e12, float64(be.Info().WeightBytes)/1e9)
	return be
}

// BenchmarkDecodeInt4 is BenchmarkDecode with weights of four bits in groups of 128; the head is bf16, as checkpoints have it. The floor counts
// the bytes that are there.
func BenchmarkDecodeInt4(b *testing.B) {
	be := openInt4Bench(b, settings{})
	for _, rows := range []int{1, 2, 4, 8, 16, 32, 64} {
		decodeCase(b, be, "llama-8b-int4", rows, 512)
	}
}

// BenchmarkInt4Timeline is BenchmarkTimeline of BenchmarkDecodeInt4's steps.
func BenchmarkInt4Timeline(b *testing.B) {
	be := openInt4Bench(b, settings{stamps: true})
	for _, rows := range []int{1, 8, 16, 32} {
		decode, _ := staticBatch(b, be, rows, 512, 128)
		timeline(b, be, decode)
	}
}

// BenchmarkInt4Products times each way to run each product of a layer, in a chain through all layers' weights: what productInt4 and the tiles go by.
func BenchmarkInt4Products(b *testing.B) {
	be := openInt4Bench(b, settings{})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(b, be.context.Bind())
	p, d := be.planner, be.planner.device
	products := map[string]func(l layerWeights, m int) product{
		"qkv": func(l layerWeights, m int) product {
			return product{linear: p.shape.qkv(m), w: l.WQKV, x: p.buffers.X, gamma: l.Norm1, bias: l.BQKV, y: p.buffers.QKV}
		},
		"o": func(l layerWeights, m int) product {
			return product{linear: p.shape.o(m), w: l.WO, x: p.buffers.Att, y: p.buffers.X}
		},
		"gate_up": func(l layerWeights, m int) product {
			return product{linear: p.shape.gateUp(m), w: l.WGU, x: p.buffers.X, gamma: l.Norm2, y: p.buffers.Act}
		},
		"down": func(l layerWeights, m int) product {
			return product{linear: p.shape.down(m), w: l.WDown, x: p.buffers.Act, y: p.buffers.X}
		},
	}
	type way struct {
		name  string
		chain []node
	}
	var ways []way
	var units []unit
	for _, m := range []int{1, 4, 8, 16, 32, 64} {
		for name, of := range products {
			add := func(kernel string, op func(g product) op) {
				w := way{name: fmt.Sprintf("%s rows=%d %s", name, m, kernel)}
				for _, l := range p.layers {
					w.chain = append(w.chain, nodesOf(op(of(l, m)))...)
				}
				ways, units = append(ways, w), append(units, w.chain[0].op.Unit)
			}
			g := of(p.layers[0], m)
			if t, ok := g.w4GemvTile(d, g.w.Group); ok {
				add("w4_gemv", func(g product) op { return g.w4GemvOp(d, t) })
			}
			add("w4_gemm", func(g product) op { return g.w4GEMMOp(d, p.buffers) })
			for _, t := range g.w4GEMM90Tiles(d, g.w.Group) {
				add(fmt.Sprintf("w4_gemm_sm90 %+v", t), func(g product) op { return g.w4GEMM90Call(d, t).op() })
			}
		}
	}
	code, err := be.compiler.all(units, nil)
	require.NoError(b, err)
	maps.Copy(be.code, code)
	for _, w := range ways {
		for i := range w.chain {
			require.NoError(b, be.ready(&w.chain[i]))
		}
		g, err := driver.Capture(be.stream, func() error { return be.enqueue(w.chain) })
		require.NoError(b, err)
		fmt.Printf("product %s: %.2f us\n", w.name, timeGraph(b, be, g, 10)*1e3/float64(len(w.chain)))
		require.NoError(b, g.Destroy())
	}
}

// BenchmarkPrefillInt4 times one prompt in one step.
func BenchmarkPrefillInt4(b *testing.B) {
	be := openInt4Bench(b, settings{})
	for _, n := range []int{128, 512, 2048} {
		for range 3 {
			_, d := staticBatch(b, be, 1, n, 64)
			fmt.Printf("prefill llama-8b-int4 in=%d: %v\n", n, d)
		}
	}
}
