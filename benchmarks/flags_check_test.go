package benchmarks

import (
	"bytes"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// parseArgs parses a command line as the test binary would get it.
func parseArgs(t *testing.T, args ...string) (*settings, *flag.FlagSet, error) {
	fs := flag.NewFlagSet("benchmarks.test", flag.ContinueOnError)
	fs.String("test.bench", "", "")
	fs.Uint("test.count", 1, "")
	fs.Duration("test.timeout", 0, "")
	fs.Bool("test.v", false, "")
	s := defaultSettings()
	err := s.parse(fs, args)
	return s, fs, err
}

func TestFlagsOfTheReadme(t *testing.T) {
	s, _, err := parseArgs(t, "--model-path", "DIR", "--batch", "32", "--input-len", "256", "--output-len", "32", "--load-format", "dummy",
		"--json-model-override-args", `{"num_hidden_layers": 1, "num_key_value_heads": 1}`)
	require.NoError(t, err)
	assert.Equal(t, "DIR", s.engine.ModelPath)
	assert.Equal(t, []int{32}, s.batchSize.values)
	assert.Equal(t, []int{256}, s.inputLen.values)
	assert.Equal(t, []int{32}, s.outputLen.values)
	assert.Equal(t, "dummy", s.engine.LoadFormat)

	s, _, err = parseArgs(t, "-model", "M", "-num-prompt=10", "--mem-frac", "0.5", "--random-input", "1024", "--random-output=512", "--dataset-name", "random")
	require.NoError(t, err)
	assert.Equal(t, "M", s.engine.ModelPath)
	assert.Equal(t, 10, s.numPrompts)
	assert.InDelta(t, 0.5, s.engine.MemFractionStatic, 0)
	assert.Equal(t, []int{1024, 512}, []int{s.data.RandomInputLen, s.data.RandomOutputLen})

	s, _, err = parseArgs(t, "--num-prompts", "10", "--sharegpt-output-len", "100")
	require.NoError(t, err)
	assert.Equal(t, 100, s.data.RandomOutputLen, "no dataset is named")
	s, _, err = parseArgs(t, "--sharegpt-output-len", "100", "--dataset-name", "random")
	require.NoError(t, err)
	assert.Equal(t, 1024, s.data.RandomOutputLen)

	s, _, err = parseArgs(t, "--backend", "vllm", "--base-url", "http://127.0.0.1:8000", "--request-rate", "16", "--goodput", "ttft:200", "--goodput", "tpot:20")
	require.NoError(t, err)
	assert.Equal(t, "vllm", s.serving.backend)
	assert.Equal(t, []float64{16}, s.serving.requestRate.values)
	assert.Equal(t, []string{"ttft:200", "tpot:20"}, s.serving.goodput.values)
}

func TestLists(t *testing.T) {
	for _, args := range [][]string{
		{"--batch-size", "1,8,32"}, {"--batch-size=1, 8,32"}, {"--batch-size", "1", "--batch-size", "8", "-batch-size=32"}, {"--batch", "1", "8", "32", "--seed", "1"},
	} {
		s, _, err := parseArgs(t, args...)
		require.NoError(t, err, args)
		assert.Equal(t, []int{1, 8, 32}, s.batchSize.values, args)
	}
	s, _, err := parseArgs(t, "--request-rate", "1,2.5,inf")
	require.NoError(t, err)
	assert.Equal(t, []float64{1, 2.5, math.Inf(1)}, s.serving.requestRate.values)
	assert.Equal(t, "1,2.5,inf", s.serving.requestRate.String())
}

func TestEnvironment(t *testing.T) {
	t.Setenv("TOKAMAK_MODEL_PATH", "FROM_ENV")
	t.Setenv("TOKAMAK_BATCH_SIZE", "4,5")
	t.Setenv("TOKAMAK_DISABLE_RADIX_CACHE", "true")
	t.Setenv("TOKAMAK_DURATION", "90")
	s, _, err := parseArgs(t)
	require.NoError(t, err)
	assert.Equal(t, "FROM_ENV", s.engine.ModelPath)
	assert.Equal(t, []int{4, 5}, s.batchSize.values)
	assert.True(t, s.engine.DisableRadixCache)
	assert.Equal(t, 90*time.Second, s.serving.duration)
	assert.True(t, s.given["batch-size"])
	assert.True(t, s.given["model-path"])
	assert.False(t, s.given["input-len"])

	s, _, err = parseArgs(t, "--batch-size", "7", "--model", "FLAG")
	require.NoError(t, err)
	assert.Equal(t, []int{7}, s.batchSize.values, "a flag replaces what the environment gave")
	assert.Equal(t, "FLAG", s.engine.ModelPath)

	t.Setenv("TOKAMAK_BATCH_SIZE", "many")
	_, _, err = parseArgs(t)
	require.ErrorContains(t, err, "TOKAMAK_BATCH_SIZE")
}

// TestGoFlagsAfterValues: what stands behind a bare value reaches the binary without the prefix that `go test` puts there.
func TestGoFlagsAfterValues(t *testing.T) {
	s, fs, err := parseArgs(t, "-test.bench=OneBatch", "--batch", "1", "8", "-count=10", "-v", "--timeout", "3s")
	require.NoError(t, err)
	assert.Equal(t, []int{1, 8}, s.batchSize.values)
	assert.Equal(t, "10", fs.Lookup("test.count").Value.String())
	assert.Equal(t, "true", fs.Lookup("test.v").Value.String())
	assert.Equal(t, "3s", fs.Lookup("test.timeout").Value.String())
	assert.Equal(t, "OneBatch", fs.Lookup("test.bench").Value.String())
}

func TestBadFlags(t *testing.T) {
	for _, test := range []struct {
		args []string
		want string
	}{
		{[]string{"--nonesuch", "1"}, "nonesuch"},
		{[]string{"--batch", "0"}, `--batch-size "0": want at least 1`},
		{[]string{"--batch", "x"}, "not a whole number"},
		{[]string{"--input-len", "-5"}, `--input-len "-5": want at least 1`},
		{[]string{"--output-len=0"}, `--output-len "0"`},
		{[]string{"--dataset-name", "nonesuch"}, "want one of random, random-ids"},
		{[]string{"--backend", "nonesuch"}, "want one of tokamak, tokamak-chat"},
		{[]string{"--num-prompts", "0"}, `--num-prompts "0": want at least 1`},
		{[]string{"--request-rate", "0"}, "request-rate"},
		{[]string{"--request-rate", "fast"}, `"fast" is not a number`},
		{[]string{"--burstiness", "0"}, "burstiness"},
		{[]string{"--goodput", "speed:1"}, `goodput "speed:1": want METRIC:MILLISECONDS`},
		{[]string{"--base-url", "localhost"}, "want http://host:port"},
		{[]string{"--extra-request-body", "[1]"}, "want a JSON object"},
		{[]string{"--header", "novalue"}, "want KEY=VALUE"},
		{[]string{"--duration", "soon"}, "want seconds or a duration"},
		{[]string{"--profile-activities", "TPU"}, "want CPU, GPU or CUDA_PROFILER"},
		{[]string{"stray"}, `unexpected argument "stray"`},
		{[]string{"--batch", "0", "--input-len", "0"}, "; "},
	} {
		_, _, err := parseArgs(t, test.args...)
		require.ErrorContains(t, err, test.want, "%v", test.args)
		assert.NotContains(t, err.Error(), "\n", "one line")
	}
}

func TestUsageNamesEveryFlag(t *testing.T) {
	s := defaultSettings()
	var out bytes.Buffer
	usage(&out, s.engine.Table(), s.table())
	for _, o := range append(s.engine.Table(), s.table()...) {
		assert.True(t, strings.Contains(out.String(), "  --"+o.Name) && strings.Contains(out.String(), "$"+o.Env()), o.Name)
		assert.NotEmpty(t, o.Help, o.Name)
	}
	assert.True(t, strings.Contains(out.String(), "--batch-size (default 1)\n"))
	assert.True(t, strings.Contains(out.String(), "(default inf)"))
}

func TestSecretsAreNotShown(t *testing.T) {
	s, fs, err := parseArgs(t, "--api-key", "hush", "--disable-radix-cache")
	require.NoError(t, err)
	assert.Equal(t, "hush", s.serving.apiKey)
	assert.NotContains(t, fs.Lookup("api-key").Value.String(), "hush")
	h, err := s.serving.headers()
	require.NoError(t, err)
	assert.Equal(t, "Bearer hush", h.Get("Authorization"))
}

func TestMetricsTable(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range metrics {
		assert.False(t, seen[m.unit], m.unit)
		seen[m.unit] = true
		assert.NotEmpty(t, m.definition)
		assert.Contains(t, []string{"higher", "lower"}, m.better, "%s: the gate judges no unit without a direction", m.unit)
		assert.NotContains(t, m.unit, " ")
	}
	assert.Contains(t, unitLines(true), "Unit decode-tok/s better=higher\n")
	assert.Contains(t, unitLines(false), "Unit total-tok/s better=higher\n", "both kinds report it")
	assert.Contains(t, unitLines(false), "Unit ttft-p99-ms better=lower\n")
	assert.NotContains(t, unitLines(true), "ttft")
}

func TestConsoleLinesAreNoConfiguration(t *testing.T) {
	var out bytes.Buffer
	c := &console{w: &out}
	c.note("skipped batch=1: too big\nUnit x better=higher\nBenchmarkX 1 2 ns/op")
	for _, line := range strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n") {
		assert.True(t, strings.HasPrefix(line, "#"), line)
	}
}

func TestRelativePaths(t *testing.T) {
	top := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(top, "m"), 0o755))
	s, _, err := parseArgs(t, "--model-path", "m", "--tokenizer-path", "nowhere", "--dataset-path", "/abs", "--result-filename", "out.jsonl")
	require.NoError(t, err)
	s.pathsFrom(top)
	assert.Equal(t, filepath.Join(top, "m"), s.engine.ModelPath)
	assert.Equal(t, "nowhere", s.engine.TokenizerPath)
	assert.Equal(t, "/abs", s.datasetPath)
	assert.Equal(t, filepath.Join(top, "out.jsonl"), s.resultFile)
	assert.Empty(t, s.serving.plot)
}

func TestModelName(t *testing.T) {
	for path, want := range map[string]string{
		"/m/Llama-3.1-8B/": "Llama-3.1-8B", "x/SmolLM2.Q4_1.gguf": "SmolLM2.Q4_1", "org/name with space": "name_with_space", "/": "model", "a=b": "a_b",
	} {
		assert.Equal(t, want, modelName(path), path)
	}
}

func TestPromptsFor(t *testing.T) {
	assert.Equal(t, 1000, promptsFor(60, []float64{math.Inf(1)}, 1000))
	n := promptsFor(100, []float64{1, 9}, 1000)
	assert.Greater(t, n, 900+5*30)
	assert.Less(t, n, 1200)
}
