//go:build cuda

package cuda

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// TestKernelFault breaks a kernel's address in a process of its own, for the context is lost: the step that meets the fault says so,
// and every later call does.
func TestKernelFault(t *testing.T) {
	needGPU(t)
	if os.Getenv("TOKAMAK_TEST_FAULT") == "" {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestKernelFault$", "-test.v")
		cmd.Env = append(os.Environ(), "TOKAMAK_TEST_FAULT=1")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS: TestKernelFault")
		t.Logf("%s", out)
		return
	}
	cfg := backendtest.Models()["llama"]
	o := testOptions
	o.DisableGraph = true
	b, err := openWith(cfg, weights.NewDummy(cfg), o, settings{})
	require.NoError(t, err)
	greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1}
	play(t, b, 0, randomPrompt(1, 10, cfg.VocabSize), 16, 3, greedy, false)

	b.planner.layers[1].WDown.Data = 256 // no memory is mapped there
	var out backend.Result
	id, err := b.Launch(&backend.Batch{Rows: []backend.Row{{Slot: 0, Start: &backend.Start{Sampling: greedy}, Tokens: []int32{1, 2, 3}, Pages: []int32{0}, Sample: true}}})
	if err == nil {
		err = b.Wait(id, &out)
	}
	var fault *CUDAError
	require.ErrorAs(t, err, &fault)
	require.True(t, fault.Sticky(), "%v", err)
	t.Log(err)
	_, again := b.Launch(&backend.Batch{})
	require.Equal(t, err, again, "final")
	require.Equal(t, err, b.Wait(id, &out))
	b.Close() // frees what the driver still lets go
}
