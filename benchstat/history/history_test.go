package history

import (
	"bytes"
	"fmt"
	"image/png"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var start = time.Date(2026, 11, 1, 3, 0, 0, 0, time.UTC)

// fill adds days results to a fresh store; the step time falls 10 % on day 12 and the throughput loses 5 % on day 20.
func fill(t *testing.T, days int) string {
	dir, rng := t.TempDir(), rand.New(rand.NewPCG(1, 1))
	for day := range days {
		ms, tok := 4.0, 250.0
		if day >= 12 {
			ms = 3.6
		}
		if day >= 20 {
			tok = 237.5
		}
		text := fmt.Sprintf("gpu: NVIDIA H200\ncommit: %07x\ndate: %s\nUnit step-ms better=lower\nUnit tok/s better=higher\n", 0xabc0000+day, start.AddDate(0, 0, day).Format(time.RFC3339))
		for range 10 {
			text += fmt.Sprintf("BenchmarkOneBatch/batch=1 1 %.4f step-ms %.2f tok/s\n", ms*(1+0.005*rng.NormFloat64()), tok*(1+0.005*rng.NormFloat64()))
		}
		path := filepath.Join(t.TempDir(), "r.txt")
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		_, err := Add(dir, path, start)
		require.NoError(t, err)
	}
	return dir
}

func TestChangePoints(t *testing.T) {
	dir := fill(t, 30)
	entries, err := Index(dir)
	require.NoError(t, err)
	require.Len(t, entries, 30)
	series, err := Load(dir, entries)
	require.NoError(t, err)
	require.Len(t, series, 2)
	marked := map[string]string{}
	for _, s := range series {
		for i, p := range s.Points {
			if p.Change != "" {
				marked[fmt.Sprintf("%s day %d", s.Unit, i)] = p.Change
			}
		}
	}
	assert.Equal(t, map[string]string{"step-ms day 12": "better", "tok/s day 20": "worse"}, marked)
}

func TestStoreOnlyGrows(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(t.TempDir(), "r.txt")
	require.NoError(t, os.WriteFile(path, []byte("commit: abc1234\nBenchmarkX 1 5 ns/op\n"), 0o600))
	first, err := Add(dir, path, start)
	require.NoError(t, err)
	again, err := Add(dir, path, start)
	require.NoError(t, err)
	assert.Equal(t, first, again, "the same result is kept once")
	require.NoError(t, os.WriteFile(path, []byte("commit: abc1234\nBenchmarkX 1 6 ns/op\n"), 0o600))
	second, err := Add(dir, path, start)
	require.NoError(t, err)
	assert.NotEqual(t, first, second)
	kept, err := os.ReadFile(first)
	require.NoError(t, err)
	assert.Contains(t, string(kept), "5 ns/op")

	require.NoError(t, os.WriteFile(path, []byte("BenchmarkX 1 6 ns/op\n"), 0o600))
	_, err = Add(dir, path, start)
	assert.ErrorContains(t, err, "no usable `commit:` line")
	require.NoError(t, os.WriteFile(path, []byte("nothing\n"), 0o600))
	_, err = Add(dir, path, start)
	assert.ErrorContains(t, err, "no benchmark results")
}

func TestIndexRebuildsItself(t *testing.T) {
	dir := fill(t, 3)
	want, err := Index(dir)
	require.NoError(t, err)
	index := filepath.Join(dir, "index.jsonl")
	for name, damage := range map[string]string{"garbage": "{nonsense\n", "another version": `{"version":9}` + "\n", "half": "", "a file it lacks": `{"version":1,"path":"results/gone.txt"}` + "\n"} {
		require.NoError(t, os.WriteFile(index, []byte(damage), 0o600))
		got, err := Index(dir)
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
	require.NoError(t, os.Remove(index))
	got, err := Index(dir)
	require.NoError(t, err)
	assert.Equal(t, want, got)
}

func TestPage(t *testing.T) {
	dir := fill(t, 30)
	var out bytes.Buffer
	require.NoError(t, Command([]string{"page", dir, "https://example.org/commit/"}, &out))
	page := out.String()
	assert.Contains(t, page, `data-row="OneBatch/batch=1" data-unit="step-ms" data-changes="1"`)
	assert.Contains(t, page, `href="https://example.org/commit/abc0000"`)
	assert.NotContains(t, page, "<script")
	_, err := Index(t.TempDir())
	assert.ErrorContains(t, err, "holds no results")
}

// The page is for people: a real browser must draw it, with a chart a row and no error.
func TestBrowserDrawsPage(t *testing.T) {
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("TOKAMAK_REQUIRE_BROWSER") != "" {
			t.Fatal("no chromium on PATH")
		}
		t.Skip("no chromium on PATH: make browser installs it")
	}
	dir := fill(t, 30)
	var page bytes.Buffer
	require.NoError(t, Command([]string{"page", dir}, &page))
	at := filepath.Join(t.TempDir(), "index.html")
	require.NoError(t, os.WriteFile(at, page.Bytes(), 0o600))
	shot := filepath.Join(t.TempDir(), "page.png")
	if keep := os.Getenv("TOKAMAK_SCREENSHOTS"); keep != "" {
		shot = filepath.Join(keep, "history.png")
	}
	args := []string{"--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
		"--disable-sync", "--user-data-dir=" + t.TempDir(), "--window-size=800,700", "file://" + at}
	out, err := exec.Command(chromium, append([]string{"--screenshot=" + shot}, args...)...).CombinedOutput()
	require.NoError(t, err, string(out))
	f, err := os.Open(shot)
	require.NoError(t, err)
	defer f.Close()
	img, err := png.Decode(f)
	require.NoError(t, err)
	colours := map[string]int{}
	for y := range img.Bounds().Dy() {
		for x := range img.Bounds().Dx() {
			r, g, b, _ := img.At(x, y).RGBA()
			colours[fmt.Sprintf("%02x%02x%02x", r>>8, g>>8, b>>8)]++
		}
	}
	assert.Greater(t, colours["3366cc"], 500, "the lines")
	assert.Greater(t, colours["dd2222"], 20, "the mark of what got worse")
	assert.Greater(t, colours["228822"], 20, "the mark of what got better")
	dom, err := exec.Command(chromium, append([]string{"--dump-dom"}, args...)...).Output()
	require.NoError(t, err)
	assert.Equal(t, 2, bytes.Count(dom, []byte("<svg")))
}
