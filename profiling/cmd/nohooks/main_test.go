package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestABuildWithoutHooks builds the server without hooks, and holds that nothing of them is left in it while the ordinary one has them.
func TestABuildWithoutHooks(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the server twice")
	}
	root, err := filepath.Abs("../../..")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, write(root, dir))
	symbols := func(flags ...string) string {
		path := filepath.Join(dir, "server")
		build := exec.Command("go", append(append([]string{"build", "-o", path}, flags...), "./engine/cmd/launch_server")...)
		build.Dir = root
		out, err := build.CombinedOutput()
		require.NoError(t, err, string(out))
		list, err := exec.Command("go", "tool", "nm", path).Output()
		require.NoError(t, err)
		return string(list)
	}
	const mark = "engine/trace.begin"
	assert.Contains(t, symbols(), mark)
	assert.NotContains(t, symbols("-overlay", filepath.Join(dir, "overlay.json")), mark)
}

func TestAFileThatIsNoGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.go")
	require.NoError(t, os.WriteFile(path, []byte("package"), 0o600))
	_, err := empty(path)
	assert.Error(t, err)
}

func TestStepsOverHiddenOnes(t *testing.T) {
	cmd := exec.Command("awk", "-f", "hidden.awk")
	cmd.Stdin = strings.NewReader("BenchmarkOneBatch/batch=1/phase=decode 1 2.2 decode-ms 9 decode-p99-ms\n" +
		"BenchmarkOneBatch/batch=1/phase=overlap 1 9 decode-p99-ms 2.0 decode-ms\nBenchmarkOneBatch/batch=1/phase=total 1 5 total-ms\n" +
		"BenchmarkOneBatch/batch=8/phase=decode 1 3 decode-ms\n")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	assert.Equal(t, "Unit sync/hidden better=lower\nBenchmarkOneBatch/batch=1/phase=decode 1 1.1 sync/hidden\n", string(out), "a case that hides nothing gives no row")
}
