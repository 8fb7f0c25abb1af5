//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// BenchmarkTimeline tells where a real step's time goes: the kernels are compiled with STAMPS, which notes when each kernel's wait
// returned, so the distance of two notes is the time that a kernel adds to the step, overlap included. Means over 50 steps; the
// timer ticks coarsely.
func BenchmarkTimeline(b *testing.B) {
	for _, name := range []string{"llama-8b", "llama-1b"} {
		cfg := benchModels()[name]
		be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 16, MaxTokens: 8192, MaxContext: 16384, MemFraction: 0.6}, settings{stamps: true})
		for _, rows := range []int{1, 8, 16} {
			decode, _ := staticBatch(b, be, rows, 512, 128)
			timeline(b, be, name, decode)
		}
	}
}

// stampArrays reads and clears what one module noted.
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

func timeline(b *testing.B, be *Backend, model string, decode backend.Batch) {
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
			sums[n.op.Name] += float64(marks[i+1].at - marks[i].at)
			calls[n.op.Name]++
		}
		total += float64(marks[len(marks)-1].at - marks[0].at)
	}
	for _, name := range order {
		fmt.Printf("timeline %s rows=%d %-14s %7.2f us x %d = %8.1f us\n", model, len(decode.Rows), name, sums[name]/float64(calls[name])/1e3, calls[name]/steps, sums[name]/steps/1e3)
	}
	fmt.Printf("timeline %s rows=%d first to last wait %.1f us\n", model, len(decode.Rows), total/steps/1e3)

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
	fmt.Printf("timeline %s rows=%d %s to the next step's %s: %.1f us\n", model, len(decode.Rows), last.Symbol, first.Symbol, gap/1e3)
	for u := range units {
		stampsOf(b, be.modules[u])
	}
}
