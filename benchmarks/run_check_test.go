package benchmarks

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/perf/benchfmt"

	"github.com/tokamak-engine/tokamak/benchmarks/load"
	"github.com/tokamak-engine/tokamak/benchmarks/load/stub"
	"github.com/tokamak-engine/tokamak/fixtures/checkout"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// benchmark runs this test binary again as `go test -bench` would, on the tiny model, and gives both outputs.
func benchmark(t *testing.T, pattern string, args ...string) (stdout, stderr string, exit int) {
	t.Helper()
	dir, err := configs.Dir("tiny")
	require.NoError(t, err)
	self, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.Command(self, append([]string{"-test.run=^$", "-test.bench=" + pattern, "--model-path", dir, "--load-format=dummy"}, args...)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	var failed *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &failed)
		exit = failed.ExitCode()
	}
	return out.String(), errs.String(), exit
}

// read parses rows and configuration as benchstat does; what it warns of fails the test.
func read(t *testing.T, text string) []*benchfmt.Result {
	t.Helper()
	var rows []*benchfmt.Result
	reader := benchfmt.NewReader(strings.NewReader(text), "stdout")
	for reader.Scan() {
		switch r := reader.Result().(type) {
		case *benchfmt.Result:
			rows = append(rows, r.Clone())
		case *benchfmt.UnitMetadata:
		case *benchfmt.SyntaxError:
			t.Errorf("benchstat would warn: %v", r)
		}
	}
	require.NoError(t, reader.Err())
	return rows
}

func value(t *testing.T, r *benchfmt.Result, unit string) float64 {
	t.Helper()
	v, ok := r.Value(unit)
	require.True(t, ok, "%s in %s", unit, r.Name)
	return v
}

func TestOneBatchRows(t *testing.T) {
	jsonl := filepath.Join(t.TempDir(), "r.jsonl")
	out, errs, exit := benchmark(t, "OneBatch", "--batch", "1,3", "--input-len", "5", "--output-len", "4", "-test.count=3", "--result-filename", jsonl)
	require.Zero(t, exit, errs)
	rows := read(t, out)
	require.Len(t, rows, 2*3*3)
	assert.Equal(t, "OneBatch/model=tiny/dtype=bfloat16/batch=1/in=5/out=4/phase=prefill", string(rows[0].Name))
	for i, phase := range []string{"prefill", "decode", "total"} {
		for n := range 3 {
			r := rows[3*i+n]
			assert.True(t, strings.HasSuffix(string(r.Name), "/phase="+phase))
			assert.Positive(t, value(t, r, phase+"-tok/s"))
			assert.Positive(t, value(t, r, phase+"-ms"))
			_, has := r.Value("ns/op")
			assert.False(t, has)
			for _, key := range []string{"backend", "model", "dtype", "device", "flags"} {
				assert.NotEmpty(t, r.GetConfig(key), key)
			}
		}
	}
	assert.Equal(t, 1, strings.Count(out, "backend: cpu\n"), "configuration once")
	for _, line := range strings.Split(strings.TrimSpace(errs), "\n") {
		assert.True(t, strings.HasPrefix(line, "#"), line)
	}
	assert.Contains(t, errs, "batch=3 in=5 out=4")

	lines := readJSONL(t, jsonl)
	require.Len(t, lines, 6, "a line for each run, none for warm-ups")
	for _, field := range []string{
		"run_name", "batch_size", "input_len", "output_len", "prefill_latency", "prefill_throughput", "median_decode_latency",
		"median_decode_throughput", "total_latency", "overall_throughput",
	} {
		assert.Contains(t, lines[0], field)
	}
}

func readJSONL(t *testing.T, path string) (lines []map[string]any) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	for scan := bufio.NewScanner(f); scan.Scan(); {
		var line map[string]any
		require.NoError(t, json.Unmarshal(scan.Bytes(), &line))
		lines = append(lines, line)
	}
	return lines
}

func TestOneBatchSkipsWhatDoesNotFit(t *testing.T) {
	out, errs, exit := benchmark(t, "OneBatch", "--batch", "1", "--input-len", "5,100000", "--output-len", "2")
	assert.Zero(t, exit)
	assert.Len(t, read(t, out), 3)
	assert.Contains(t, errs, "# skipped batch=1 in=100000 out=2: needs 100002 tokens of context, has 4096")
	assert.Contains(t, errs, "# 1 cases skipped")

	out, errs, exit = benchmark(t, "OneBatch", "--batch", "64", "--input-len", "100", "--output-len", "2", "--max-total-tokens", "512")
	assert.Zero(t, exit)
	assert.Empty(t, read(t, out), "no row for a benchmark whose every case is skipped")
	assert.Regexp(t, `# skipped batch=64 in=100 out=2: needs \d+ KV pages, has \d+`, errs)
}

func TestOneBatchOfPrompts(t *testing.T) {
	// The tiny model has no tokenizer: the flag says so in one line.
	prompts := filepath.Join(t.TempDir(), "prompts.txt")
	require.NoError(t, os.WriteFile(prompts, []byte("one\ntwo\n"), 0o600))
	out, _, exit := benchmark(t, "OneBatch", "--prompt-filename", prompts)
	assert.Equal(t, 1, exit)
	assert.Contains(t, out, "--prompt-filename needs the model's tokenizer")
}

func TestCorrectness(t *testing.T) {
	out, errs, exit := benchmark(t, "OneBatch", "--correct", "--output-len", "6", "--cut-len", "3")
	assert.Zero(t, exit, out)
	assert.Equal(t, 3, strings.Count(errs, "# the same in 5 ways"))
	assert.Empty(t, read(t, out), "nothing is timed")
}

func TestOfflineRows(t *testing.T) {
	out, errs, exit := benchmark(t, "OfflineThroughput", "--num-prompt", "12", "--random-input", "24", "--random-output", "16", "-test.count=2")
	require.Zero(t, exit, out+errs)
	rows := read(t, out)
	require.Len(t, rows, 2)
	assert.Equal(t, "OfflineThroughput/model=tiny/dtype=bfloat16/dataset=random/in=24/out=16/prompts=12", string(rows[0].Name))
	r := rows[1]
	assert.InEpsilon(t, value(t, r, "in-tok/s")+value(t, r, "out-tok/s"), value(t, r, "total-tok/s"), 0.001)
	assert.Positive(t, value(t, r, "req/s"))
	assert.Zero(t, value(t, r, "cache-hit-pct"), "no run finds the prompts of the one before in the cache")
}

func TestOfflineSharesPrefixes(t *testing.T) {
	out, errs, exit := benchmark(t, "OfflineThroughput", "--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "2", "--gsp-prompts-per-group", "6",
		"--gsp-system-prompt-len", "128", "--gsp-question-len", "8", "--gsp-output-len", "8", "--max-running-requests", "2")
	require.Zero(t, exit, errs)
	assert.Greater(t, value(t, read(t, out)[0], "cache-hit-pct"), 50.0)
	out, _, _ = benchmark(t, "OfflineThroughput", "--dataset-name", "generated-shared-prefix", "--gsp-num-groups", "2", "--gsp-prompts-per-group", "6",
		"--gsp-system-prompt-len", "128", "--gsp-question-len", "8", "--gsp-output-len", "8", "--disable-radix-cache")
	assert.Zero(t, value(t, read(t, out)[0], "cache-hit-pct"))
}

func TestOfflineLengths(t *testing.T) {
	top, err := checkout.Root()
	require.NoError(t, err)
	out, errs, exit := benchmark(t, "OfflineThroughput", "--dataset-name", "lengths", "--num-prompts", "5",
		"--dataset-path", filepath.Join(top, "fixtures/datasets/testdata/sharegpt_like_lengths.json"))
	require.Zero(t, exit, out+errs)
	assert.Contains(t, out, "/dataset=lengths/prompts=5")
}

func TestServingRows(t *testing.T) {
	s, err := stub.Start("", true, func(_ int, r *stub.Request) stub.Reply {
		return stub.Reply{Tokens: r.MaxTokens, TTFT: 20 * time.Millisecond, ITL: 2 * time.Millisecond}
	})
	require.NoError(t, err)
	defer s.Close()
	plot, jsonl := filepath.Join(t.TempDir(), "p.html"), filepath.Join(t.TempDir(), "r.jsonl")
	out, errs, exit := benchmark(t, "Serving", "--backend", "vllm", "--base-url", s.URL, "--num-prompts", "20", "--random-input", "8", "--random-output", "8",
		"--request-rate", "40,80,inf", "--goodput", "ttft:1000", "tpot:1000", "--flush-cache", "--plot", plot, "--result-filename", jsonl, "--client-max-lag", "1")
	require.Zero(t, exit, out+errs)
	rows := read(t, out)
	require.Len(t, rows, 3)
	assert.Equal(t, "Serving/backend=vllm/model=stub/dataset=random/in=8/out=8/prompts=20/rate=40", string(rows[0].Name))
	assert.Equal(t, "Serving/backend=vllm/model=stub/dataset=random/in=8/out=8/prompts=20/rate=inf", string(rows[2].Name))
	for _, r := range rows {
		assert.GreaterOrEqual(t, value(t, r, "ttft-p50-ms"), 20.0)
		assert.InDelta(t, 100, value(t, r, "goodput-pct"), 0)
		assert.GreaterOrEqual(t, value(t, r, "ttft-p99-ms"), value(t, r, "ttft-p50-ms"))
	}
	assert.Contains(t, errs, "highest rate with 99 % of requests within tpot:1000 ttft:1000: inf")
	assert.Equal(t, 3, s.Flushes)
	assert.Len(t, readJSONL(t, jsonl), 3*21)
	assert.FileExists(t, plot)
	assert.Len(t, s.Requests(), 3*(20+1), "a warm-up for each case")
	measured := map[string]bool{}
	for _, r := range s.Requests()[1:21] {
		measured[string(r.Body)] = true
	}
	assert.False(t, measured[string(s.Requests()[0].Body)], "the warm-up's prompt is not measured")
}

func TestServingFailsInWords(t *testing.T) {
	s, err := stub.Start("", false, func(n int, r *stub.Request) stub.Reply {
		if n%4 == 3 {
			return stub.Reply{Status: 429}
		}
		return stub.Reply{Tokens: r.MaxTokens}
	})
	require.NoError(t, err)
	defer s.Close()
	args := []string{"--backend", "sglang", "--base-url", s.URL, "--num-prompts", "8", "--random-input", "4", "--random-output", "4", "--client-max-cpu", "1", "--client-max-lag", "1"}
	out, _, exit := benchmark(t, "Serving", args...)
	assert.Equal(t, 1, exit)
	assert.Contains(t, out, "2 of 8 requests failed: 2 http-429; the first one: scripted error")
	out, errs, exit := benchmark(t, "Serving", append(args, "--allow-failures", "3")...)
	require.Zero(t, exit, out+errs)
	assert.InDelta(t, 2, value(t, read(t, out)[0], "failed"), 0)
}

func TestOwnServer(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the server: left out of -short")
	}
	out, errs, exit := benchmark(t, "Serving", "--backend", "tokamak", "--num-prompt", "10", "--random-input", "16", "--random-output", "8", "--client-max-lag", "1")
	require.Zero(t, exit, out+errs)
	rows := read(t, out)
	require.Len(t, rows, 1)
	assert.Equal(t, "Serving/backend=tokamak/model=tiny/dataset=random/in=16/out=8/prompts=10/rate=inf", string(rows[0].Name))
	assert.Zero(t, value(t, rows[0], "cache-hit-pct"))
	assert.False(t, math.IsNaN(value(t, rows[0], "ttft-p99-ms")))
}

func TestAServerThatRunsAlreadyIsOursIfItHasTheModel(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, `{"model_path":"some/where/M"}`) }))
	before := set
	defer func() { set = before }()
	runs := func(model string) bool {
		set = defaultSettings()
		set.engine.ModelPath = model
		return (&target{client: &load.Client{Kind: load.FindKind("tokamak"), BaseURL: s.URL}}).runsAlready(context.Background())
	}
	assert.True(t, runs("/else/where/M"))
	assert.False(t, runs("/else/where/N"))
	assert.False(t, runs(""), "SmolLM2, if it was fetched")
	s.Close()
	assert.False(t, runs("/else/where/M"))
}

func TestBadInputIsOneLine(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for _, test := range []struct {
		args []string
		exit int
		want string
	}{
		{[]string{"--nonesuch"}, 2, "nonesuch"},
		{[]string{"--batch", "0"}, 2, `--batch-size "0": want at least 1`},
		{[]string{"--input-len=-1"}, 2, `--input-len "-1": want at least 1`},
		{[]string{"--model-path", missing}, 1, "missing"},
		{[]string{"--json-model-override-args", `{"num_hidden_layer": 1}`}, 1, "num_hidden_layers"},
		{[]string{"--server-binary", "/nonexistent"}, 0, ""},
	} {
		out, errs, exit := benchmark(t, "OneBatch", append(test.args, "--output-len", "2", "--input-len", "4")...)
		if test.args[0] == "--input-len=-1" {
			out, errs, exit = benchmark(t, "OneBatch", test.args...)
		}
		assert.Equal(t, test.exit, exit, test.args)
		assert.Contains(t, out+errs, test.want)
		if test.exit == 2 {
			assert.Equal(t, 1, strings.Count(strings.TrimSpace(errs), "\n")+1, "one line: %s", errs)
		}
		if test.exit != 0 {
			assert.NotContains(t, out, "decode-ms\t", "no row")
		}
	}
	out, _, exit := benchmark(t, "Serving", "--server-binary", "/nonexistent")
	assert.Equal(t, 1, exit)
	assert.Contains(t, out, "start the server")
	out, _, exit = benchmark(t, "Serving", "--backend", "vllm", "--base-url", "http://127.0.0.1:1", "--ready-check-timeout-sec", "0.2")
	assert.Equal(t, 1, exit)
	assert.Contains(t, out, "no server at http://127.0.0.1:1")
	out, _, exit = benchmark(t, "OfflineThroughput", "--dataset-name", "sharegpt")
	assert.Equal(t, 1, exit)
	assert.Contains(t, out, "dataset sharegpt: needs a file: set --dataset-path")
}

// TestBenchstat runs the tool itself on two runs: it reads them with no warning.
func TestBenchstat(t *testing.T) {
	if testing.Short() {
		t.Skip("builds benchstat: left out of -short")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("no go command to run benchstat with")
	}
	dir := t.TempDir()
	files := []string{filepath.Join(dir, "old"), filepath.Join(dir, "new")}
	for _, file := range files {
		out, errs, exit := benchmark(t, "OneBatch|OfflineThroughput", "--batch", "1", "--input-len", "4", "--output-len", "3", "--num-prompts", "2",
			"--random-input", "4", "--random-output", "3", "-test.count=6")
		require.Zero(t, exit)
		require.NoError(t, os.WriteFile(file, []byte(errs+out), 0o600), "both outputs in one, as go test writes them")
	}
	cmd := exec.Command("go", append([]string{"tool", "benchstat"}, files...)...)
	var warnings bytes.Buffer
	cmd.Stderr = &warnings
	report, err := cmd.Output()
	require.NoError(t, err, warnings.String())
	assert.Empty(t, warnings.String())
	assert.Contains(t, string(report), "decode-tok/s")
	assert.Contains(t, string(report), "vs base")
	assert.NotContains(t, string(report), "need >= 6 samples")
}
