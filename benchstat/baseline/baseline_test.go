package baseline

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const head = "goos: linux\ngoarch: amd64\ngpu: NVIDIA H200\ndriver: 580.159.04\nbackend: cuda\nUnit x-ms better=lower\n"

func results(t *testing.T, head string, n int) string {
	path := filepath.Join(t.TempDir(), "new.txt")
	text := head
	for range n {
		text += "BenchmarkOneBatch/batch=1 1 3.5 x-ms\nBenchmarkServing/rate=4 1 9 x-ms\n"
	}
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestStoreAndFind(t *testing.T) {
	dir, now := t.TempDir(), time.Now().UTC()
	path := results(t, head, 10)
	stored, err := Store(dir, path, now)
	require.NoError(t, err)
	want := []string{filepath.Join(dir, "nvidia-h200", "OneBatch.txt"), filepath.Join(dir, "nvidia-h200", "Serving.txt")}
	assert.Equal(t, want, stored)
	found, err := Find(dir, path, 90)
	require.NoError(t, err)
	assert.Equal(t, want, found)
	p, err := ReadProvenance(found[0])
	require.NoError(t, err)
	assert.Equal(t, "580.159.04", p.Config["driver"])
	assert.Equal(t, 10, p.Samples)
	// A stored baseline reads as results again, units and all.
	text, err := os.ReadFile(found[0])
	require.NoError(t, err)
	assert.Contains(t, string(text), "Unit x-ms better=lower")
	assert.Equal(t, 10, strings.Count(string(text), "BenchmarkOneBatch/batch=1"))
	assert.NotContains(t, string(text), "Serving")
}

func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	path := results(t, head, 10)
	_, err := Find(dir, path, 90)
	assert.ErrorContains(t, err, "no baseline for OneBatch on nvidia-h200: make baseline")

	_, err = Store(dir, path, time.Now().AddDate(0, 0, -100))
	require.NoError(t, err)
	_, err = Find(dir, path, 90)
	assert.ErrorContains(t, err, "is stale: 100 days old")

	_, err = Store(dir, path, time.Now())
	require.NoError(t, err)
	other := results(t, strings.Replace(head, "580.159.04", "590.1", 1), 10)
	_, err = Find(dir, other, 90)
	assert.ErrorContains(t, err, `is foreign: driver was "580.159.04", is "590.1" now`)

	_, err = Store(dir, results(t, head, 3), time.Now())
	assert.ErrorContains(t, err, "has 3 samples, a baseline needs 6")
	_, err = Store(dir, results(t, head+"throttled: power\n", 10), time.Now())
	assert.ErrorContains(t, err, "throttled")

	at := filepath.Join(dir, "nvidia-h200", "OneBatch.txt")
	text, err := os.ReadFile(at)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(at, []byte(strings.Replace(string(text), `"version":1`, `"version":7`, 1)), 0o600))
	_, err = Find(dir, path, 90)
	assert.ErrorContains(t, err, "form 7, this benchstat reads 1")
	require.NoError(t, os.WriteFile(at, []byte("BenchmarkX 1 1 ns/op\n"), 0o600))
	_, err = Find(dir, path, 90)
	assert.ErrorContains(t, err, "no provenance")
}
