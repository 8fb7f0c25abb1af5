package main

import (
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// TestTimeOfLayersInServing asks a live server where its steps' time goes, with no profiler of any vendor: the backend notes it itself. Here
// that is the CPU's; with TOKAMAK_STAMPS=1 it is the CUDA kernels', by the same way into the same trace.
func TestTimeOfLayersInServing(t *testing.T) {
	t.Setenv("TOKAMAK_PROFILER_DIR", t.TempDir())
	c := client{t, launchTiny(t).url}
	var begun started
	c.ok("/start_profile", `{"num_steps":6,"stage":"decode","activities":["CPU"]}`, &begun)
	c.generate("20")
	var ended stopped
	c.ok("/stop_profile", "", &ended)
	f, err := os.Open(begun.Output)
	require.NoError(t, err)
	defer f.Close()
	events, err := chrometrace.Read(f)
	require.NoError(t, err)

	type stepTimes struct {
		length, sum float64
		layers      map[string]float64
		ops         map[string]int
	}
	steps := map[float64]*stepTimes{}
	for _, e := range events {
		if e.Category == "step" {
			steps[e.Args["step"].(float64)] = &stepTimes{length: e.Length, layers: map[string]float64{}, ops: map[string]int{}}
		}
	}
	require.Len(t, steps, 6)
	for _, e := range events {
		switch e.Category {
		case "layer":
			steps[e.Args["step"].(float64)].layers[e.Name] += e.Length
		case "timed":
			s := steps[e.Args["step"].(float64)]
			s.ops[e.Name]++
			s.sum += e.Length
		}
	}
	for id, s := range steps {
		require.Len(t, s.layers, 3, "two layers, and what is outside of them: %v", s.layers)
		for _, name := range []string{"layer 0", "layer 1", "outside of the layers"} {
			assert.Positive(t, s.layers[name])
		}
		assert.Equal(t, map[string]int{"embed": 1, "norm": 4, "qkv": 2, "rope_kv": 2, "attention": 2, "o": 2, "mlp": 2, "head": 1, "sample": 1}, s.ops)
		assert.LessOrEqual(t, s.sum, s.length, "step %v: operations lie within the step", id)
		assert.InDelta(t, s.sum, s.layers["layer 0"]+s.layers["layer 1"]+s.layers["outside of the layers"], 0.01*s.sum)
	}
}
