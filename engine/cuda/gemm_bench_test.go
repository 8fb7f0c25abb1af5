//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// BenchmarkGEMMTiles times gemm_sm90's tiles on the products of a decode step beside cuBLASLt: chains of one product over weights that
// differ, together far larger than L2, in a graph. The engine's own choice is marked; the others are those it thinks next best. Floor: the
// weight over 3.1 TB/s.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench GEMMTiles -benchtime 1x
func BenchmarkGEMMTiles(b *testing.B) {
	const chainBytes = 1200 << 20
	for _, name := range []string{"llama-8b", "llama-1b"} {
		s := testShapes()[name]
		r := newRig(b, s)
		if r.device.SM != 90 {
			b.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
		}
		head := s.Vocab * s.Hidden * bf16Bytes
		room := max(chainBytes, 2*head)
		w, x, y := r.room(room), r.room(gemmTokens*max(s.Inter, s.Hidden)*bf16Bytes), r.room(gemmTokens*s.Vocab*4)
		dummy := func(p ptr, bytes int) op {
			return fillOp(r.device, p, &weights.Tensor{Shape: []int{bytes / 8192, 4096}, Dummy: &weights.Dummy{Seed: 7, Scale: 0.02}}, rowsInOrder)
		}
		slots, params := put(r, make([]int32, gemmTokens)), put(r, make([]slotParams, s.MaxRows))
		r.run(dummy(w, room), dummy(x, gemmTokens*s.Inter*bf16Bytes))
		workspace := r.room(blasWorkspaceBytes)
		blas, err := driver.OpenBlasLt(workspace, blasWorkspaceBytes)
		require.NoError(b, err)

		type variant struct {
			name  string
			l     linear
			chain []node
		}
		var variants []variant
		var all []op
		for _, m := range []int{32, 48, 64, 96, 128} {
			for _, l := range []linear{s.qkv(m), s.o(m), s.gateUp(m), s.down(m), headLinear(s, m, false)} {
				bytes := l.n * l.k * bf16Bytes
				copies := max(2, chainBytes/bytes)
				at := func(i int) ptr { return w + ptr(i%(room/bytes)*bytes) }
				var lt []node
				for i := range copies {
					lt = append(lt, node{gemm: &driver.GEMM{M: m, N: l.n, K: l.k, W: at(i), X: x, Y: y, Accumulate: l.end == epilogueResidual, F32: l.end == epilogueHeadFast}})
				}
				variants = append(variants, variant{"cuBLASLt", l, lt})
				tiles := l.gemmTiles(r.device)
				slices.SortFunc(tiles, func(a, c gemmTile) int { return cmp.Compare(a.cost(l, r.device), c.cost(l, r.device)) })
				counts := map[int]int{}
				for i, t := range tiles {
					counts[t.split]++
					if counts[t.split] > 1 && (t.split != tiles[0].split || counts[t.split] > 2) || t.cost(l, r.device) > 1.5*tiles[0].cost(l, r.device) || l.n == s.Vocab && i > 1 {
						continue
					}
					var chain []node
					for i := range copies {
						o := l.call90(r.device, t, at(i), x, gemmParams{Y: y, Slot: slots, Position: slots, SlotParam: params, Best: y}).op()
						chain = append(chain, node{op: &o})
					}
					label := fmt.Sprintf("rows=%d split=%d stages=%d ctas=%d", t.rows, t.split, t.stages, t.ctas(l, r.device))
					if i == 0 {
						label += " chosen"
					}
					variants = append(variants, variant{label, l, chain})
					all = append(all, *chain[0].op)
				}
			}
		}
		r.prepare(all...)
		for _, v := range variants {
			run := func() error {
				for _, n := range v.chain {
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
			us := r.timeGraph(b, g, 5) * 1e3 / float64(len(v.chain))
			floor := float64(v.l.n*v.l.k*bf16Bytes) / 3.1e6
			fmt.Printf("tile %s %s M=%d: %.1f us = %.3f of floor; %s\n", name, v.l.name, v.l.m, us, floor/us, v.name)
			require.NoError(b, g.Destroy())
		}
		blas.Close()
	}
}

// timeGraph is the median time of a replay, milliseconds.
func (r *rig) timeGraph(b *testing.B, g *driver.Graph, n int) float64 {
	begin, err := driver.NewEvent()
	require.NoError(b, err)
	end, err := driver.NewEvent()
	require.NoError(b, err)
	defer begin.Destroy()
	defer end.Destroy()
	var times []float64
	for range n {
		require.NoError(b, begin.Record(r.stream))
		for range 2 {
			require.NoError(b, r.context.Launch(g, r.stream))
		}
		require.NoError(b, end.Record(r.stream))
		require.NoError(b, end.Synchronize())
		ms, err := begin.Milliseconds(end)
		require.NoError(b, err)
		times = append(times, ms/2)
	}
	slices.Sort(times)
	return times[len(times)/2]
}

// BenchmarkDecodeBatches times decode steps of the batches that gemm_sm90 takes, and of one whose gate_up is gemm_swiglu_sm90's, with them and with cuBLASLt,
// on the same card.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench DecodeBatches -benchtime 1x
func BenchmarkDecodeBatches(b *testing.B) {
	type batch struct{ rows, in int }
	for name, batches := range map[string][]batch{"llama-8b": {{32, 512}, {48, 512}, {64, 512}, {96, 512}, {128, 512}, {128, 1024}, {256, 512}},
		"llama-1b": {{32, 256}, {48, 512}, {64, 512}, {96, 512}, {128, 512}}} {
		cfg := benchModels()[name]
		for _, blas := range []bool{false, true} {
			b.Run(fmt.Sprintf("model=%s/cublaslt=%v", name, blas), func(b *testing.B) {
				be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 256, MaxTokens: 2048, MaxContext: 4096, MemFraction: 0.85}, settings{blasOnly: blas})
				for _, c := range batches {
					const steps = 50
					decode, _ := staticBatch(b, be, c.rows, c.in, steps)
					var times []time.Duration
					var out backend.Result
					for range steps {
						began := time.Now()
						id, err := be.Launch(&decode)
						require.NoError(b, err)
						require.NoError(b, be.Wait(id, &out))
						times = append(times, time.Since(began))
						for i := range decode.Rows {
							require.False(b, out.Rows[i].NonFinite)
							decode.Rows[i].Position++
						}
					}
					info := be.Info()
					took := median(times[5:])
					floor := (float64(info.WeightBytes) + float64(c.rows*(c.in+steps/2))*float64(info.KVBytesPerToken)) / *info.ReadBandwidth * 1e9
					fmt.Printf("decode %s batch=%d in=%d cuBLASLt=%v: step %v, floor %v = %.3f of it\n", name, c.rows, c.in, blas, took, time.Duration(floor), floor/float64(took))
				}
			})
		}
	}
}

// BenchmarkGEMMTimeline is BenchmarkTimeline for batches whose products are gemm_sm90's.
func BenchmarkGEMMTimeline(b *testing.B) {
	for _, name := range []string{"llama-8b", "llama-1b"} {
		b.Run("model="+name, func(b *testing.B) {
			cfg := benchModels()[name]
			o := backend.Options{MaxRows: 128, MaxTokens: 2048, MaxContext: 4096, MemFraction: 0.8}
			be := openTest(b, cfg, weights.NewDummy(cfg), o, settings{stamps: true})
			for _, rows := range []int{32, 128} {
				decode, _ := staticBatch(b, be, rows, 512, 128)
				timeline(b, be, decode)
			}
		})
	}
}
