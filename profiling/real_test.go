package profiling

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// TestKernelsOfARealCard replays what CUPTI saw of two graph replays: kernels overlap the ones before them throughout. KEEP names a file to
// keep the trace in.
func TestKernelsOfARealCard(t *testing.T) {
	f, err := os.Open("testdata/decode-h100.txt")
	require.NoError(t, err)
	defer f.Close()
	type seen struct {
		step, layer   int
		name, op      string
		start, length time.Duration
	}
	var all []seen
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		var s seen
		_, err := fmt.Sscan(lines.Text(), &s.step, &s.name, &s.start, &s.length, &s.op, &s.layer)
		require.NoError(t, err)
		all = append(all, s)
	}
	require.Len(t, all, 2*164)

	src := &source{}
	src.recording.Processes, src.recording.Threads = map[int]string{10: "GPU 0"}, map[chrometrace.Track]string{{PID: 10, TID: 13}: "stream 13", Calls: "CUDA calls"}
	c, err := Start(Options{Dir: t.TempDir(), NumSteps: 2, Sources: []Source{src}})
	require.NoError(t, err)
	begun := time.Now().Add(100 * time.Microsecond)
	for step := range 2 {
		// A backend plans in the order in which kernels are launched. CUPTI's order is that of their starts, the same one here.
		s := trace.Step{ID: uint64(step + 1), Phase: trace.Decode, Rows: 1, Launched: time.Now()}
		r := trace.BeginArg("launch", trace.Backend, s.ID)
		src.see(Event{Name: "cuGraphLaunch", Category: "cuda_driver", Track: Calls, Start: s.Launched, Length: 10 * time.Microsecond, Launched: s.Launched})
		var ops []trace.Op
		for _, k := range all {
			if k.step == step {
				ops = append(ops, trace.Op{Name: k.op, Symbol: k.name, Layer: k.layer})
				src.see(Event{Name: k.name, Category: KernelCategory, Track: chrometrace.Track{PID: 10, TID: 13},
					Start: begun.Add(k.start), Length: k.length, Launched: s.Launched, LaunchedFrom: Calls, Flow: uint64(step + 1)})
			}
		}
		trace.StepOps(true, ops)
		time.Sleep(20 * time.Microsecond)
		r.End()
		s.LaunchTime = time.Since(s.Launched)
		s.WaitStart, s.WaitTime = time.Now(), 6*time.Millisecond
		trace.StepDone(s)
	}
	files, err := c.Result()
	require.NoError(t, err)
	kernels := c.Kernels()
	require.Len(t, kernels, len(all))
	for i, k := range kernels {
		assert.Equal(t, all[i].op, k.Op)
		assert.Equal(t, all[i].layer, k.Layer)
	}
	events, _ := read(t, files[0])
	ends, drawn := map[int]float64{}, 0
	for _, e := range events {
		if e.Cat == KernelCategory {
			require.GreaterOrEqual(t, e.TS, ends[e.TID]-1e-6, "events of a thread follow each other")
			ends[e.TID] = e.TS + e.Dur
			drawn++
		}
	}
	assert.Equal(t, len(all), drawn)
	assert.LessOrEqual(t, len(ends), 4, "lanes")
	assert.Greater(t, len(ends), 1)
	if keep := os.Getenv("KEEP"); keep != "" {
		require.NoError(t, os.Rename(files[0], keep))
	}
}
