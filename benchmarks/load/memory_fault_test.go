//go:build linux

package load

import (
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestHostileEventsMemory bounds what a server's answer may make the client allocate by its size.
func TestHostileEventsMemory(t *testing.T) {
	for name, text := range map[string]string{
		"one line":     "data: " + strings.Repeat("x", 4<<20),
		"many lines":   strings.Repeat("data: x\n", 200_000) + "\n",
		"many events":  strings.Repeat("data: x\n\n", 100_000),
		"comments":     strings.Repeat(": x\n", 500_000),
		"empty lines":  strings.Repeat("\r\n", 1_000_000),
		"other fields": strings.Repeat("event: x\nid: 1\n", 100_000),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_ = readAll(t, strings.NewReader(text), false)
		runtime.ReadMemStats(&after)
		spent := after.TotalAlloc - before.TotalAlloc
		assert.Less(t, spent, uint64(32*len(text)+1<<20), "%s: %d bytes allocated for %d", name, spent, len(text))
	}
}

// TestResultsOnAFullDisk: a result file that cannot be written is an error that says so.
func TestResultsOnAFullDisk(t *testing.T) {
	err := AppendJSON("/dev/full", map[string]any{"a": 1})
	require.ErrorIs(t, err, unix.ENOSPC)
	assert.Contains(t, err.Error(), "/dev/full")
}
