package main

import (
	"os"
	"os/exec"
	"path/filepath"
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
