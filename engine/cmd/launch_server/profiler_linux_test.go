package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestAFullDisk fills the profiles' file system while a capture runs: the client that stops it is told in one line, and serving goes on, as do
// captures once there is room.
func TestAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Skipf("mounting a small file system needs privileges: %v", err)
	}
	defer func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) }()
	t.Setenv("TOKAMAK_PROFILER_DIR", dir)
	c := client{t, launchTiny(t).url}
	c.ok("/start_profile", `{"num_steps":300}`, nil)
	filler := filepath.Join(dir, "filler")
	require.ErrorIs(t, os.WriteFile(filler, make([]byte, 128<<10), 0o600), unix.ENOSPC)
	c.generate("400")
	code, text := c.post("/stop_profile", "")
	assert.Equal(t, 409, code)
	assert.Equal(t, 1, strings.Count(text, "no space left on device"), text)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "only what was there")

	require.NoError(t, os.Remove(filler))
	var begun started
	c.ok("/start_profile", `{"num_steps":3}`, &begun)
	c.generate("10")
	c.ok("/stop_profile", "", nil)
	assert.FileExists(t, begun.Output)
}
