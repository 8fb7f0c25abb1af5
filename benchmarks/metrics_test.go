package benchmarks

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/tokamak-engine/tokamak/benchmarks/load"
)

// metric is a row of the one table of units: whatever benchmark reports a unit means the same by it.
type metric struct {
	unit       string
	better     string // "higher" or "lower": the gate judges no unit that has no direction
	definition string
}

var metrics = []metric{
	{"prefill-ms", "lower", "static batch: first launch until every row's first token is on the host; median of runs"},
	{"prefill-tok/s", "higher", "batch x input length / prefill-ms"},
	{"decode-ms", "lower", "one decode step of a static batch, launch to token on the host; median of steps"},
	{"decode-p99-ms", "lower", "99th percentile of the decode steps"},
	{"decode-tok/s", "higher", "batch / decode-ms"},
	{"total-ms", "lower", "static batch: first launch to last token"},
	{"total-tok/s", "higher", "prompt and output tokens a second, over the whole run"},
	{"floor-ms", "lower", "least time of a decode step: streamed weights and the KV cache at the mean context, over the device's measured read bandwidth"},
	{"pct-of-floor", "higher", "100 x floor-ms / decode-ms"},
	{"spec-tok/s", "higher", "decode rate of a static batch's prompts run as requests with speculation"},
	{"accept-len", "higher", "tokens that a row with draft tokens gave, mean: 1 and more"},
	{"accept-pct", "higher", "draft tokens that were accepted"},
	{"speedup", "higher", "spec-tok/s / the rate of the static batch's decode steps, one launched ahead of the other"},
	{"same-pct", "higher", "tokens up to each row's first difference from the static batch's: 100 but for near-ties of rounded logits"},
	// Below: of many requests.
	{"req/s", "higher", "completed requests over the whole run"},
	{"in-tok/s", "higher", "prompt tokens of completed requests over the whole run"},
	{"out-tok/s", "higher", "output tokens of completed requests over the whole run"},
	{"steady-out-tok/s", "higher", "output tokens a second in the longest stretch at 90 % of the peak concurrency or more: without ramp-up and drain"},
	{"cache-hit-pct", "higher", "prompt tokens that the server took from its prefix cache"},
	{"preemptions", "lower", "requests that lost their pages and were resumed"},
	{"conc-mean", "lower", "requests in progress, mean over the run"},
	{"goodput-req/s", "higher", "requests a second that met every objective"},
	{"goodput-pct", "higher", "requests that met every objective, of all"},
	{"failed", "lower", "failed requests"},
	{"lag-p99-ms", "lower", "the client's own delay, 99th percentile: sent after it could have been"},
	{"client-cpu-pct", "lower", "processors that the client took, of all"},
}

// staticMetrics is the number of units at the table's head that belong to a static batch.
var staticMetrics = slices.IndexFunc(metrics, func(m metric) bool { return m.unit == "req/s" })

// sharedUnits are those of the head that many requests report, too.
var sharedUnits = []string{"total-tok/s", "accept-len", "accept-pct"}

// latencies are reported as mean, p50, p90, p95 and p99.
var latencies = []struct{ name, definition string }{
	{"ttft", "scheduled time to first token"},
	{"tpot", "mean time per output token after the first chunk, of each request"},
	{"itl", "time between tokens: the gap before a chunk, shared by its tokens"},
	{"e2e", "scheduled time to the end of the answer"},
	{"queue", "wait for a place under --max-concurrency"},
}

var quantiles = []string{"mean", "p50", "p90", "p95", "p99"}

func init() {
	for _, l := range latencies {
		for _, q := range quantiles {
			metrics = append(metrics, metric{l.name + "-" + q + "-ms", "lower", l.definition + ", " + q})
		}
	}
}

func findMetric(unit string) *metric {
	for _, rows := range [][]metric{metrics, kernelMetrics, cardMetrics} {
		for i := range rows {
			if rows[i].unit == unit {
				return &rows[i]
			}
		}
	}
	return nil
}

// unitLines says for benchstat which way is better: for a static batch's units or for those of many requests.
func unitLines(static bool) string {
	var out strings.Builder
	for i, m := range metrics {
		if m.better != "" && (static == (i < staticMetrics) || slices.Contains(sharedUnits, m.unit)) {
			fmt.Fprintf(&out, "Unit %s better=%s\n", m.unit, m.better)
		}
	}
	more := cardMetrics
	if set.profile.on {
		more = slices.Concat(cardMetrics, kernelMetrics)
	}
	for _, m := range more {
		if m.better != "" {
			fmt.Fprintf(&out, "Unit %s better=%s\n", m.unit, m.better)
		}
	}
	return out.String()
}

// figure is one value of a row.
type figure struct {
	unit  string
	value float64
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// distFigures are a latency's figures, none if it was not measured.
func distFigures(name string, d *load.Dist) []figure {
	if d.N == 0 {
		return nil
	}
	var figures []figure
	for i, v := range []time.Duration{d.Mean, d.P50, d.P90, d.P95, d.P99} {
		figures = append(figures, figure{name + "-" + quantiles[i] + "-ms", ms(v)})
	}
	return figures
}

// results collects what was reported, for the summary at the end.
type results struct {
	mu      sync.Mutex
	rows    []*row
	skipped int
	after   []string // lines that a benchmark has to say at the end
	atEnd   []func() error
}

// row is a benchmark's row with the values of all its repetitions.
type row struct {
	name   string
	units  []string
	values map[string][]float64
}

// report prints a row's figures. A figure that is no number means that the run went wrong.
func (t *results) report(b *testing.B, figures []figure) {
	b.Helper()
	b.ReportMetric(0, "ns/op") // hides it: the time of an iteration is none of the row's figures
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.rows, func(r *row) bool { return r.name == b.Name() })
	if i < 0 {
		i = len(t.rows)
		t.rows = append(t.rows, &row{name: b.Name(), values: map[string][]float64{}})
	}
	r := t.rows[i]
	for _, f := range figures {
		if math.IsNaN(f.value) || math.IsInf(f.value, 0) {
			b.Fatalf("%s is %v", f.unit, f.value)
		}
		if findMetric(f.unit) == nil {
			b.Fatalf("unit %s is not in the table of metrics", f.unit)
		}
		b.ReportMetric(f.value, f.unit)
		if !slices.Contains(r.units, f.unit) {
			r.units = append(r.units, f.unit)
		}
		r.values[f.unit] = append(r.values[f.unit], f.value)
	}
}

// skip says why a case is not run and counts it.
func (t *results) skip(name, why string) {
	term.note("skipped %s: %s", name, why)
	t.mu.Lock()
	t.skipped++
	t.mu.Unlock()
}

// say keeps a line for the end.
func (t *results) say(format string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.after = append(t.after, fmt.Sprintf(format, args...))
}

// finally has f called once after all benchmarks.
func (t *results) finally(f func() error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.atEnd = append(t.atEnd, f)
}

func (t *results) finish() {
	for _, f := range t.atEnd {
		if err := f(); err != nil {
			term.note("%v", err)
		}
	}
}

// print shows the summary: a table for each benchmark and set of figures, medians over repetitions. Phases of a case share a line.
func (t *results) print(c *console) {
	if len(t.rows) == 0 && t.skipped == 0 && len(t.after) == 0 {
		return
	}
	var out strings.Builder
	rest := mergePhases(t.rows)
	for len(rest) > 0 {
		benchmark, fixed := rest[0].parts()
		units := summaryUnits(rest[0].units)
		var group, others []*row
		for _, r := range rest {
			if name, f := r.parts(); name == benchmark && f == fixed && slices.Equal(summaryUnits(r.units), units) {
				group = append(group, r)
			} else {
				others = append(others, r)
			}
		}
		rest = others
		fmt.Fprintf(&out, "\n%s %s\n", benchmark, fixed)
		w := tabwriter.NewWriter(&out, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintf(w, "\t%s\tn\t\n", strings.Join(units, "\t"))
		for _, r := range group {
			fmt.Fprintf(w, "%s\t", r.caseName())
			n := 0
			for _, u := range units {
				fmt.Fprintf(w, "%.4g\t", medianOf(r.values[u]))
				n = max(n, len(r.values[u]))
			}
			fmt.Fprintf(w, "%d\t\n", n)
		}
		w.Flush()
	}
	if t.skipped > 0 {
		fmt.Fprintf(&out, "\n%d cases skipped: see above\n", t.skipped)
	}
	for _, line := range t.after {
		out.WriteString("\n" + line)
	}
	c.note("%s", out.String())
}

// mergePhases joins a case's rows of different phases, which have no unit in common.
func mergePhases(rows []*row) []*row {
	var merged []*row
	for _, r := range rows {
		name := r.name
		for _, phase := range []string{"prefill", "decode", "total", "speculate"} {
			name = strings.TrimSuffix(name, "/phase="+phase)
		}
		i := slices.IndexFunc(merged, func(m *row) bool { return m.name == name })
		if i < 0 {
			i = len(merged)
			merged = append(merged, &row{name: name, values: map[string][]float64{}})
		}
		for _, u := range r.units {
			merged[i].units = append(merged[i].units, u)
			merged[i].values[u] = r.values[u]
		}
	}
	return merged
}

// parts splits a row's name into the benchmark and the model's part, which heads a table; caseName is the rest.
func (r *row) parts() (benchmark, fixed string) {
	keys := strings.Split(r.name, "/")
	for _, k := range keys[1:] {
		if headKey(k) {
			fixed += k + " "
		}
	}
	return strings.TrimPrefix(keys[0], "Benchmark"), strings.TrimSpace(fixed)
}

func (r *row) caseName() string {
	var rest []string
	for _, k := range strings.Split(r.name, "/")[1:] {
		if !headKey(k) {
			rest = append(rest, k)
		}
	}
	return strings.Join(rest, " ")
}

func headKey(k string) bool {
	name, _, _ := strings.Cut(k, "=")
	return slices.Contains([]string{"backend", "model", "dtype", "dataset"}, name)
}

// summaryUnits leaves out what makes the table too wide to read: of the latencies it keeps p50 and p99.
func summaryUnits(units []string) []string {
	var kept []string
	for _, u := range units {
		wide := false
		for _, q := range []string{"-mean-ms", "-p90-ms", "-p95-ms"} {
			wide = wide || strings.HasSuffix(u, q)
		}
		if !wide && u != "client-cpu-pct" {
			kept = append(kept, u)
		}
	}
	return kept
}

func medianOf(values []float64) float64 {
	s := slices.Sorted(slices.Values(values))
	if len(s) == 0 {
		return math.NaN()
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}
