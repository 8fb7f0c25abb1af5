//go:build cuda

package cuda

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// BenchmarkTimeline tells where a real step's time goes, with no profiler: the kernels are compiled with STAMPS, which notes in a ring
// when each kernel's wait returned, so the distance of two notes is the time that a kernel adds to the step, overlap included. Means over
// 50 steps; the timer ticks coarsely. Rows: each operation, each layer, and what the notes cost against kernels without them, read by a
// profiler and not: 1 % of a step at most.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench Timeline -benchtime 1x
func BenchmarkTimeline(b *testing.B) {
	for _, name := range []string{"llama-8b", "llama-1b"} {
		b.Run("model="+name, func(b *testing.B) {
			cfg := benchModels()[name]
			o := backend.Options{MaxRows: 16, MaxTokens: 8192, MaxContext: 16384, MemFraction: 0.4}
			be := openTest(b, cfg, weights.NewDummy(cfg), o, settings{stamps: true})
			plain := openTest(b, cfg, weights.NewDummy(cfg), o, settings{})
			for _, rows := range []int{1, 8, 16} {
				b.Run(fmt.Sprintf("batch=%d", rows), func(b *testing.B) {
					own(b, be.context)
					decode, _ := staticBatch(b, be, rows, 512, 128)
					timeline(b, be, decode)
					stamped, _ := staticBatch(b, be, rows, 512, 800)
					bare, _ := staticBatch(b, plain, rows, 512, 800)
					stampCost(b, be, plain, stamped, bare)
				})
			}
		})
	}
}

// noted is a profiler that keeps the times of steps, and of their parts what the kernels noted.
type noted struct{ steps [][]trace.Time }

func (*noted) Begin(string, trace.Category, uint64) uint64 { return 0 }
func (*noted) End(string, trace.Category, uint64)          {}
func (*noted) Counter(string, trace.Category, int64)       {}
func (*noted) SpanBegin(string, trace.Category, uint64)    {}
func (*noted) SpanEnd(string, trace.Category, uint64)      {}
func (*noted) Step(trace.Step)                             {}
func (n *noted) Times(times []trace.Time)                  { n.steps = append(n.steps, times) }
func (n *noted) during(b testing.TB, f func()) [][]trace.Time {
	n.steps = nil
	trace.SetSink(n)
	defer trace.SetSink(nil)
	f()
	return n.steps
}

func timeline(b *testing.B, be *Backend, decode backend.Batch) {
	const steps = 50
	var out backend.Result
	all := new(noted).during(b, func() {
		var pending []backend.StepID
		for range steps + 5 { // one ahead, as the engine does
			id, err := be.Launch(&decode)
			require.NoError(b, err)
			pending = append(pending, id)
			for i := range decode.Rows {
				decode.Rows[i].Position++
			}
			if len(pending) == backend.MaxInFlight {
				require.NoError(b, be.Wait(pending[0], &out))
				pending = pending[1:]
			}
		}
		require.NoError(b, be.Wait(pending[0], &out))
	})
	require.Len(b, all, steps+5)
	all = all[5:]
	st := stepShape{rows: len(decode.Rows), decode: len(decode.Rows), tokens: len(decode.Rows), samples: len(decode.Rows)}.padded()
	sums, calls, order := map[string]float64{}, map[string]int{}, []string{}
	layers := make([]float64, be.shape.Layers)
	var total, gap float64
	for i, times := range all {
		ops := 0
		for _, t := range times {
			ops += 1 + strings.Count(t.Name, "+")
		}
		require.Equal(b, len(be.graphOps[st])-1, ops, "every kernel of ours notes its beginning, and the last one has no end")
		for _, t := range times {
			if _, ok := sums[t.Name]; !ok {
				order = append(order, t.Name)
			}
			sums[t.Name] += t.Length.Seconds()
			calls[t.Name]++
			if t.Layer >= 0 {
				layers[t.Layer] += t.Length.Seconds()
			}
		}
		end := times[len(times)-1].Start.Add(times[len(times)-1].Length)
		total += end.Sub(times[0].Start).Seconds()
		if i > 0 {
			before := all[i-1][len(all[i-1])-1]
			gap += times[0].Start.Sub(before.Start.Add(before.Length)).Seconds()
		}
	}
	for _, name := range order {
		figures(b, "op="+name, map[string]float64{"us": sums[name] / float64(calls[name]) * 1e6, "step-us": sums[name] / steps * 1e6, "calls": float64(calls[name]) / steps})
	}
	for i, sum := range layers {
		figures(b, fmt.Sprintf("layer=%d", i), map[string]float64{"step-us": sum / steps * 1e6})
	}
	figures(b, "op=all", map[string]float64{"step-us": total / steps * 1e6})
	// From the last kernel's start to the next step's first one.
	figures(b, "op=between-steps", map[string]float64{"step-us": gap / (steps - 1) * 1e6})
}

// figures is a row.
func figures(b *testing.B, name string, values map[string]float64) {
	b.Run(name, func(b *testing.B) {
		for b.Loop() {
		}
		b.ReportMetric(0, "ns/op")
		for unit, value := range values {
			b.ReportMetric(value, unit)
		}
	})
}

// stampCost times the same steps of both builds, in turn, while nobody asks for the notes and while a profiler does.
func stampCost(b *testing.B, stamped, plain *Backend, s, p backend.Batch) {
	values := map[string]float64{}
	inTurn(b, stamped, plain, s, p).figures(values, "")
	new(noted).during(b, func() { inTurn(b, stamped, plain, s, p).figures(values, "read-") })
	figures(b, "op=stamps", values)
	const mark = 1.0 // percent: what attribution in live serving may cost
	require.LessOrEqual(b, values["cost-low-pct"], mark, "%v", values)
	require.LessOrEqual(b, values["read-cost-low-pct"], mark, "%v", values)
}

// pairs are times of a step in microseconds, with stamps and without, of pieces that ran one after the other.
type pairs struct{ with, without []float64 }

// figures adds the medians, what stamps cost as the median of the pairs' ratios, and that median's interval: between the 10th and the 21st of
// 30 ratios it lies with 95.7 % certainty, whatever their distribution (a binomial of one half).
func (p pairs) figures(values map[string]float64, prefix string) {
	var costs []float64
	for i := range p.with {
		costs = append(costs, 100*(p.with[i]/p.without[i]-1))
	}
	middle := func(v []float64) float64 {
		slices.Sort(v)
		return (v[len(v)/2] + v[(len(v)-1)/2]) / 2
	}
	values[prefix+"stamped-us"], values[prefix+"plain-us"] = middle(p.with), middle(p.without)
	values[prefix+"cost-pct"] = middle(costs)
	values[prefix+"cost-low-pct"], values[prefix+"cost-high-pct"] = costs[9], costs[20]
}

// inTurn runs both builds for ten steps at a time, each launched while the one before it runs, as in serving, 30 such pieces of each.
func inTurn(b *testing.B, stamped, plain *Backend, s, p backend.Batch) (all pairs) {
	const steps = 10
	piece := func(be *Backend, batch *backend.Batch) float64 {
		var out backend.Result
		var before backend.StepID
		start := time.Now()
		for i := range steps + 1 {
			id, err := be.Launch(batch)
			require.NoError(b, err)
			for r := range batch.Rows {
				batch.Rows[r].Position++
			}
			if i == 0 {
				before = id
				continue
			}
			require.NoError(b, be.Wait(before, &out))
			if before = id; i == 1 { // the first one had nothing before it
				start = time.Now()
			}
		}
		took := time.Since(start)
		require.NoError(b, be.Wait(before, &out))
		return took.Seconds() * 1e6 / (steps - 1)
	}
	for i := range 32 {
		w, o := 0.0, 0.0
		if i%2 == 0 {
			w = piece(stamped, &s)
			o = piece(plain, &p)
		} else {
			o = piece(plain, &p)
			w = piece(stamped, &s)
		}
		if i >= 2 {
			all.with, all.without = append(all.with, w), append(all.without, o)
		}
	}
	return all
}
