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
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// BenchmarkLarge times gemm_large_sm90's tiles on the products of a layer of 8B, and its head's, beside cuBLASLt (for gate_up with silu_mul behind it, which the
// tiles have in their epilogue), in turn: chains of one product over weights that differ, in a graph.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench 'Large$' -benchtime 1x
func BenchmarkLarge(b *testing.B) {
	const chainBytes, rounds, most = 1100 << 20, 5, 8192
	s := testShapes()["llama-8b"]
	r := newRig(b, s)
	if r.device.SM != 90 {
		b.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
	}
	w, x, y, gu := r.room(chainBytes), r.room(most*s.Inter*bf16Bytes), r.room(most*s.Inter*bf16Bytes), r.room(2*most*s.Inter*bf16Bytes)
	dummy := func(p ptr, bytes int) op {
		return fillOp(r.device, p, &weights.Tensor{Shape: []int{bytes / 8192, 4096}, Dummy: &weights.Dummy{Seed: 7, Scale: 0.02}}, rowsInOrder)
	}
	r.run(dummy(w, chainBytes), dummy(x, most*s.Inter*bf16Bytes))
	blas, err := driver.OpenBlasLt(r.room(blasWorkspaceBytes), blasWorkspaceBytes)
	require.NoError(b, err)
	defer blas.Close()

	type variant struct {
		name  string
		l     linear
		graph *driver.Graph
		times []float64
	}
	tokens := []int{192, 256, 512, 1024, 2048, most}
	tilesOf := func(l linear) []largeTile { // the best without its lead too, and clusters of four
		best := l.largeTile(r.device)
		best.lead = 0
		tiles := append(l.largeTiles(r.device), best, largeTile{256, 1, 2, largeLead})
		if rows := pad(ceilDiv(l.n, 2*max(1, gemmCTAs(r.device, 4)/4/ceilDiv(l.m, largeTokens))), 16); rows < 256 {
			tiles = append(tiles, largeTile{rows, 1, 2, largeLead}) // a tile for each cluster
		}
		return slices.Compact(tiles)
	}
	products := func(m int) []linear {
		all := []linear{s.qkv(m), s.o(m), s.gateUp(m), s.down(m)}
		if m <= s.MaxRows {
			all = append(all, headLinear(s, m, true))
		}
		return all
	}
	ops := []op{siluMulOp(r.device, s, &buffers{}, 1)}
	for _, m := range tokens {
		for _, l := range products(m) {
			for _, t := range tilesOf(l) {
				ops = append(ops, l.callLarge(r.device, t, 0, 0, largeParams{}).op())
			}
		}
	}
	r.prepare(ops...)
	for _, m := range tokens {
		for _, l := range products(m) {
			bytes := l.n * l.k * bf16Bytes
			links := 2
			if m < 2048 {
				links = max(1, min(8, chainBytes/bytes))
			}
			var variants []*variant
			add := func(name string, link func(w ptr) []node) {
				var chain []node
				for i := range links {
					chain = append(chain, link(w+ptr(i%(chainBytes/bytes)*bytes))...)
				}
				run := func() error {
					for _, n := range chain {
						if n.op != nil {
							r.enqueue(*n.op)
						} else if err := blas.Run(*n.gemm, r.stream); err != nil {
							return err
						}
					}
					return nil
				}
				require.NoError(b, run())
				require.NoError(b, r.stream.Synchronize())
				g, err := driver.Capture(r.stream, run)
				require.NoError(b, err)
				variants = append(variants, &variant{name: name, l: l, graph: g})
			}
			add("cuBLASLt", func(w ptr) []node {
				g := &driver.GEMM{M: m, N: l.n, K: l.k, W: w, X: x, Y: y, Accumulate: l.end == epilogueResidual, F32: l.end == epilogueHeadLogits}
				if l.end != epilogueSwiGLU {
					return []node{{gemm: g}}
				}
				g.Y = gu
				silu := siluMulOp(r.device, s, &buffers{GU: gu, Act: y}, m)
				silu.PDL = false
				return []node{{gemm: g}, {op: &silu}}
			})
			for _, t := range tilesOf(l) {
				name := fmt.Sprintf("rows=%d split=%d wide=%d lead=%d", t.rows, t.split, t.wide, t.lead)
				if t == l.largeTile(r.device) {
					name += " chosen"
				}
				add(name, func(w ptr) []node { return nodesOf(l.callLarge(r.device, t, w, x, largeParams{Y: y, Logits: y}).op()) })
			}
			for range rounds {
				for _, v := range variants {
					v.times = append(v.times, r.timeGraph(b, v.graph, 1)*1e3/float64(links))
				}
			}
			for _, v := range variants {
				slices.Sort(v.times)
				us := v.times[rounds/2]
				fmt.Printf("large %s M=%d: %.1f us (%.1f-%.1f) = %.0f TFLOP/s; %s\n", l.name, m, us, v.times[0], v.times[rounds-1], 2*float64(m)*float64(l.n)*float64(l.k)/us/1e6, v.name)
				require.NoError(b, v.graph.Destroy())
			}
		}
	}
}

// largeChoices are which products gemm_large_sm90 takes in BenchmarkLargeSteps.
var largeChoices = []struct {
	name  string
	takes func(linear) bool
}{
	{"cuBLASLt", func(linear) bool { return false }},
	{"gate_up", func(l linear) bool { return l.end == epilogueSwiGLU }},
	{"all", largeAll},
}

// BenchmarkLargeSteps times whole prompts and decode steps of 8B with cuBLASLt and with gemm_large_sm90, in turn.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench LargeSteps -benchtime 1x
func BenchmarkLargeSteps(b *testing.B) {
	const rounds = 5
	cfg := benchModels()["llama-8b"]
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 256, MaxTokens: 8192, MaxContext: 8320, MemFraction: 0.85}, settings{large: largeAll})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	choose := func(takes func(linear) bool) {
		require.NoError(b, be.context.Bind())
		be.planner.large, be.copied.large = takes, takes
		for shape, g := range be.graphs {
			require.NoError(b, g.Destroy())
			delete(be.graphs, shape)
		}
		clear(be.seen)
		clear(be.eager)
	}
	for _, n := range []int{512, 2048, 8192} {
		times, launches := map[string][]time.Duration{}, 1
		if n <= promptGraphTokens {
			launches = 2 // it is a graph from the second time on
		}
		for round := range rounds + 1 { // the first compiles
			for _, c := range largeChoices {
				choose(c.takes)
				for i := range launches {
					_, d := staticBatch(b, be, 1, n, 64)
					if round > 0 && i == launches-1 {
						times[c.name] = append(times[c.name], d)
					}
				}
			}
		}
		for _, c := range largeChoices {
			fmt.Printf("prefill llama-8b in=%d: %v, fastest %v, %.0f tok/s; %s\n", n, median(times[c.name]), slices.Min(times[c.name]), float64(n)/median(times[c.name]).Seconds(), c.name)
		}
	}
	for _, rows := range []int{192, 256} {
		times := map[string][]time.Duration{}
		decode, _ := staticBatch(b, be, rows, 512, 256)
		for range rounds {
			for _, c := range largeChoices {
				choose(c.takes)
				for step := range 6 {
					began := time.Now()
					id, err := be.Launch(&decode)
					require.NoError(b, err)
					var out backend.Result
					require.NoError(b, be.Wait(id, &out))
					if step > 1 {
						times[c.name] = append(times[c.name], time.Since(began))
					}
					for i := range decode.Rows {
						decode.Rows[i].Position++
					}
				}
			}
		}
		for _, c := range largeChoices {
			fmt.Printf("decode llama-8b batch=%d in=512: %v, fastest %v; %s\n", rows, median(times[c.name]), slices.Min(times[c.name]), c.name)
		}
	}
}
