package kernels

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestGeneratedHeader holds that wgmma.cuh is what its generator writes.
func TestGeneratedHeader(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skipf("no go command to run the generator: %v", err)
	}
	generator, err := filepath.Abs("wgmma_gen.go")
	require.NoError(t, err)
	dir := t.TempDir()
	run := exec.Command(goTool, "run", generator)
	run.Dir = dir
	out, err := run.CombinedOutput()
	require.NoError(t, err, "%s", out)
	want, err := os.ReadFile(filepath.Join(dir, "wgmma.cuh"))
	require.NoError(t, err)
	have, err := Source("wgmma.cuh")
	require.NoError(t, err)
	assert.Equal(t, string(want), have, "run go generate ./engine/kernels")
}

// TestHouseRules holds what every source keeps to: no header of CUDA or the host, inline PTX in ptx.cuh alone (wgmma.cuh is generated),
// one kernel a file under the file's name, and shapes as named defines.
func TestHouseRules(t *testing.T) {
	names, err := filepath.Glob("*.cu*")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		text, err := Source(name)
		require.NoError(t, err)
		assert.NotContains(t, text, "#include <", "%s includes a header that NVRTC would have to find", name)
		if name != "ptx.cuh" && name != "wgmma.cuh" {
			assert.NotContains(t, text, "asm(", "%s: inline PTX belongs in ptx.cuh", name)
			assert.NotContains(t, text, "asm volatile", "%s: inline PTX belongs in ptx.cuh", name)
		}
		if kernel, ok := strings.CutSuffix(name, ".cu"); ok {
			assert.Equal(t, 1, strings.Count(text, `extern "C" __global__`), "%s: one kernel a file", name)
			assert.Regexp(t, `(?m)^extern "C" __global__ void .*\b`+kernel+`\(const __grid_constant__ \w*Params p\)`, text, "%s: named as its file, one parameter", name)
			assert.True(t, strings.HasPrefix(text, "// "), "%s: says first what it does", name)
		}
	}
}
