package load

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"math"
	"os"
	"time"
)

//go:embed plot.html.tmpl
var plotTemplate string

var plotPage = template.Must(template.New("plot").Parse(plotTemplate))

// PlotCase is one run of a report.
type PlotCase struct {
	Name    string
	Report  *Report
	Summary *Summary
}

// Setting is a line of a report's head.
type Setting struct{ Name, Value string }

// WritePlot writes an HTML page with diagrams of the runs. The page needs nothing from elsewhere: no script, no font, no network.
func WritePlot(path, title string, settings []Setting, cases []PlotCase) error {
	page := struct {
		Title    string
		Settings []Setting
		Columns  []string
		Rows     [][]string
		Cases    []plotCase
		Sweep    []*chart
		CDFs     []*chart
	}{Title: title, Settings: settings, Columns: tableColumns}
	for _, c := range cases {
		page.Rows = append(page.Rows, tableRow(c))
		page.Cases = append(page.Cases, plotCase{c.Name, c.Summary.FailureText(), present(timeline(c.Report), latencyOverTime(c.Report))})
	}
	page.CDFs = present(
		cdf("Time to first token", cases, func(s *Summary) *Dist { return &s.TTFT }),
		cdf("Time per output token", cases, func(s *Summary) *Dist { return &s.TPOT }),
		cdf("Inter-token latency", cases, func(s *Summary) *Dist { return &s.ITL }),
		cdf("End-to-end latency", cases, func(s *Summary) *Dist { return &s.E2E }),
	)
	if len(cases) > 1 {
		page.Sweep = present(
			sweep("Time to first token against throughput", cases, func(s *Summary) *Dist { return &s.TTFT }),
			sweep("Time per output token against throughput", cases, func(s *Summary) *Dist { return &s.TPOT }),
		)
	}
	var out bytes.Buffer
	if err := plotPage.Execute(&out, page); err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	return nil
}

type plotCase struct {
	Name, Failures string
	Charts         []*chart
}

func present(charts ...*chart) []*chart {
	var kept []*chart
	for _, c := range charts {
		if c != nil {
			kept = append(kept, c)
		}
	}
	return kept
}

var tableColumns = []string{
	"completed", "failed", "duration s", "req/s", "input tok/s", "output tok/s", "steady output tok/s", "cache hit %",
	"TTFT p50 ms", "TTFT p99 ms", "TPOT p50 ms", "TPOT p99 ms", "ITL p99 ms", "E2E p50 ms", "E2E p99 ms", "good %", "client lag p99 ms", "client CPU %",
}

func tableRow(c PlotCase) []string {
	s := c.Summary
	whole := func(n int) string { return fmt.Sprint(n) }
	real := func(x float64) string { return fmt.Sprintf("%.4g", x) }
	quantile := func(d *Dist, q time.Duration) string {
		if d.N == 0 {
			return "–"
		}
		return real(milliseconds(q))
	}
	optional := func(has bool, x func() float64) string {
		if !has {
			return "–"
		}
		return real(x())
	}
	return []string{
		c.Name, whole(s.Completed), whole(s.Failed()), real(s.Duration.Seconds()),
		real(s.PerSecond(s.Completed)), real(s.PerSecond(s.InputTokens)), real(s.PerSecond(s.OutputTokens)),
		optional(s.Steady != nil, func() float64 { return s.Steady.OutputRate() }),
		optional(s.CachedKnown && s.InputTokens > 0, func() float64 { return 100 * float64(s.CachedTokens) / float64(s.InputTokens) }),
		quantile(&s.TTFT, s.TTFT.P50), quantile(&s.TTFT, s.TTFT.P99), quantile(&s.TPOT, s.TPOT.P50), quantile(&s.TPOT, s.TPOT.P99),
		quantile(&s.ITL, s.ITL.P99), quantile(&s.E2E, s.E2E.P50), quantile(&s.E2E, s.E2E.P99),
		optional(s.Good != nil, func() float64 { share, _ := s.Share(); return 100 * share }),
		quantile(&s.Lag, s.Lag.P99), optional(s.ClientCPU != nil, func() float64 { return 100 * *s.ClientCPU }),
	}
}

// cdf shows which part of the requests (or tokens) took how long. The slowest 0.1 % are cut off: one outlier would squeeze the
// rest against the axis, and p99 and the maximum stand in the table and the result file.
func cdf(title string, cases []PlotCase, of func(*Summary) *Dist) *chart {
	var all []series
	for i, c := range cases {
		d := of(c.Summary)
		if d.N == 0 {
			continue
		}
		s := series{Name: c.Name, Color: i}
		points := min(d.N, maxPoints)
		for p := range points {
			q := 0.999 * float64(p) / float64(max(points-1, 1))
			s.X, s.Y = append(s.X, milliseconds(d.Quantile(q))), append(s.Y, 100*q)
		}
		all = append(all, s)
	}
	return newChart(title+" (CDF)", "ms", "% at most", all)
}

// sweep shows what latency a throughput costs: a point for each run.
func sweep(title string, cases []PlotCase, of func(*Summary) *Dist) *chart {
	p50, p99 := series{Name: "p50", Color: 0}, series{Name: "p99", Color: 1, Dashed: true}
	for _, c := range cases {
		d := of(c.Summary)
		if d.N == 0 {
			continue
		}
		x := c.Summary.PerSecond(c.Summary.OutputTokens)
		p50.X, p50.Y = append(p50.X, x), append(p50.Y, milliseconds(d.P50))
		p99.X, p99.Y = append(p99.X, x), append(p99.Y, milliseconds(d.P99))
	}
	return newChart(title, "output tokens a second", "ms", []series{p50, p99})
}

// timelineBins is the number of intervals that a run is cut into.
const timelineBins = 120

// timeline shows requests in progress and tokens a second over the run.
func timeline(r *Report) *chart {
	if r.Duration <= 0 {
		return nil
	}
	progress := series{Name: "requests in progress", Color: 0, Steps: true}
	for _, s := range concurrency(r.Results, func(x *Result) time.Duration { return x.Sent }) {
		progress.X, progress.Y = append(progress.X, s.at.Seconds()), append(progress.Y, float64(s.n))
	}
	bin := r.Duration / timelineBins
	if bin <= 0 {
		return nil
	}
	tokens := make([]float64, timelineBins+1)
	for i := range r.Results {
		for _, c := range r.Results[i].Chunks {
			tokens[min(int(c.At/bin), timelineBins)] += float64(c.Tokens)
		}
	}
	// Both on one axis: tokens are scaled to a round unit, named in the legend, that fits under the requests' peak.
	peakRequests, peakTokens := 1.0, 0.0
	for _, y := range progress.Y {
		peakRequests = max(peakRequests, y)
	}
	for i := range tokens {
		tokens[i] /= bin.Seconds()
		peakTokens = max(peakTokens, tokens[i])
	}
	all := []series{progress}
	if peakTokens > 0 {
		unit := math.Pow(10, math.Ceil(math.Log10(peakTokens/peakRequests)))
		rate := series{Name: fmt.Sprintf("output tokens a second / %g", unit), Color: 1, Steps: true}
		for i := range timelineBins {
			rate.X, rate.Y = append(rate.X, (time.Duration(i)*bin).Seconds()), append(rate.Y, tokens[i]/unit)
		}
		all = append(all, rate)
	}
	return newChart("Load over time", "s", "", all)
}

// latencyOverTime shows each request's latencies where it was scheduled.
func latencyOverTime(r *Report) *chart {
	ttft, e2e := series{Name: "time to first token", Color: 2, Dots: true}, series{Name: "end-to-end", Color: 3, Dots: true}
	for i := range r.Results {
		x := &r.Results[i]
		if x.Failure != nil {
			continue
		}
		if d, ok := x.TTFT(); ok {
			ttft.X, ttft.Y = append(ttft.X, x.Scheduled.Seconds()), append(ttft.Y, milliseconds(d))
		}
		e2e.X, e2e.Y = append(e2e.X, x.Scheduled.Seconds()), append(e2e.Y, milliseconds(x.E2E()))
	}
	return newChart("Latency by scheduled time", "s", "ms", []series{e2e, ttft})
}
