//go:build cuda

package driver

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestNoDriver starts this test binary again with a driver library that does not exist: package init must not end the process.
func TestNoDriver(t *testing.T) {
	if os.Getenv("TOKAMAK_TEST_NO_DRIVER") != "" {
		devices, err := Devices()
		require.Empty(t, devices)
		require.ErrorContains(t, err, "libcuda.so.1 not found")
		require.Zero(t, DriverVersion())
		_, err = Alloc(1)
		var cudaErr *CUDAError
		require.ErrorAs(t, err, &cudaErr)
		require.Equal(t, CodeNoDevice, cudaErr.Code)
		return
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestNoDriver$", "-test.v")
	cmd.Env = append(os.Environ(), "TOKAMAK_TEST_NO_DRIVER=1", "LIBCUDA_PATH=/no/such/libcuda.so.1")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS: TestNoDriver")
}

func TestCompile(t *testing.T) {
	c, err := OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	const source = `#include "scale.cuh"
extern "C" __global__ void twice(float *x) { x[threadIdx.x] *= SCALE; }`
	headers := map[string]string{"scale.cuh": "#define SCALE FACTOR\n"}
	cubin, _, err := c.Compile("twice.cu", source, headers, []string{"--gpu-architecture=sm_90a", "-DFACTOR=2.f"})
	require.NoError(t, err)
	assert.Equal(t, "\x7fELF", string(cubin[:4]))

	_, _, err = c.Compile("twice.cu", source, headers, []string{"--gpu-architecture=sm_90a"})
	var compileErr *CompileError
	require.ErrorAs(t, err, &compileErr)
	assert.Contains(t, compileErr.Log, "FACTOR")
}

func TestMissingLibraryNamesFileAndCure(t *testing.T) {
	t.Setenv("TOKAMAK_NO_SUCH_LIBRARY", "")
	_, _, err := library{"nosuchthing", "TOKAMAK_NO_SUCH_LIBRARY", "install the nosuchthing package"}.open(nil)
	require.Error(t, err)
	for _, want := range []string{"libnosuchthing.so.13", "install the nosuchthing package", "TOKAMAK_NO_SUCH_LIBRARY"} {
		assert.Contains(t, err.Error(), want)
	}
	assert.False(t, strings.Contains(err.Error(), "\n"), "one line")

	t.Setenv("TOKAMAK_NO_SUCH_LIBRARY", "/no/such/file.so")
	_, _, err = library{"nosuchthing", "TOKAMAK_NO_SUCH_LIBRARY", ""}.open(nil)
	require.ErrorContains(t, err, "/no/such/file.so")
}
