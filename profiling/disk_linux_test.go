package profiling

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestAFullDisk fills a small file system with other things first: the capture ends with an error that says so and leaves nothing behind.
func TestAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting a small file system needs privileges: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	c, err := Start(Options{Dir: dir, NumSteps: 500})
	require.NoError(t, err)
	filler := filepath.Join(dir, "filler")
	_ = os.WriteFile(filler, make([]byte, 60<<10), 0o600)
	steps(500, 1, decode)
	files, err := c.Result()
	assert.ErrorIs(t, err, unix.ENOSPC)
	assert.Empty(t, files)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "only what was there")
	assert.Nil(t, Running(), "the next capture can begin")
	require.NoError(t, os.Remove(filler))
	again, err := Start(Options{Dir: dir, NumSteps: 1})
	require.NoError(t, err)
	steps(1, 1, decode)
	_, err = again.Result()
	assert.NoError(t, err)
}
