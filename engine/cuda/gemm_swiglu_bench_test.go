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

// BenchmarkGEMMSwiGLU times gemm_swiglu_sm90's tiles on 8B's gate_up beside cuBLASLt with silu_mul behind it, in turn: chains over weights that
// differ, in a graph.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench 'GEMMSwiGLU$' -benchtime 1x
func BenchmarkGEMMSwiGLU(b *testing.B) {
	const links, rounds, most = 4, 5, 8192
	s := testShapes()["llama-8b"]
	r := newRig(b, s)
	if r.device.SM != 90 {
		b.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
	}
	bytes := 2 * s.Inter * s.Hidden * bf16Bytes
	w, x, y, gu := r.room(links*bytes), r.room(most*s.Hidden*bf16Bytes), r.room(most*s.Inter*bf16Bytes), r.room(2*most*s.Inter*bf16Bytes)
	dummy := func(p ptr, bytes int) op {
		return fillOp(r.device, p, &weights.Tensor{Shape: []int{bytes / 8192, 4096}, Dummy: &weights.Dummy{Seed: 7, Scale: 0.02}}, rowsInOrder)
	}
	r.run(dummy(w, links*bytes), dummy(x, most*s.Hidden*bf16Bytes))
	blas, err := driver.OpenBlasLt(r.room(blasWorkspaceBytes), blasWorkspaceBytes)
	require.NoError(b, err)
	defer blas.Close()
	for _, m := range []int{192, 256, 512, 1024, 2048, most} {
		l := s.gateUp(m)
		names, graphs, times := []string{}, []*driver.Graph{}, map[string][]float64{}
		add := func(name string, run func(w ptr) error) {
			chain := func() error {
				for i := range links {
					if err := run(w + ptr(i*bytes)); err != nil {
						return err
					}
				}
				return nil
			}
			require.NoError(b, chain()) // compiles, too
			require.NoError(b, r.stream.Synchronize())
			g, err := driver.Capture(r.stream, chain)
			require.NoError(b, err)
			names, graphs = append(names, name), append(graphs, g)
		}
		add("cuBLASLt and silu_mul", func(w ptr) error {
			if err := blas.Run(driver.GEMM{M: m, N: l.n, K: l.k, W: w, X: x, Y: gu}, r.stream); err != nil {
				return err
			}
			silu := siluMulOp(r.device, s, &buffers{GU: gu, Act: y}, m)
			silu.PDL = false
			r.enqueue(silu)
			return nil
		})
		for _, rows := range swigluRows {
			name := fmt.Sprintf("rows=%d", rows)
			if rows == l.swigluTile(r.device) {
				name += " chosen"
			}
			add(name, func(w ptr) error {
				r.enqueue(l.swigluOp(r.device, rows, w, x, y))
				return nil
			})
		}
		for range rounds {
			for i, g := range graphs {
				times[names[i]] = append(times[names[i]], r.timeGraph(b, g, 1)*1e3/links)
			}
		}
		for i, name := range names {
			us := slices.Sorted(slices.Values(times[name]))
			fmt.Printf("gate_up M=%d: %.1f us (%.1f-%.1f) = %.0f TFLOP/s; %s\n", m, us[rounds/2], us[0], us[rounds-1], 2*float64(m)*float64(l.n)*float64(l.k)/us[rounds/2]/1e6, name)
			require.NoError(b, graphs[i].Destroy())
		}
	}
}

// BenchmarkPrefillSwiGLU times whole prompts of 8B with gemm_swiglu_sm90 and without. The card's clock follows its power, so that who comes first
// would run faster: each variant's prompts come in a row, the first half of which only brings the clock to where it stays, and the order turns round.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench PrefillSwiGLU -benchtime 1x
func BenchmarkPrefillSwiGLU(b *testing.B) {
	cfg := benchModels()["llama-8b"]
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 16, MaxTokens: 8192, MaxContext: 8320, MemFraction: 0.85}, settings{})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, c := range []struct{ tokens, row, rounds int }{{8192, 6, 3}, {2048, 20, 3}, {512, 40, 3}} {
		times := map[bool][]time.Duration{}
		for round := range 2 * c.rounds {
			blas := (round+1)/2%2 == 0
			require.NoError(b, be.context.Bind())
			be.planner.blasOnly, be.copied.blasOnly = blas, blas
			for shape, g := range be.graphs {
				require.NoError(b, g.Destroy())
				delete(be.graphs, shape)
			}
			clear(be.seen)
			clear(be.eager)
			for i := range c.row {
				_, took := staticBatch(b, be, 1, c.tokens, 64)
				if i >= c.row/2 {
					times[blas] = append(times[blas], took)
				}
			}
		}
		for _, blas := range []bool{true, false} {
			t := times[blas]
			fmt.Printf("prefill llama-8b in=%d, own gate_up %v: %v (%v-%v, n=%d), %.0f tok/s\n", c.tokens, !blas, median(t), slices.Min(t), slices.Max(t), len(t), float64(c.tokens)/median(t).Seconds())
		}
	}
}
