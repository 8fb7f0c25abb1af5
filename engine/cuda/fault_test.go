//go:build cuda

package cuda

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// inAnotherProcess does the running test in a process of its own, since it may lose the device's context, and tells what that printed and how
// it ended. In that process it does nothing and gives false: the test is to be done there.
func inAnotherProcess(t *testing.T) (out string, err error, done bool) {
	t.Helper()
	const here = "TOKAMAK_TEST_PROCESS"
	if os.Getenv(here) == t.Name() {
		return "", nil, false
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^"+strings.ReplaceAll(t.Name(), "/", "$/^")+"$", "-test.v", "-test.timeout", "2m")
	cmd.Env = append(os.Environ(), here+"="+t.Name())
	text, err := cmd.CombinedOutput()
	return string(text), err, true
}

// TestKernelFault breaks a kernel's address: the step that meets the fault says so, and every later call does.
func TestKernelFault(t *testing.T) {
	needGPU(t)
	if out, err, done := inAnotherProcess(t); done {
		require.NoError(t, err, "%s", out)
		require.Contains(t, out, "--- PASS: TestKernelFault")
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

// TestOutOfMemoryLater lets another program take the memory that a kernel needs when it is loaded: at Open, where decode steps are captured, and in
// the first prompt of a backend that serves. Each is an error that says so, no memory stays behind it, and what is missing once is final.
func TestOutOfMemoryLater(t *testing.T) {
	if os.Getenv("TOKAMAK_TEST_ALL_MEMORY") == "" {
		t.Skip("takes the GPU's memory from every other program: TOKAMAK_TEST_ALL_MEMORY=1 runs it")
	}
	r := newRig(t, testShapes()["llama-8b"])
	free, _, err := r.context.Memory()
	require.NoError(t, err)
	const left = 2 << 30 // for the backend; the kernel has globals of 3.75 GiB
	require.Greater(t, free, int64(left))
	r.room(int(free - left))
	cfg := backendtest.Models()["llama"]
	open := func(kernel string) (*Backend, error) {
		return openWith(cfg, weights.NewDummy(cfg), testOptions, settings{edit: func(file, source string) string {
			if strings.HasPrefix(file, kernel) {
				source += "\n__device__ unsigned char large[0xF0000000u];\n"
			}
			return source
		}})
	}
	outOfMemory := func(t *testing.T, err error) {
		var fault *CUDAError
		require.ErrorAs(t, err, &fault)
		require.Contains(t, err.Error(), "OUT_OF_MEMORY")
		require.False(t, fault.Sticky())
		t.Log(err)
	}
	b, err := open("no kernel") // what the driver and cuBLASLt keep in any case
	require.NoError(t, err)
	require.NoError(t, b.Close())
	before, _, err := r.context.Memory()
	require.NoError(t, err)
	t.Run("at capture", func(t *testing.T) {
		own(t, r.context)
		_, err := open("attn_decode")
		outOfMemory(t, err)
	})
	t.Run("at run time", func(t *testing.T) {
		own(t, r.context)
		b, err := open("attn_prefill")
		require.NoError(t, err)
		batch := &backend.Batch{Rows: []backend.Row{{Start: &backend.Start{}, Tokens: []int32{1, 2, 3}, Pages: []int32{0}, Sample: true}}}
		_, err = b.Launch(batch)
		outOfMemory(t, err)
		_, again := b.Launch(batch)
		require.Equal(t, err, again, "final")
		require.NoError(t, b.Close())
	})
	after, _, err := r.context.Memory()
	require.NoError(t, err)
	require.InDelta(t, before, after, 64<<20, "memory stays behind a backend") // some kernels' code does, as long as another has the context
}
