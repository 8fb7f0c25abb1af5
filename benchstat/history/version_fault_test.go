package history

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestVersions: an index of another version, whole otherwise, is made anew from the results and not believed.
func TestVersions(t *testing.T) {
	dir := t.TempDir()
	result := filepath.Join(t.TempDir(), "result.txt")
	require.NoError(t, os.WriteFile(result, []byte("commit: 0123456789abcdef\ncpu: c\nBenchmarkX 1 2 ns/op\n"), 0o600))
	_, err := Add(dir, result, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	require.NoError(t, err)
	entries, err := Index(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)

	path := filepath.Join(dir, "index.jsonl")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	for version, want := range map[string]string{"1": "of another time", "9": entries[0].Commit, "0": entries[0].Commit} {
		other := strings.Replace(string(text), `"version":1`, `"version":`+version, 1)
		other = strings.Replace(other, `"commit":"`+entries[0].Commit, `"commit":"of another time`, 1)
		require.NotEqual(t, string(text), other)
		require.NoError(t, os.WriteFile(path, []byte(other), 0o600))
		again, err := Index(dir)
		require.NoError(t, err)
		assert.Equal(t, want, again[0].Commit, "version %s", version)
	}
}
