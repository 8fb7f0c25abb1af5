package load

import (
	"bufio"
	"encoding/json"
	"encoding/xml"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/benchmarks/load/stub"
)

// plotCases runs a small sweep against a server that slows down with load.
func plotCases(t *testing.T) []PlotCase {
	s := startStub(t, func(n int, r *stub.Request) stub.Reply {
		return stub.Reply{Tokens: r.MaxTokens, TTFT: time.Duration(5+n%20) * ms, ITL: time.Duration(1+n%3) * ms}
	})
	var cases []PlotCase
	for _, rate := range []float64{50, 100, 400} {
		report := run(t, Config{Client: client(t, "tokamak", s.URL), Arrivals: Arrivals{Rate: rate, Burstiness: 1, Seed: 1}}, samples(60, 16, 12))
		cases = append(cases, PlotCase{"rate=" + number(rate), report, Summarize(report, Objectives{"ttft": 20})})
	}
	return cases
}

func TestPlot(t *testing.T) {
	cases := plotCases(t)
	cases[2].Summary.Failures["timeout"] = 2
	path := filepath.Join(t.TempDir(), "report.html")
	if keep := os.Getenv("TOKAMAK_KEEP_PLOT"); keep != "" {
		path = keep // to look at it
	}
	require.NoError(t, WritePlot(path, "Serving <tokamak>", []Setting{{"model", "a & b"}, {"flags", "--x=<y>"}}, cases))
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	page := string(data)
	assert.Contains(t, page, "Serving &lt;tokamak&gt;")
	assert.NotContains(t, page, "http", "nothing from elsewhere")
	assert.NotContains(t, page, "<script")
	assert.NotContains(t, page, "NaN")
	assert.NotContains(t, page, "ZgotmplZ", "html/template found something unsafe")
	assert.Contains(t, page, "failed: 2 timeout")
	assert.Equal(t, 2+4+2*3, strings.Count(page, "<svg"), "sweep, distributions, two for each run")
	for _, svg := range strings.SplitAfter(page, "</svg>") {
		if i := strings.Index(svg, "<svg"); i >= 0 {
			require.NoError(t, xml.Unmarshal([]byte(svg[i:]), new(struct{})), "well-formed")
		}
	}
}

func TestPlotOfNothing(t *testing.T) {
	empty := PlotCase{"nothing", &Report{}, Summarize(&Report{}, nil)}
	require.NoError(t, WritePlot(filepath.Join(t.TempDir(), "x.html"), "t", nil, []PlotCase{empty}))
}

func TestNiceTicks(t *testing.T) {
	assert.Equal(t, []float64{0, 20, 40, 60, 80, 100}, niceTicks(0, 100))
	assert.InDeltaSlice(t, []float64{0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6}, niceTicks(0, 0.55), 1e-12)
	for _, high := range []float64{0, 1e-9, 3, 1e12, 0.3} {
		ticks := niceTicks(0, high)
		assert.GreaterOrEqual(t, ticks[len(ticks)-1], high)
		assert.Less(t, len(ticks), 12)
		assert.False(t, math.IsNaN(ticks[0]))
	}
}

func TestJSONL(t *testing.T) {
	cases := plotCases(t)[:1]
	path := filepath.Join(t.TempDir(), "results.jsonl")
	for range 2 {
		require.NoError(t, WriteJSONL(path, cases[0].Report, cases[0].Summary, map[string]any{"backend": "tokamak"}))
	}
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	kinds := map[any]int{}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var line map[string]any
		require.NoError(t, json.Unmarshal(lines.Bytes(), &line))
		kinds[line["record"]]++
		if line["record"] == "run" {
			assert.Equal(t, "tokamak", line["backend"])
			for _, field := range []string{"version", "duration", "completed", "total_input_tokens", "output_throughput", "mean_ttft_ms", "p99_itl_ms", "median_e2e_latency_ms"} {
				assert.Contains(t, line, field)
			}
		} else {
			assert.Len(t, line["chunk_at_ms"], 12)
			assert.InDelta(t, 12, line["output_tokens"], 0)
		}
	}
	assert.Equal(t, map[any]int{"run": 2, "request": 120}, kinds)
}
