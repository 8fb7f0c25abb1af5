package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite golden files")

func bench(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(args, &out, &err)
	return out.String(), err.String(), code
}

// The tables must be byte for byte what x/perf's own tool prints, on its own test data and on ours.
func TestTablesEqualXPerfs(t *testing.T) {
	tool := filepath.Join(t.TempDir(), "benchstat")
	build := exec.Command("go", "build", "-o", tool, "golang.org/x/perf/cmd/benchstat")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/perf").Output()
	require.NoError(t, err)
	theirs := filepath.Join(strings.TrimSpace(string(dir)), "cmd", "benchstat", "testdata")
	at := func(names ...string) []string {
		for i, n := range names {
			if strings.HasSuffix(n, ".txt") {
				names[i] = filepath.Join(theirs, n)
			}
		}
		return names
	}
	cases := map[string][]string{
		"two files":        at("old.txt", "new.txt"),
		"crc":              at("crc-old.txt", "crc-new.txt"),
		"columns by key":   at("-col", "/poly", "-row", "/size@num", "crc-new.txt"),
		"size against":     at("-row", ".name", "-col", "/format", "new.txt"),
		"ignore":           at("-ignore", "goos", "crc-old.txt", "crc-new.txt"),
		"filter":           at("-filter", "/format:json", "old.txt", "new.txt"),
		"zero":             at("zero.txt"),
		"small":            at("smallSample.txt"),
		"units":            at("units.txt"),
		"issue19565":       at("issue19565.txt"),
		"issue19634":       at("issue19634.txt"),
		"hidden variance":  at("-row", ".name", "new.txt"),
		"ours":             {"testdata/base.txt", "testdata/slow.txt"},
		"three":            {"a=testdata/base.txt", "b=testdata/slow.txt", "c=testdata/gone.txt"},
		"confidence":       {"-confidence", "0.8", "-alpha", "0.2", "testdata/base.txt", "testdata/same.txt"},
		"standard library": {"testdata/strconv.txt"},
		"garbage":          {"testdata/garbage.txt", "testdata/base.txt"},
		"another gpu":      {"testdata/base.txt", "testdata/othergpu.txt"},
		"duplicate names":  {"testdata/base.txt", "testdata/base.txt"},
	}
	for name, args := range cases {
		t.Run(name, func(t *testing.T) {
			ignore := []string{"-ignore", "commit"}
			for _, a := range args {
				if a == "-ignore" {
					ignore = nil
				}
			}
			args = append(ignore, args...)
			want, _ := exec.Command(tool, args...).Output()
			got, _, code := bench(t, append([]string{"-tables-only"}, args...)...)
			assert.Equal(t, string(want), got)
			assert.NotEmpty(t, want)
			assert.Zero(t, code)
		})
	}
}

func TestVerdicts(t *testing.T) {
	cases := []struct {
		name string
		args []string
		code int
		says string
	}{
		{"same build", []string{"base.txt", "same.txt"}, 0, "no regression"},
		{"5 % slower", []string{"base.txt", "slow.txt"}, 1, "worse OneBatch/model=llama-3.1-8b/dtype=bf16/batch=8"},
		{"10 % faster", []string{"base.txt", "fast.txt"}, 0, "2 better"},
		{"threshold above the change", []string{"-threshold", "8%", "base.txt", "slow.txt"}, 0, "no regression"},
		{"threshold by unit", []string{"-threshold", "step-ms=8%,decode-tok/s=8%", "base.txt", "slow.txt"}, 0, "no regression"},
		{"row gone and skipped", []string{"base.txt", "gone.txt"}, 2, "is gone from"},
		{"row gone, allowed", []string{"-allow-missing", "base.txt", "gone.txt"}, 0, "skipped:"},
		{"row new", []string{"gone.txt", "base.txt"}, 0, "is new in"},
		{"another card", []string{"base.txt", "othergpu.txt"}, 2, `gpu differs: "NVIDIA H200"`},
		{"too few samples", []string{"base.txt", "few.txt"}, 2, "too few samples"},
		{"garbage", []string{"base.txt", "garbage.txt"}, 2, "not benchmark format"},
		{"truncated line", []string{"base.txt", "truncated.txt"}, 2, "not benchmark format"},
		{"NaN", []string{"base.txt", "nan.txt"}, 2, "not a number"},
		{"exact unit lost one", []string{"base.txt", "exact.txt"}, 1, "tokens"},
		{"no direction", []string{"nodirection.txt", "nodirection.txt"}, 2, "nobody said which way"},
		{"no direction, ignored", []string{"-ignore-unknown-units", "nodirection.txt", "nodirection.txt"}, 0, "no regression"},
		{"throttled", []string{"base.txt", "throttled.txt"}, 2, "throttled (power)"},
		{"failed benchmark", []string{"base.txt", "failed.txt"}, 2, "failed:"},
		{"one file", []string{"base.txt"}, 2, "one file alone"},
		{"empty", []string{"base.txt", os.DevNull}, 2, "is gone"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for i, a := range c.args {
				if strings.HasSuffix(a, ".txt") {
					c.args[i] = filepath.Join("testdata", a)
				}
			}
			out, _, code := bench(t, c.args...)
			assert.Equal(t, c.code, code, out)
			assert.Contains(t, out, c.says)
		})
	}
}

// The same quantity in another prefix of a known unit is the same row; in another unit it is another row, and the old one is gone.
func TestMixedUnits(t *testing.T) {
	dir := t.TempDir()
	write := func(name, line string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte("Unit y-ms better=lower\nUnit y-us better=lower\n"+strings.Repeat(line+"\n", 10)), 0o600))
		return path
	}
	mb, b := write("mb.txt", "BenchmarkX 1 250 MB/s"), write("b.txt", "BenchmarkX 1 250000000 B/s")
	out, _, code := bench(t, mb, b)
	assert.Zero(t, code, out)
	assert.Contains(t, out, "1 no worse")
	ms, us := write("ms.txt", "BenchmarkX 1 2.5 y-ms"), write("us.txt", "BenchmarkX 1 2500 y-us")
	out, _, code = bench(t, ms, us)
	assert.Equal(t, 2, code, out)
	assert.Contains(t, out, "y-ms is gone from")
}

func TestUnusableArguments(t *testing.T) {
	cases := map[string][]string{
		"no such file":       {"testdata/base.txt", "testdata/none.txt"},
		"directory":          {"testdata", "testdata"},
		"--threshold \"x\"":  {"-threshold", "x", "testdata/base.txt", "testdata/same.txt"},
		"--format \"yaml\"":  {"-format", "yaml", "testdata/base.txt", "testdata/same.txt"},
		"--filter":           {"-filter", "(", "testdata/base.txt", "testdata/same.txt"},
		"--row":              {"-row", "@", "testdata/base.txt", "testdata/same.txt"},
		"--alpha":            {"-alpha", "2", "testdata/base.txt", "testdata/same.txt"},
		"Usage":              {},
		"flag provided":      {"-nonsense"},
		"usage: benchstat b": {"baseline", "x"},
		"usage: benchstat h": {"history", "x"},
	}
	for says, args := range cases {
		t.Run(says, func(t *testing.T) {
			_, stderr, code := bench(t, args...)
			assert.Equal(t, 2, code)
			if says != "no such file" && says != "directory" {
				assert.Contains(t, stderr, says)
			}
			assert.NotEmpty(t, stderr)
		})
	}
}

func TestFormatsGolden(t *testing.T) {
	for _, format := range []string{"text", "md", "json", "html", "junit", "csv"} {
		for _, pair := range []string{"same", "slow", "gone"} {
			t.Run(format+"/"+pair, func(t *testing.T) {
				out, _, _ := bench(t, "-format", format, "base=testdata/base.txt", "new=testdata/"+pair+".txt")
				golden := filepath.Join("testdata", "golden", pair+"."+format)
				if *update {
					require.NoError(t, os.MkdirAll(filepath.Dir(golden), 0o755))
					require.NoError(t, os.WriteFile(golden, []byte(out), 0o644))
				}
				want, err := os.ReadFile(golden)
				require.NoError(t, err)
				assert.Equal(t, string(want), out)
				switch format {
				case "json":
					assert.True(t, json.Valid([]byte(out)))
				case "junit":
					assert.NoError(t, xml.Unmarshal([]byte(out), new(struct{})))
				}
			})
		}
	}
}

// Names come from files that a stranger may have written: none may break out of a report.
func TestReportsEscapeNames(t *testing.T) {
	dir := t.TempDir()
	evil := `BenchmarkX/a=<script>alert(1)</script>|` + "`@everyone`"
	var text strings.Builder
	for i := range 10 {
		fmt.Fprintf(&text, "%s 1 %d ns/op\n", evil, 100+i)
	}
	path := filepath.Join(dir, "e.txt")
	require.NoError(t, os.WriteFile(path, []byte(text.String()), 0o644))
	for format, bad := range map[string][]string{"md": {"<script>", "@everyone"}, "html": {"<script>"}} {
		out, _, _ := bench(t, "-format", format, "a="+path, "b="+path)
		for _, b := range bad {
			assert.NotContains(t, out, b)
		}
	}
}

// noisy writes results of rows benchmarks, count samples each, whose noise is normal with the given relative deviation.
func noisy(t testing.TB, path string, rng *rand.Rand, rows, count int, noise, scale float64) {
	var text strings.Builder
	for r := range rows {
		for range count {
			fmt.Fprintf(&text, "BenchmarkRow/id=%d 1 %.6f ns/op\n", r, 1000*scale*(1+noise*rng.NormFloat64()))
		}
	}
	require.NoError(t, os.WriteFile(path, []byte(text.String()), 0o644))
}

func TestPlantedSlowdownIsCaught(t *testing.T) {
	dir, rng := t.TempDir(), rand.New(rand.NewPCG(1, 2))
	caught := 0
	for range 100 {
		a, b := filepath.Join(dir, "a.txt"), filepath.Join(dir, "b.txt")
		noisy(t, a, rng, 1, 10, 0.01, 1)
		noisy(t, b, rng, 1, 10, 0.01, 1.03)
		if _, _, code := bench(t, a, b); code == 1 {
			caught++
		}
	}
	t.Logf("3 %% slower at 1 %% noise, n=10: caught in %d of 100 runs", caught)
	assert.GreaterOrEqual(t, caught, 95)
}

func TestFewFalseAlarms(t *testing.T) {
	dir, rng := t.TempDir(), rand.New(rand.NewPCG(3, 4))
	alarms := 0
	for range 100 {
		a, b := filepath.Join(dir, "a.txt"), filepath.Join(dir, "b.txt")
		noisy(t, a, rng, 200, 10, 0.01, 1)
		noisy(t, b, rng, 200, 10, 0.01, 1)
		if _, _, code := bench(t, a, b); code == 1 {
			alarms++
		}
	}
	t.Logf("100 A/A runs over 200 rows at 1 %% noise: %d alarms", alarms)
	assert.LessOrEqual(t, alarms, 5)
}

func TestNoiseReport(t *testing.T) {
	dir, rng := t.TempDir(), rand.New(rand.NewPCG(5, 6))
	path := filepath.Join(dir, "a.txt")
	noisy(t, path, rng, 3, 40, 0.01, 1)
	out, _, code := bench(t, "-aa", path)
	assert.Zero(t, code)
	assert.Contains(t, out, "visible change")
	assert.Contains(t, out, "of 100 comparisons of the build with itself")
	noisy(t, path, rng, 1, 40, 0.10, 1)
	out, _, _ = bench(t, "-aa", path)
	assert.Contains(t, out, "warning: 1 rows show only changes of more than twice their threshold")
	_, stderr, code := bench(t, "-aa", os.DevNull)
	assert.Equal(t, 2, code)
	assert.Contains(t, stderr, "-count=20")
}

// A million lines must take under 5 s and 500 MB.
func TestAMillionRows(t *testing.T) {
	if testing.Short() {
		t.Skip("a million rows take seconds: run without -short")
	}
	dir := t.TempDir()
	for i, name := range []string{"a.txt", "b.txt"} {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		var text bytes.Buffer
		for r := range 50_000 {
			for s := range 10 {
				fmt.Fprintf(&text, "BenchmarkRow/id=%d \t1\t%d ns/op\n", r, 1000+s+i)
			}
		}
		_, err = f.Write(text.Bytes())
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	runtime.GC()
	var peak uint64
	done, stopped := make(chan bool), make(chan bool)
	go func() {
		defer close(stopped)
		for {
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapInuse+m.StackInuse)
			select {
			case <-done:
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	start := time.Now()
	_, _, code := bench(t, "-format", "csv", filepath.Join(dir, "a.txt"), filepath.Join(dir, "b.txt"))
	took := time.Since(start)
	close(done)
	<-stopped
	t.Logf("10^6 lines: %v, peak %d MB", took, peak>>20)
	assert.Equal(t, 2, code) // 50,000 rows need more than 10 samples a side
	assert.Less(t, peak, uint64(500<<20))
}
