//go:build cuda

package cuda

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/kernels"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// delays is how long a warp sleeps at most, in nanoseconds: several times what the kernels of these models take.
const delays = 12_000

// TestDelayedKernels looks for races between kernels that overlap. Every warp sleeps, for another time at each place, where its kernel
// lets the next one start, and after its wait; what a step may not take from the last one is poisoned. Nothing of that may change a bit.
func TestDelayedKernels(t *testing.T) {
	needGPU(t)
	for name, c := range exerciseCases() {
		t.Run(name, func(t *testing.T) {
			run := func(o backend.Options, set settings, poison bool) []uint32 {
				return newExercise(t, openTest(t, c.model, weights.NewDummy(c.model), o, set), poison).all()
			}
			want := run(c.options, settings{}, false)
			require.NotContains(t, want, uint32(0xDEAD), "logits that are not finite")
			eager := c.options
			eager.DisableGraph = true
			requireSameBits(t, want, run(c.options, settings{}, true), "poisoned buffers")
			requireSameBits(t, want, run(c.options, settings{delays: delays}, true), "delayed kernels")
			requireSameBits(t, want, run(eager, settings{delays: delays}, true), "delayed kernels, no graphs")
		})
	}
}

func requireSameBits(t *testing.T, want, got []uint32, what string) {
	t.Helper()
	require.Len(t, got, len(want), what)
	for i := range want {
		require.Equal(t, want[i], got[i], "%s: value %d of %d", what, i, len(want))
	}
}

// droppedFences are faults in how kernels wait for each other. Each is one that the search above must see.
var droppedFences = []struct{ fault, file, old, new, model string }{
	{"gemv does not wait", "gemv.cu", "	PDL_WAIT();\n", "", "qwen3"},
	{"gemv_mma does not wait", "gemv_mma.cu", "	PDL_WAIT();\n", "", "qwen3"},
	{"gemm_sm90 loads its input before the wait", "gemm_sm90.cu", "	PDL_WAIT();\n	for (int s = 0; s < STAGES && x.more()", "	for (int s = 0; s < STAGES && x.more()", "qwen3"},
	{"attn_decode reads the query before its wait", "attn_decode.cu", "	PDL_WAIT();\n\n	// Heads", "	// Heads", "qwen3"},
	{"rope_kv does not wait", "rope_kv.cu", "	PDL_WAIT();\n", "", "qwen3"},
	{"attn_prefill_sm90 does not wait", "attn_prefill_sm90.cu", "	PDL_WAIT();\n", "", "qwen3"},
	{"rmsnorm does not wait", "rmsnorm.cu", "	PDL_WAIT();\n", "", "qwen3"},
	{"sample does not wait", "sample.cu", "	PDL_WAIT();\n", "", "qwen3"},
	{"sample_fast does not wait", "sample_fast.cu", "	PDL_WAIT();\n", "", "qwen3"},
	{"publish does not wait", "publish.cu", "	PDL_WAIT();\n", "", "qwen3"},
	{"w4_gemv does not wait", "w4_gemv.cu", "	PDL_WAIT();\n", "", "weights of four bits"},
	{"w4_gemm_sm90 loads its input before the wait", "w4_gemm_sm90.cu", "	PDL_WAIT();\n	for (int i = 0; i < total + LAG", "	for (int i = 0; i < total + LAG", "weights of four bits"},
	{"w4_gemm does not wait", "w4_gemm.cu", "	PDL_WAIT();\n", "", "weights of four bits"},
	{"kv_widen does not wait", "kv_widen.cu", "	PDL_WAIT();\n", "", "cache of e4m3"},
	{"fp8_quantize does not wait", "fp8_quantize.cu", "	PDL_WAIT();\n", "", "weights of e4m3"},
	{"gemm_fp8_sm90 loads its input before the wait", "gemm_fp8_sm90.cu", "	PDL_WAIT();\n	for (int i = 0; i < min(total, STAGES)", "	for (int i = 0; i < min(total, STAGES)", "weights of e4m3"},
	{"moe_router does not wait", "moe_router.cu", "	PDL_WAIT();\n", "", "mixture"},
	{"moe_topk does not wait", "moe_topk.cu", "	PDL_WAIT();\n", "", "mixture"},
	{"moe_gate_up does not wait", "moe_gate_up.cu", "	PDL_WAIT();\n", "", "mixture"},
	{"moe_down does not wait", "moe_down.cu", "	PDL_WAIT();\n", "", "mixture"},
	{"moe_sort does not wait", "moe_sort.cu", "	PDL_WAIT();\n", "", "mixture"},
	{"moe_permute does not wait", "moe_permute.cu", "	PDL_WAIT();\n", "", "mixture"},
	{"moe_gemm_sm90 does not wait for the sorted pairs", "moe_gemm_sm90.cu", "	if (!EARLY) PDL_WAIT();\n", "", "mixture"},
	{"moe_combine does not wait", "moe_combine.cu", "	PDL_WAIT();\n", "", "mixture"},
}

// TestDroppedFencesAreSeen takes fences out of the kernels, one at a time: the search of TestDelayedKernels notices each, by other bits or, where
// a kernel follows a number that is not there yet, by a fault.
func TestDroppedFencesAreSeen(t *testing.T) {
	needGPU(t)
	for _, f := range droppedFences {
		t.Run(strings.ReplaceAll(f.fault, " ", "_"), func(t *testing.T) {
			if reason := notInSteps()[strings.TrimSuffix(f.file, ".cu")]; reason != "" {
				t.Skip(f.file, " ", reason)
			}
			if out, err, done := inAnotherProcess(t); done {
				if fault := faultIn.FindString(out); err != nil && fault != "" {
					t.Log("seen: ", fault)
				} else {
					require.NoError(t, err, "%s", out)
					t.Log("seen: other bits; without delays: ", strings.Contains(out, seenWithoutDelays))
				}
				return
			}
			c := exerciseCases()[f.model]
			run := func(set settings) []uint32 {
				return newExercise(t, openTest(t, c.model, weights.NewDummy(c.model), c.options, set), true).all()
			}
			edit := func(file, source string) string {
				if file == f.file {
					return strings.Replace(source, f.old, f.new, 1)
				}
				return source
			}
			want := run(settings{delays: delays})
			assert.False(t, slices.Equal(want, run(settings{delays: delays, edit: edit})), "nothing noticed")
			if !slices.Equal(want, run(settings{edit: edit})) {
				t.Log(seenWithoutDelays)
			}
		})
	}
}

const seenWithoutDelays = "without delays it is seen too"

// faultIn finds what a process says that lost its device, or waited for a kernel that never ends.
var faultIn = regexp.MustCompile(`CUDA_ERROR_(ILLEGAL|MISALIGNED|INVALID_PC|INVALID_ADDRESS|LAUNCH)\w*|test timed out`)

// TestDroppedFencesFit holds that each fence to take out is there.
func TestDroppedFencesFit(t *testing.T) {
	for _, f := range droppedFences {
		source, err := kernels.Source(f.file)
		require.NoError(t, err)
		assert.Equal(t, 1, strings.Count(source, f.old), "%s: the piece to replace must be in %s once", f.fault, f.file)
	}
}

// TestDelaysCompile compiles each kernel as the search for races has it.
func TestDelaysCompile(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	d, s := testDevices["sm_90"], testShapes()["smollm2-135m"]
	c := newCompiler(d, s, nil)
	c.defines = append(c.defines, fmt.Sprintf("DELAYS=%d", delays))
	seen := map[string]bool{}
	for _, u := range allUnits(d, s) {
		if seen[u.File] {
			continue
		}
		seen[u.File] = true
		source, err := kernels.Source(u.File)
		require.NoError(t, err)
		_, _, err = nvrtc.Compile(u.File, source, c.headers, c.options(u))
		require.NoError(t, err, u)
	}
}
