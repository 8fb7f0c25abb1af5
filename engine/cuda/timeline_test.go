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

// BenchmarkTimeline tells where a real step's time goes, with no profiler: the kernels are compiled with STAMPS, which notes in a ring
// when each kernel's wait returned, so the distance of two notes is the time that a kernel adds to the step, overlap included. Means over
// 50 steps; the timer ticks coarsely. Rows: each operation, each layer, and what the notes cost against kernels without them.
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
				decode, _ := staticBatch(b, be, rows, 512, 128)
				timeline(b, be, decode)
				stamped, _ := staticBatch(b, be, rows, 512, 400)
				bare, _ := staticBatch(b, plain, rows, 512, 400)
				stampCost(b, rows, be, plain, stamped, bare)
			}
		})
	}
}

// stampsOf reads and clears what one module noted.
func stampsOf(b *testing.B, m driver.Module) []uint64 {
	count, _, err := m.Global("stamp_count")
	require.NoError(b, err)
	array, _, err := m.Global("stamps")
	require.NoError(b, err)
	n := make([]uint32, 1)
	require.NoError(b, driver.Read(bytesOf(n), count))
	out := make([]uint64, min(n[0], 4096))
	require.NoError(b, driver.Read(bytesOf(out), array))
	n[0] = 0
	require.NoError(b, driver.Write(count, bytesOf(n)))
	return out
}

func timeline(b *testing.B, be *Backend, decode backend.Batch) {
	st := stepShape{rows: len(decode.Rows), decode: len(decode.Rows), tokens: len(decode.Rows), samples: len(decode.Rows)}.padded()
	nodes := be.planner.step(st, hooks{})
	units := map[unit]bool{}
	for _, n := range nodes {
		require.NotNil(b, n.op, "only kernels of our own have stamps")
		units[n.op.Unit] = true
	}
	type mark struct {
		at   uint64
		unit unit
	}
	sums, calls, order := map[string]float64{}, map[string]int{}, []string{}
	layers := make([]float64, be.shape.Layers)
	var total float64
	const steps = 50
	var out backend.Result
	for s := range steps + 5 {
		id, err := be.Launch(&decode)
		require.NoError(b, err)
		require.NoError(b, be.Wait(id, &out))
		for i := range decode.Rows {
			decode.Rows[i].Position++
		}
		require.NoError(b, be.context.Bind())
		require.NoError(b, be.stream.Synchronize())
		var marks []mark
		for u := range units {
			for _, at := range stampsOf(b, be.modules[u]) {
				marks = append(marks, mark{at, u})
			}
		}
		if s < 5 {
			continue
		}
		require.Len(b, marks, len(nodes))
		slices.SortFunc(marks, func(a, c mark) int { return cmp.Compare(a.at, c.at) })
		for i, n := range nodes[:len(nodes)-1] {
			if _, ok := sums[n.op.Name]; !ok {
				order = append(order, n.op.Name)
			}
			took := float64(marks[i+1].at - marks[i].at)
			sums[n.op.Name] += took
			calls[n.op.Name]++
			if n.layer > 0 {
				layers[n.layer-1] += took
			}
		}
		total += float64(marks[len(marks)-1].at - marks[0].at)
	}
	row := fmt.Sprintf("batch=%d", len(decode.Rows))
	for _, name := range order {
		figures(b, row+"/op="+name, map[string]float64{"us": sums[name] / float64(calls[name]) / 1e3, "step-us": sums[name] / steps / 1e3, "calls": float64(calls[name]) / steps})
	}
	for i, sum := range layers {
		figures(b, fmt.Sprintf("%s/layer=%d", row, i), map[string]float64{"step-us": sum / steps / 1e3})
	}
	figures(b, row+"/op=all", map[string]float64{"step-us": total / steps / 1e3})

	// Steps launched one ahead: how long the device waits between the last kernel's start and the next step's first.
	first, last := nodes[0].op.Unit, nodes[len(nodes)-1].op.Unit
	var pending []backend.StepID
	for range 12 {
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
	begins, ends := stampsOf(b, be.modules[first]), stampsOf(b, be.modules[last])
	var gap float64
	for i := 2; i < 12; i++ {
		gap += float64(begins[i]-ends[i-1]) / 10
	}
	figures(b, row+"/op=between-steps", map[string]float64{"step-us": gap / 1e3})
	for u := range units {
		stampsOf(b, be.modules[u])
	}
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

// stampCost times the same steps of both builds, in turn: medians of 200 steps each.
func stampCost(b *testing.B, rows int, stamped, plain *Backend, s, p backend.Batch) {
	step := func(be *Backend, batch *backend.Batch) float64 {
		var out backend.Result
		start := time.Now()
		id, err := be.Launch(batch)
		require.NoError(b, err)
		require.NoError(b, be.Wait(id, &out))
		took := time.Since(start)
		for i := range batch.Rows {
			batch.Rows[i].Position++
		}
		return took.Seconds() * 1e6
	}
	var with, without []float64
	for i := range 210 {
		w, o := step(stamped, &s), step(plain, &p)
		if i >= 10 {
			with, without = append(with, w), append(without, o)
		}
	}
	slices.Sort(with)
	slices.Sort(without)
	w, o := with[len(with)/2], without[len(without)/2]
	figures(b, fmt.Sprintf("batch=%d/op=stamps", rows), map[string]float64{"stamped-us": w, "plain-us": o, "cost-pct": 100 * (w/o - 1)})
}
