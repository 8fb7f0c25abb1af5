//go:build cuda

package cuda

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// TestCache holds that a second start compiles nothing, that a damaged entry is made again, and that the key sees what changes
// the code.
func TestCache(t *testing.T) {
	if _, err := driver.OpenCompiler(); err != nil {
		t.Skipf("no compiler: %v", err)
	}
	dir := t.TempDir()
	d, s := testDevices["sm_90"], testShapes()["smollm2-135m"]
	units := []unit{{File: "fill.cu", Symbol: "fill"}, {"read_probe.cu", "read_probe", "UNROLL=8"}, {"read_probe.cu", "read_probe", "UNROLL=16"}}
	start := func(d device, s shape) (*compiler, map[unit][]byte) {
		c := newCompiler(d, s, openCache(dir))
		code, err := c.all(units, nil)
		require.NoError(t, err)
		require.Len(t, code, len(units))
		return c, code
	}
	first, code := start(d, s)
	assert.EqualValues(t, 3, first.compiled.Load())
	second, again := start(d, s)
	assert.Zero(t, second.compiled.Load())
	assert.EqualValues(t, 3, second.cached.Load())
	assert.Equal(t, code, again)

	files, err := filepath.Glob(filepath.Join(dir, "cubin", "*"))
	require.NoError(t, err)
	require.Len(t, files, 3, "and no temporary file")
	data, err := os.ReadFile(files[0])
	require.NoError(t, err)
	data[len(data)/2] ^= 1
	require.NoError(t, os.WriteFile(files[0], data, 0o644))
	require.NoError(t, os.Truncate(files[1], 10))
	third, repaired := start(d, s)
	assert.EqualValues(t, 2, third.compiled.Load())
	assert.EqualValues(t, 2, third.corrupt.Load())
	assert.Equal(t, code, repaired)

	other := s
	other.Hidden = 640
	c, _ := start(d, other)
	assert.EqualValues(t, 3, c.compiled.Load(), "other defines are other code")
	c, _ = start(testDevices["sm_80"], s)
	assert.EqualValues(t, 3, c.compiled.Load(), "another architecture is other code")
}

// TestUnwritableCache holds that a cache that cannot be written stops nobody.
func TestUnwritableCache(t *testing.T) {
	if _, err := driver.OpenCompiler(); err != nil {
		t.Skipf("no compiler: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	c := newCompiler(testDevices["sm_90"], testShapes()["llama-1b"], openCache(file))
	_, err := c.all([]unit{{File: "fill.cu", Symbol: "fill"}}, nil)
	require.NoError(t, err)
	assert.EqualValues(t, 1, c.compiled.Load())
}
