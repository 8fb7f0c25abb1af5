package benchmarks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/tokamak-engine/tokamak/benchmarks/load"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// BenchmarkServing offers a dataset to a server over HTTP and times every token. Without --base-url it starts our own server, in
// its own process, and ends it afterwards; with --backend it takes one of this model that runs on the default port already.
//
//	go test ./benchmarks -run '^$' -bench Serving --backend tokamak --num-prompts 1000 --random-input 1024 --random-output 512
//	go test ./benchmarks -run '^$' -bench Serving --backend vllm --base-url http://127.0.0.1:8000 --request-rate 1,2,4,8,inf --goodput ttft:200
func BenchmarkServing(b *testing.B) {
	defer allProcessors()()
	ctx := context.Background()
	t, err := serve(ctx)
	if err != nil {
		b.Fatal(err)
	}
	samples, err := t.samples(ctx)
	if err != nil {
		b.Fatal(t.explain(err))
	}
	configLines.print(false, t.config())
	objectives, err := load.ParseObjectives(set.serving.goodput.values)
	if err != nil {
		b.Fatal(err)
	}
	name := fmt.Sprintf("backend=%s/model=%s/%s", t.client.Kind.Name, t.modelName(), set.caseName(samples, true))
	if t.own {
		name += specName(set.engine)
	}
	if n, i := longest(samples); t.context > 0 && n > t.context {
		table.skip(name, fmt.Sprintf("request %d needs %d tokens of context, the server has %d", i+1, n, t.context))
		b.SkipNow()
	}
	for _, concurrency := range set.serving.maxConcurrency.values {
		var tried []*servingCase
		for _, rate := range rates(samples) {
			c := &servingCase{target: t, samples: samples, objectives: objectives, rate: rate, concurrency: concurrency}
			leaf(b, name+"/"+c.name(), c.bench)
			if c.last != nil {
				tried = append(tried, c)
			}
			if set.profile.on {
				c.profile(b, name)
			}
		}
		highestGood(tried)
	}
}

// rates are the arrival processes to offer: those asked for, or the trace's own.
func rates(samples []datasets.Sample) []float64 {
	if followTrace(samples) {
		return []float64{math.NaN()}
	}
	return set.serving.requestRate.values
}

// followTrace tells that requests arrive when the trace's did: if that was asked for, or if there is a trace and no rate.
func followTrace(samples []datasets.Sample) bool {
	return samples[0].At != nil && (set.serving.traceTimes || !set.given["request-rate"])
}

// servingCase is one rate of a sweep.
type servingCase struct {
	target      *target
	samples     []datasets.Sample
	objectives  load.Objectives
	rate        float64
	concurrency int
	warm        bool
	last        *load.Summary
	card        cardMeter // idle in the profiled pass
}

func (c *servingCase) name() string {
	v := &set.serving
	name := "rate=" + rateText(c.rate)
	switch {
	case followTrace(c.samples):
		name = "rate=trace"
	case v.rampUp != "":
		name = fmt.Sprintf("rate=%s-%g-%g", v.rampUp, v.rampStart, v.rampEnd)
	}
	if v.burstiness != 1 {
		name += fmt.Sprintf("/burst=%g", v.burstiness)
	}
	if c.concurrency > 0 {
		name += fmt.Sprintf("/conc=%d", c.concurrency)
	}
	return name
}

func rateText(rate float64) string {
	if math.IsInf(rate, 1) {
		return "inf"
	}
	return strconv.FormatFloat(rate, 'g', -1, 64)
}

func (c *servingCase) arrivals() (load.Arrivals, error) {
	v := &set.serving
	a := load.Arrivals{
		Rate: c.rate, Burstiness: v.burstiness, Ramp: load.Ramp(v.rampUp), StartRate: v.rampStart, EndRate: v.rampEnd, Seed: uint64(set.datasetSeed),
	}
	if v.traceTimes && c.samples[0].At == nil {
		return a, fmt.Errorf("--use-trace-timestamps: dataset %s has no arrival times, mooncake has", set.datasetName)
	}
	if followTrace(c.samples) {
		for i := range c.samples {
			a.Trace = append(a.Trace, *c.samples[i].At)
		}
	}
	return a, nil
}

func (c *servingCase) bench(b *testing.B) {
	var figures []figure
	runs := 0
	c.card = *newCardMeter(c.target.onCard)
	var cards []cardRun
	for b.Loop() {
		before := c.target.draftCounters()
		report, err := c.run()
		if err != nil {
			b.Fatal(c.target.explain(err))
		}
		s := load.Summarize(report, c.objectives)
		cards = append(cards, c.card.stop(s.OutputTokens))
		if err := c.check(report, s); err != nil {
			b.Fatal(c.target.explain(err))
		}
		if err := c.keep(report, s); err != nil {
			b.Fatal(err)
		}
		figures = append(append(figures, c.figures(s)...), acceptFigures(before, c.target.draftCounters())...)
		runs++
		c.last = s
	}
	table.report(b, append(meanFigures(figures, runs), cardFigures(b.Name(), cards)...))
}

func (c *servingCase) run() (*load.Report, error) {
	ctx, t := context.Background(), c.target
	a, err := c.arrivals()
	if err != nil {
		return nil, err
	}
	if !c.warm && !set.skipWarmup {
		if err := t.warmUp(ctx, c.samples); err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
		c.warm = true
	}
	if set.serving.flushCache || (t.own && !set.engine.DisableRadixCache) {
		if err := t.client.Flush(ctx); err != nil {
			return nil, fmt.Errorf("flush the prefix cache: %w", err)
		}
	}
	turns := 0
	for i := range c.samples {
		turns += 1 + len(c.samples[i].Turns)
	}
	bar := term.start(c.name(), turns, "requests")
	defer bar.done()
	c.card.start()
	report, err := load.Run(ctx, load.Config{
		Client: t.client, Arrivals: a, MaxConcurrency: c.concurrency, Duration: set.serving.duration, KeepText: set.serving.outputText,
		OnResult: func(*load.Result) { bar.add(1) },
	}, c.samples)
	if err != nil {
		return nil, err
	}
	if d := set.serving.duration; d > 0 && len(report.Results) == turns && report.Duration < d {
		term.note("all %d requests were sent before --duration %v was over: raise --num-prompts", turns, d)
	}
	return report, nil
}

// lagPart is the part of the median latency that the client may be late by, if it is more than --client-max-lag.
const lagPart = 0.05

// check refuses a run whose figures would mean nothing.
func (c *servingCase) check(report *load.Report, s *load.Summary) error {
	if failed := s.Failed(); failed > set.serving.allowFailures || s.Completed == 0 {
		var first *load.Failure
		for i := range report.Results {
			if f := report.Results[i].Failure; f != nil && first == nil {
				first = f
			}
		}
		if first == nil {
			return errors.New("no request was sent")
		}
		return fmt.Errorf("%d of %d requests failed: %s; the first one: %s (--allow-failures N lets N fail)",
			failed, failed+s.Completed, s.FailureText(), first.Detail)
	}
	limits := load.Limits{Lag: set.serving.maxLag, LagPart: lagPart, CPU: set.serving.maxCPU}
	return limits.Check(s)
}

func (c *servingCase) figures(s *load.Summary) []figure {
	figures := append(throughputFigures(s), figure{"conc-mean", s.Concurrency})
	if share, ok := s.Share(); ok {
		figures = append(figures, figure{"goodput-req/s", s.PerSecond(*s.Good)}, figure{"goodput-pct", 100 * share})
	}
	if set.serving.allowFailures > 0 {
		figures = append(figures, figure{"failed", float64(s.Failed())})
	}
	for _, l := range []struct {
		name string
		d    *load.Dist
	}{{"ttft", &s.TTFT}, {"tpot", &s.TPOT}, {"itl", &s.ITL}, {"e2e", &s.E2E}} {
		figures = append(figures, distFigures(l.name, l.d)...)
	}
	if c.concurrency > 0 && !math.IsInf(c.rate, 1) {
		figures = append(figures, distFigures("queue", &s.Queued)...)
	}
	figures = append(figures, figure{"lag-p99-ms", ms(s.Lag.P99)})
	if s.ClientCPU != nil {
		figures = append(figures, figure{"client-cpu-pct", 100 * *s.ClientCPU})
	}
	return figures
}

// keep writes what is asked for beside the row: the result file, and a page of the report.
func (c *servingCase) keep(report *load.Report, s *load.Summary) error {
	if s.EstimatedRequests > 0 {
		term.note("%s: the server gives no running count of tokens in %d of %d answers: their ITL is a fair split of each chunk's gap",
			c.name(), s.EstimatedRequests, s.Completed)
	}
	if set.serving.plot != "" {
		plots.add(load.PlotCase{Name: c.name(), Report: report, Summary: s}, c.target)
	}
	if set.resultFile == "" {
		return nil
	}
	more := map[string]any{
		"benchmark": "Serving", "tag": set.runName, "backend": c.target.client.Kind.Name, "model": c.target.client.Sampling.Model,
		"base_url": c.target.client.BaseURL, "dataset_name": set.datasetName, "request_rate": rateText(c.rate), "burstiness": rateText(set.serving.burstiness),
		"max_concurrency": c.concurrency, "random_input_len": set.data.RandomInputLen, "random_output_len": set.data.RandomOutputLen,
		"random_range_ratio": set.data.RandomRangeRatio, "seed": set.datasetSeed, "commit": commit(), "flags": set.flagsText(),
	}
	return load.WriteJSONL(set.resultFile, report, s, more)
}

// highestGood says which is the highest of the tried rates that meets the objectives, if there are any.
func highestGood(tried []*servingCase) {
	if len(tried) == 0 || len(tried[0].objectives) == 0 {
		return
	}
	slices.SortFunc(tried, func(a, b *servingCase) int { return cmp.Compare(a.rate, b.rate) })
	var objectives []string
	for metric, limit := range tried[0].objectives {
		objectives = append(objectives, fmt.Sprintf("%s:%g", metric, limit))
	}
	slices.Sort(objectives)
	what := fmt.Sprintf("%g %% of requests within %s", 100*set.serving.goodputShare, strings.Join(objectives, " "))
	if n := tried[0].concurrency; n > 0 {
		what += fmt.Sprintf(" at --max-concurrency %d", n)
	}
	var best *servingCase
	for _, c := range tried {
		share, _ := c.last.Share()
		if share >= set.serving.goodputShare {
			best = c
		} else if best != nil {
			break // a rate above one that fails is not good, even if a lucky run passes
		}
	}
	if best == nil {
		table.say("no tried rate has %s", what)
		return
	}
	share, _ := best.last.Share()
	table.say("highest rate with %s: %s (%.1f %%, %.4g good requests/s, %.4g output tok/s)",
		what, rateText(best.rate), 100*share, best.last.PerSecond(*best.last.Good), best.last.PerSecond(best.last.OutputTokens))
}

// plotPages collects the runs of the HTML report.
type plotPages struct {
	cases  []load.PlotCase
	target *target
}

var plots plotPages

func (p *plotPages) add(c load.PlotCase, t *target) {
	if p.target == nil {
		table.finally(p.write)
	}
	p.target = t
	p.cases = append(p.cases, c)
}

func (p *plotPages) write() error {
	t := p.target
	var settings []load.Setting
	for _, l := range append(t.config(), keyText{"dataset", set.datasetName}, keyText{"server", t.client.BaseURL}) {
		if l.text != "" {
			settings = append(settings, load.Setting{Name: l.key, Value: l.text})
		}
	}
	if err := load.WritePlot(set.serving.plot, "Serving "+t.modelName()+" by "+t.client.Kind.Name, settings, p.cases); err != nil {
		return err
	}
	term.note("report: %s", set.serving.plot)
	return nil
}
