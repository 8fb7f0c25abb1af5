package server

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// copyModel copies a tiny checkpoint with weights into a directory that a test may damage.
func copyModel(t testing.TB) string {
	from, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	to := t.TempDir()
	for _, pattern := range []string{"*.json", "*.safetensors"} {
		files, err := filepath.Glob(filepath.Join(from, pattern))
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			data, err := os.ReadFile(file)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(to, filepath.Base(file)), data, 0o600))
		}
	}
	return to
}

// serveDir serves the checkpoint in dir on loopback.
func serveDir(t testing.TB, dir string) (*Server, *engine.Engine, string, *logBuffer) {
	o := engine.DefaultOptions()
	o.Device, o.SkipTokenizerInit, o.MaxTotalTokens = "cpu", true, 8192
	e, err := engine.Open(context.Background(), dir, engine.WithOptions(o))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, e.Close()) })
	s, logs := testServer(t, nil, nil)
	s.Start(e)
	return s, e, listen(t, s), logs
}

// shards returns the weight files of a model.
func shards(t testing.TB, dir string) []string {
	files, err := filepath.Glob(filepath.Join(dir, "*.safetensors"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	return files
}

// keepStreaming asks for one stream after another until one fails, and returns the last answer's status and body.
func keepStreaming(base string, prompt string) (status int, body string) {
	for {
		resp, err := http.Post(base+"/generate", "application/json", strings.NewReader(
			`{"input_ids":[`+prompt+`],"stream":true,"stream_mode":"delta","sampling_params":{"max_new_tokens":120,"ignore_eos":true}}`))
		if err != nil {
			return 0, err.Error()
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return resp.StatusCode, err.Error()
		}
		if resp.StatusCode != http.StatusOK || strings.Contains(string(b), `"error"`) {
			return resp.StatusCode, string(b)
		}
	}
}

// TestWeightsCutShortWhileServing truncates the weight files under their mapping while streams run: what reads them faults. No
// client is left hanging, each is told that the server failed, the server reports itself unhealthy and asks to be ended.
func TestWeightsCutShortWhileServing(t *testing.T) {
	dir := copyModel(t)
	s, e, base, logs := serveDir(t, dir)
	const clients = 6
	ends := make(chan [2]string, clients)
	for i := range clients {
		go func() {
			status, body := keepStreaming(base, "1,2,"+string(rune('3'+i)))
			ends <- [2]string{http.StatusText(status), body}
		}()
	}
	eventually(t, "streams", func() bool { return e.Stats().OutputTokensTotal > 200 })
	for _, file := range shards(t, dir) {
		require.NoError(t, os.Truncate(file, 0))
	}
	for range clients {
		select {
		case end := <-ends:
			assert.NotEmpty(t, end[0], "no answer at all: %s", end[1])
			lines := strings.Split(strings.TrimSpace(end[1]), "\n")
			last := strings.TrimPrefix(lines[len(lines)-1], "data: ")
			if last == "[DONE]" {
				last = strings.TrimPrefix(lines[len(lines)-3], "data: ")
			}
			assert.Contains(t, []string{"internal_error", "backend_failed", "unhealthy"}, decodeError(t, last).Error.Code)
			assert.NotContains(t, end[1], dir, "paths are nobody's business")
		case <-time.After(20 * time.Second):
			t.Fatal("a client hangs")
		}
	}
	select {
	case <-s.Failed():
	case <-time.After(5 * time.Second):
		t.Fatal("the server does not ask to be ended")
	}
	for _, path := range []string{"/health", "/healthz", "/readyz"} {
		assert.Equal(t, http.StatusServiceUnavailable, do(s, "GET", path, "").Code, path)
	}
	assert.Contains(t, scrape(s), `tokamak_engine_healthy{model_name="tiny"} 0`)
	if !strings.Contains(logs.String(), `msg="backend failed" error="backend failed, restart the engine: step `) {
		t.Error("the log does not say what happened")
	}
	assert.Zero(t, e.Stats().Running)
}

// TestWeightsOverwrittenWhileServing fills the weight files with NaNs while they are mapped: requests end with an error instead
// of with nonsense, and the server lives.
func TestWeightsOverwrittenWhileServing(t *testing.T) {
	dir := copyModel(t)
	s, _, base, _ := serveDir(t, dir)
	body := `{"input_ids":[1,2,3],"sampling_params":{"max_new_tokens":4,"ignore_eos":true}}`
	status, answer := send(t, base+"/generate", body)
	require.Equal(t, 200, status, answer)
	for _, file := range shards(t, dir) {
		info, err := os.Stat(file)
		require.NoError(t, err)
		f, err := os.OpenFile(file, os.O_WRONLY, 0)
		require.NoError(t, err)
		_, err = f.WriteAt(bytes.Repeat([]byte{0xff}, int(info.Size())), 0)
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	_, err := http.Get(base + "/flush_cache")
	require.NoError(t, err)
	status, answer = send(t, base+"/generate", body)
	assert.Equal(t, 500, status, answer)
	assert.Equal(t, 200, do(s, "GET", "/health", "").Code)
}
