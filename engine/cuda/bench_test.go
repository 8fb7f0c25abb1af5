//go:build cuda

package cuda

import (
	"fmt"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// benchModels are the shapes that speed is stated for, with dummy weights.
func benchModels() map[string]*model.Config {
	llama3 := model.RoPE{Theta: 500000, Factor: 8, AttentionFactor: 1, Scaling: "llama3", LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 8192}
	big := &model.Config{Architecture: "LlamaForCausalLM", Family: "llama", DType: "bfloat16", HiddenSize: 4096, IntermediateSize: 14336, NumLayers: 32,
		NumHeads: 32, NumKVHeads: 8, HeadDim: 128, VocabSize: 128256, MaxPositions: 131072, RMSNormEps: 1e-5, RoPE: llama3}
	small := *big
	small.HiddenSize, small.IntermediateSize, small.NumLayers, small.HeadDim, small.TieEmbeddings = 2048, 8192, 16, 64, true
	small.RoPE.Factor = 32
	return map[string]*model.Config{"llama-8b": big, "llama-1b": &small}
}

func openBench(b testing.TB, name string) *Backend {
	cfg := benchModels()[name]
	began := time.Now()
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 64, MaxTokens: 8192, MaxContext: 16384, MemFraction: 0.6}, settings{})
	st := be.Stats()
	b.Logf("%s on %s: open %v (in it %v), %d kernels compiled, %d from the cache, read %.3f TB/s, %d pages", name, be.Info().Device,
		time.Since(began).Round(time.Millisecond), st.OpenTime.Round(time.Millisecond), st.CompiledKernels, st.CachedKernels, *be.Info().ReadBandwidth/1e12, be.Info().NumPages)
	return be
}

// staticBatch prefills rows prompts of n tokens and returns a decode batch for them.
func staticBatch(b testing.TB, be *Backend, rows, n, room int) (backend.Batch, time.Duration) {
	info := be.Info()
	per := (n + room + info.PageSize - 1) / info.PageSize
	var decode backend.Batch
	var out backend.Result
	began := time.Now()
	for i := range rows {
		pages := make([]int32, per)
		for j := range pages {
			pages[j] = int32(i*per + j)
		}
		r := backend.Row{Slot: i, Start: &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}}, Tokens: randomPrompt(uint64(i), n, info.VocabSize), Pages: pages, Sample: true}
		id, err := be.Launch(&backend.Batch{Rows: []backend.Row{r}})
		require.NoError(b, err)
		require.NoError(b, be.Wait(id, &out))
		require.False(b, out.Rows[0].NonFinite)
		decode.Rows = append(decode.Rows, backend.Row{Slot: i, Position: n, Pages: pages, Sample: true})
	}
	return decode, time.Since(began)
}

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

// BenchmarkDecode times decode steps, each awaited before the next (sync) and one ahead (overlap), against the floor of their
// bytes at the bandwidth measured at start.
func BenchmarkDecode(b *testing.B) {
	for _, name := range []string{"llama-8b", "llama-1b"} {
		b.Run("model="+name, func(b *testing.B) {
			be := openBench(b, name)
			for _, c := range []struct{ rows, in int }{{1, 512}, {8, 512}, {16, 512}, {32, 512}, {1, 8192}} {
				decodeCase(b, be, name, c.rows, c.in)
			}
		})
	}
}

func decodeCase(b *testing.B, be *Backend, name string, rows, in int) {
	decodeSteps(b, be, name, rows, in, 100)
}

func decodeSteps(b *testing.B, be *Backend, name string, rows, in, steps int) {
	info := be.Info()
	decode, prefill := staticBatch(b, be, rows, in, 256)
	var out backend.Result
	times := make([]time.Duration, 0, steps)
	for range steps {
		began := time.Now()
		id, err := be.Launch(&decode)
		require.NoError(b, err)
		require.NoError(b, be.Wait(id, &out))
		times = append(times, time.Since(began))
		for i := range decode.Rows {
			decode.Rows[i].Position++
		}
	}
	syncTime := median(times[10:])
	var last backend.StepID
	began := time.Now()
	for s := range steps {
		id, err := be.Launch(&decode)
		require.NoError(b, err)
		if s > 0 {
			require.NoError(b, be.Wait(last, &out))
		}
		last = id
		for i := range decode.Rows {
			decode.Rows[i].Position++
		}
	}
	require.NoError(b, be.Wait(last, &out))
	overlap := time.Since(began) / time.Duration(steps)
	ctx := in + steps
	bytes := info.StepWeightBytes(rows) + float64(rows)*float64(ctx+1)*float64(info.KVBytesPerToken)
	floor := time.Duration(bytes / *info.ReadBandwidth * 1e9)
	fmt.Printf("decode %s batch=%d in=%d: step %v sync, %v overlapped; floor %v = %.3f / %.3f of it; prefill %v\n", name, rows, in, syncTime, overlap, floor,
		float64(floor)/float64(syncTime), float64(floor)/float64(overlap), prefill/time.Duration(rows))
}

// BenchmarkPrefill times one prompt in one step.
func BenchmarkPrefill(b *testing.B) {
	for _, name := range []string{"llama-8b", "llama-1b"} {
		b.Run("model="+name, func(b *testing.B) {
			be := openBench(b, name)
			for _, n := range []int{128, 512, 2048, 8192} {
				var times []time.Duration
				for range 4 {
					_, d := staticBatch(b, be, 1, n, 64)
					times = append(times, d)
				}
				fmt.Printf("prefill %s in=%d: %v, %.0f tok/s\n", name, n, median(times), float64(n)/median(times).Seconds())
			}
		})
	}
}

// BenchmarkKernels times each kernel of a decode step in a chain of its own kind: all layers' in a row, as a graph, so that
// weights are cold. What overlaps between different kinds is not seen here.
func BenchmarkKernels(b *testing.B) {
	for _, name := range []string{"llama-8b", "llama-1b"} {
		be := openBench(b, name)
		runtime.LockOSThread()
		require.NoError(b, be.context.Bind())
		for _, rows := range []int{1, 8, 16} {
			staticBatch(b, be, rows, 512, 256)
			kernelTable(b, be, name, rows)
		}
		runtime.UnlockOSThread()
	}
}

func kernelTable(b *testing.B, be *Backend, name string, rows int) {
	nodes := be.planner.step(stepShape{rows: rows, decode: rows, tokens: rows, samples: rows}.padded(), hooks{})
	var names []string
	chains := map[string][]node{}
	for _, n := range nodes {
		if n.op == nil || n.op.Name == "sample_fast" || n.op.Name == "publish" || n.op.Name == "advance" {
			continue
		}
		if chains[n.op.Name] == nil {
			names = append(names, n.op.Name)
		}
		chains[n.op.Name] = append(chains[n.op.Name], n)
	}
	for _, k := range names {
		chain := chains[k]
		for len(chain) < 4 {
			chain = append(chain, chain[0])
		}
		for i := range chain {
			require.NoError(b, be.ready(&chain[i]))
		}
		g, err := driver.Capture(be.stream, func() error { return be.enqueue(chain) })
		require.NoError(b, err)
		us := timeGraph(b, be, g, 20) * 1e3 / float64(len(chain))
		o := chain[0].op
		gbs := float64(o.Bytes) / us / 1e3
		fmt.Printf("kernel %s rows=%d %-14s grid %v block %d smem %d: %7.2f us, %6.0f GB/s, %.3f of read; %s\n", name, rows, k, o.Grid, o.Block, o.Smem, us, gbs,
			gbs*1e9 / *be.info.ReadBandwidth, o.Unit.Defines)
		require.NoError(b, g.Destroy())
	}
}

// timeGraph is the median time of a replay, milliseconds.
func timeGraph(b *testing.B, be *Backend, g *driver.Graph, n int) float64 {
	begin, err := driver.NewEvent()
	require.NoError(b, err)
	end, err := driver.NewEvent()
	require.NoError(b, err)
	defer begin.Destroy()
	defer end.Destroy()
	var times []float64
	for range n {
		require.NoError(b, begin.Record(be.stream))
		for range 3 {
			require.NoError(b, be.context.Launch(g, be.stream))
		}
		require.NoError(b, end.Record(be.stream))
		require.NoError(b, end.Synchronize())
		ms, err := begin.Milliseconds(end)
		require.NoError(b, err)
		times = append(times, ms/3)
	}
	slices.Sort(times)
	return times[len(times)/2]
}

// BenchmarkGEMM times cuBLASLt's choice on the shapes of a layer, weights cold.
func BenchmarkGEMM(b *testing.B) {
	be := openBench(b, "llama-8b")
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(b, be.context.Bind())
	for _, m := range []int{24, 32, 64, 128, 256, 2048} {
		for _, n := range be.planner.layer(stepShape{rows: 1, tokens: m, longest: m}, 0, be.planner.layers[0]) {
			if n.gemm == nil {
				continue
			}
			var weights []ptr
			for i := range be.planner.layers {
				for _, other := range be.planner.layer(stepShape{rows: 1, tokens: m, longest: m}, i, be.planner.layers[i]) {
					if g := other.gemm; g != nil && g.N == n.gemm.N && g.K == n.gemm.K {
						weights = append(weights, g.W)
					}
				}
			}
			run := func() float64 {
				require.NoError(b, be.blas.Plan(*n.gemm))
				g, err := driver.Capture(be.stream, func() error {
					for _, w := range weights {
						p := *n.gemm
						p.W = w
						if err := be.blas.Run(p, be.stream); err != nil {
							return err
						}
					}
					return nil
				})
				require.NoError(b, err)
				us := timeGraph(b, be, g, 5) * 1e3 / float64(len(weights))
				require.NoError(b, g.Destroy())
				return us
			}
			us := run()
			bytes := float64(n.gemm.N) * float64(n.gemm.K) * 2
			fmt.Printf("gemm M=%d N=%d K=%d: %.1f us = %.3f of read, %.0f TFLOP/s\n", m, n.gemm.N, n.gemm.K, us,
				bytes/us*1e6 / *be.info.ReadBandwidth, 2*float64(m)*float64(n.gemm.N)*float64(n.gemm.K)/us/1e6)
		}
	}
}
