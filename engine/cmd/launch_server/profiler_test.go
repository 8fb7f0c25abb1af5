package main

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// client is one that has set no variable: it knows the server's address alone.
type client struct {
	t   *testing.T
	url string
}

func (c client) post(path, body string) (int, string) {
	reply, err := http.Post(c.url+path, "application/json", strings.NewReader(body))
	require.NoError(c.t, err)
	defer reply.Body.Close()
	text, err := io.ReadAll(reply.Body)
	require.NoError(c.t, err)
	return reply.StatusCode, string(text)
}

func (c client) ok(path, body string, out any) {
	code, text := c.post(path, body)
	require.Equal(c.t, 200, code, text)
	if out != nil {
		require.NoError(c.t, json.Unmarshal([]byte(text), out))
	}
}

func (c client) generate(tokens string) {
	c.ok("/generate", `{"input_ids":[1,2,3,4],"sampling_params":{"max_new_tokens":`+tokens+`,"ignore_eos":true}}`, nil)
}

type started struct{ Output string }
type stopped struct{ Files []string }

// readSteps gives the phases of the steps in a trace.
func readSteps(t *testing.T, path string) (phases []string) {
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	gz, err := gzip.NewReader(f)
	require.NoError(t, err)
	var whole struct{ TraceEvents []struct{ Cat, Name string } }
	require.NoError(t, json.NewDecoder(gz).Decode(&whole))
	for _, e := range whole.TraceEvents {
		if e.Cat == "step" {
			phase, _, _ := strings.Cut(e.Name, " ")
			phases = append(phases, phase)
		}
	}
	return phases
}

func TestProfileOfAServer(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "when needed")
	t.Setenv("TOKAMAK_PROFILER_DIR", dir)
	p := launchTiny(t)
	c := client{t, p.url}

	code, text := c.post("/stop_profile", "")
	assert.Equal(t, 409, code)
	assert.Contains(t, text, "no capture is running")

	// What the client names is a file's beginning and no path, and its own directory means nothing here.
	var begun started
	c.ok("/start_profile", `{"output_dir":"../../etc","profile_prefix":"../../etc/run1","num_steps":7,"start_step":2,"activities":["CPU","GPU"],"with_stack":true}`, &begun)
	assert.Equal(t, dir, filepath.Dir(begun.Output), begun.Output)
	assert.True(t, strings.HasPrefix(filepath.Base(begun.Output), "etcrun1-"), begun.Output)
	code, text = c.post("/start_profile", "")
	assert.Equal(t, 409, code)
	assert.Contains(t, text, "stop it first")
	c.generate("20")
	var ended stopped
	c.ok("/stop_profile", "", &ended)
	require.Equal(t, []string{begun.Output}, ended.Files)
	phases := readSteps(t, begun.Output)
	assert.Len(t, phases, 7, "exactly as many as asked for")
	assert.NotContains(t, phases, "prefill", "two steps go before")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing temporary is left")
	assert.Contains(t, p.log(), begun.Output)

	// A capture that ends by itself; its files can be asked for afterwards.
	c.ok("/start_profile", `{"num_steps":1,"stage":"prefill"}`, &begun)
	c.generate("5")
	require.Eventually(t, func() bool { _, err := os.Stat(begun.Output); return err == nil }, 5*time.Second, 5*time.Millisecond)
	assert.Equal(t, []string{"prefill"}, readSteps(t, begun.Output))
	c.ok("/stop_profile", "", &ended)
	assert.Equal(t, []string{begun.Output}, ended.Files)
	code, _ = c.post("/stop_profile", "")
	assert.Equal(t, 409, code, "its files are given once")

	// By stage, a file each.
	c.ok("/start_profile", `{"num_steps":3,"profile_by_stage":true}`, &begun)
	c.generate("20")
	c.ok("/stop_profile", "", &ended)
	require.Len(t, ended.Files, 2)
	assert.Equal(t, []string{"prefill"}, readSteps(t, ended.Files[0]))
	assert.Equal(t, []string{"decode", "decode", "decode"}, readSteps(t, ended.Files[1]))

	// A batch that never comes: there is nothing to write, and that is said.
	c.ok("/start_profile", `{"num_steps":1,"when":"batch >= 8"}`, &begun)
	c.generate("5")
	code, text = c.post("/stop_profile", "")
	assert.Equal(t, 409, code)
	assert.Contains(t, text, "no step was captured")

	for body, want := range map[string]string{
		`{"when":"tokens<3"}`: "batch>=8", `{"stage":"middle"}`: "want all, prefill, decode or both", `{"activities":["TPU"]}`: "want CPU, GPU or CUDA_PROFILER",
		`{"num_steps":1000000}`: "want 1 to", `{"activities":["CUDA_PROFILER"]}`: "CUDA",
		`{"activities":["GPU"]}`: "no CUDA device is in use: ask for CPU",
	} {
		code, text := c.post("/start_profile", body)
		assert.Equal(t, 409, code, body)
		assert.Contains(t, text, want)
		c.generate("2") // serving goes on
	}
}

func TestProfilesThatCannotBeWritten(t *testing.T) {
	t.Setenv("TOKAMAK_PROFILER_DIR", "")
	c := client{t, launchTiny(t).url}
	code, text := c.post("/start_profile", "")
	assert.Equal(t, 409, code)
	assert.Contains(t, text, "set TOKAMAK_PROFILER_DIR")
	c.generate("2")

	t.Setenv("TOKAMAK_PROFILER_DIR", "/proc/self/nowhere") // root may write everywhere else
	c = client{t, launchTiny(t).url}
	code, text = c.post("/start_profile", "")
	assert.Equal(t, 409, code)
	assert.Contains(t, text, "profile directory")
	c.generate("2")
}

func TestSGLangsVariableNamesTheDirectory(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TOKAMAK_PROFILER_DIR", "")
	t.Setenv("SGLANG_TORCH_PROFILER_DIR", dir)
	c := client{t, launchTiny(t).url}
	var begun started
	c.ok("/start_profile", "", &begun)
	assert.Equal(t, dir, filepath.Dir(begun.Output))
	c.generate("3")
	var ended stopped
	c.ok("/stop_profile", "", &ended)
	assert.FileExists(t, begun.Output)
}
