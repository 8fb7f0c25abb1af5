package benchmarks

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/tokamak-engine/tokamak/benchmarks/load"
	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// BenchmarkOfflineThroughput runs a whole dataset through the engine in this process: every request is there at the start.
//
//	go test ./benchmarks -run '^$' -bench OfflineThroughput --model-path DIR --num-prompts 100
func BenchmarkOfflineThroughput(b *testing.B) {
	defer allProcessors()()
	e, err := model.open(openOptions(func(o *engine.Options) {
		o.MaxQueuedRequests = max(o.MaxQueuedRequests, set.numPrompts, maxOfflineQueue)
	}))
	if err != nil {
		b.Fatal(err)
	}
	samples, err := set.loadSamples(e.Info().VocabSize, e.Info().MaxContext, e.Tokenizer())
	if err != nil {
		b.Fatal(err)
	}
	if samples, err = firstTurns(e, samples); err != nil {
		b.Fatal(err)
	}
	configLines.print(false, engineConfig(e))
	name := fmt.Sprintf("model=%s/dtype=%s/%s", modelName(e.Options().ModelPath), e.Info().DType, set.caseName(samples, false)) + specName(e.Options())
	if n, i := longest(samples); n > e.Info().MaxContext {
		table.skip(name, fmt.Sprintf("request %d needs %d tokens of context, has %d: shorten it or raise --context-length", i+1, n, e.Info().MaxContext))
		b.SkipNow()
	}
	if have := e.Info().NumPages * e.Info().PageSize; have > 0 {
		if n, i := longest(samples); n > have {
			table.skip(name, fmt.Sprintf("request %d needs %d tokens of KV cache, has %d: raise --mem-fraction-static or --max-total-tokens", i+1, n, have))
			b.SkipNow()
		}
	}
	warm := set.skipWarmup
	leaf(b, name, func(b *testing.B) {
		var summaries []*load.Summary
		var preempted []float64
		var accepts [][]figure
		card, cards := newCardMeter(e.Info().Name == "cuda"), []cardRun(nil)
		for b.Loop() {
			if !warm {
				if err := warmUp(e, samples); err != nil {
					b.Fatalf("warm-up: %v", err)
				}
				warm = true
			}
			card.start()
			before := e.Stats()
			report, preemptions, err := offline(e, samples)
			if err != nil {
				b.Fatal(err)
			}
			s := load.Summarize(report, nil)
			cards = append(cards, card.stop(s.OutputTokens))
			accepts = append(accepts, acceptFigures(before, e.Stats()))
			summaries, preempted = append(summaries, s), append(preempted, float64(preemptions))
			if err := writeOffline(e, s); err != nil {
				b.Fatal(err)
			}
		}
		var figures []figure
		for i, s := range summaries {
			f := append(throughputFigures(s), figure{"preemptions", preempted[i]})
			f = append(f, accepts[i]...)
			figures = append(figures, append(f, distFigures("itl", &s.ITL)...)...)
		}
		table.report(b, append(meanFigures(figures, len(summaries)), cardFigures(b.Name(), cards)...))
	})
	if set.profile.on {
		profileOffline(b, e, name, samples)
	}
}

// maxOfflineQueue has room for any dataset that sets its own size.
const maxOfflineQueue = 1 << 20

// firstTurns gives every sample as token ids; further turns are left out, for there is no one to wait for an answer.
func firstTurns(e *engine.Engine, samples []datasets.Sample) ([]datasets.Sample, error) {
	out := slices.Clone(samples)
	for i := range out {
		s := &out[i]
		s.Turns = nil
		if s.Messages != nil || s.IDs == nil {
			ids, err := sampleIDs(e, s)
			if err != nil {
				return nil, fmt.Errorf("sample %d: %w", i+1, err)
			}
			s.IDs = ids
		}
	}
	return out, nil
}

// offline submits every sample at once and awaits all.
func offline(e *engine.Engine, samples []datasets.Sample) (*load.Report, uint64, error) {
	if err := e.FlushCache(); err != nil { // an earlier run's prompts are not to be found in the cache
		return nil, 0, err
	}
	bar := term.start("offline", len(samples), "requests")
	defer bar.done()
	before := e.Stats().PreemptionsTotal
	report := &load.Report{Started: time.Now(), Results: make([]load.Result, len(samples))}
	errs := make([]error, len(samples))
	var running sync.WaitGroup
	for i := range samples {
		running.Add(1)
		go func() {
			defer running.Done()
			report.Results[i], errs[i] = offlineRequest(e, &samples[i], i, report.Started)
			bar.add(1)
		}()
	}
	running.Wait()
	for i, err := range errs {
		if err != nil {
			return nil, 0, fmt.Errorf("request %d: %w", i+1, err)
		}
	}
	for i := range report.Results {
		report.Duration = max(report.Duration, report.Results[i].End)
	}
	return report, e.Stats().PreemptionsTotal - before, nil
}

// offlineRequest runs one request and checks that it did what was asked.
func offlineRequest(e *engine.Engine, s *datasets.Sample, index int, started time.Time) (load.Result, error) {
	sampling := engine.DefaultSampling(s.OutputLen)
	sampling.IgnoreEOS = !set.disableIgnoreEOS
	r := load.Result{Index: index, WantPrompt: len(s.IDs), WantOutput: s.OutputLen}
	var done *engine.Output
	for event, err := range e.Stream(context.Background(), engine.Request{InputIDs: s.IDs, Sampling: sampling}) {
		if err != nil {
			return r, err
		}
		if n := len(event.TokenIDs); n > 0 {
			at := event.At.Sub(started)
			if len(r.Chunks) == 0 {
				r.FirstToken = at
			}
			r.Chunks = append(r.Chunks, load.Chunk{At: at, Tokens: n})
		}
		if event.Done != nil {
			done = event.Done
		}
	}
	if done == nil {
		return r, fmt.Errorf("the stream ended without an output")
	}
	r.Finish = string(done.Finish)
	r.PromptTokens = load.Count{N: done.PromptTokens, Known: true}
	r.CachedTokens = load.Count{N: done.CachedTokens, Known: true}
	r.OutputTokens = load.Count{N: len(done.TokenIDs), Known: true}
	r.End = done.Finished.Sub(started)
	streamed := 0
	for _, c := range r.Chunks {
		streamed += c.Tokens
	}
	n := len(done.TokenIDs)
	switch {
	case done.Finish != engine.FinishLength && (sampling.IgnoreEOS || done.Finish != engine.FinishStop):
		return r, fmt.Errorf("ended by %q after %d of %d tokens", done.Finish, n, s.OutputLen)
	case done.Finish == engine.FinishLength && n != s.OutputLen, n < 1, n > s.OutputLen:
		return r, fmt.Errorf("%d tokens, want %d", n, s.OutputLen)
	case streamed != n:
		return r, fmt.Errorf("%d tokens were streamed of %d", streamed, n)
	case done.PromptTokens != len(s.IDs):
		return r, fmt.Errorf("%d prompt tokens counted, %d sent", done.PromptTokens, len(s.IDs))
	}
	return r, nil
}

// Warm-up of the offline benchmark, as SGLang's: a few requests of other prompts.
const (
	warmRequests  = 16
	warmInputLen  = 256
	warmOutLength = 16
)

// warmUp runs prompts that the dataset does not hold, no longer than the dataset's own.
func warmUp(e *engine.Engine, samples []datasets.Sample) error {
	in, out := 1, 1
	for i := range samples {
		in, out = max(in, len(samples[i].IDs)), max(out, samples[i].OutputLen)
	}
	o := datasets.Options{Seed: uint64(set.datasetSeed), VocabSize: e.Info().VocabSize}
	_, _, err := offline(e, datasets.Warmup(o, min(len(samples), warmRequests), min(in, warmInputLen), min(out, warmOutLength)))
	return err
}

// throughputFigures are the figures that Offline and Serving share.
func throughputFigures(s *load.Summary) []figure {
	figures := []figure{
		{"req/s", s.PerSecond(s.Completed)}, {"in-tok/s", s.PerSecond(s.InputTokens)}, {"out-tok/s", s.PerSecond(s.OutputTokens)},
		{"total-tok/s", s.PerSecond(s.InputTokens + s.OutputTokens)},
	}
	if s.Steady != nil {
		figures = append(figures, figure{"steady-out-tok/s", s.Steady.OutputRate()})
	}
	if s.CachedKnown && s.InputTokens > 0 {
		figures = append(figures, figure{"cache-hit-pct", 100 * float64(s.CachedTokens) / float64(s.InputTokens)})
	}
	return figures
}

// meanFigures averages the figures of several iterations of one row; a figure that an iteration lacks is left out of the mean.
func meanFigures(all []figure, runs int) []figure {
	if runs == 1 {
		return all
	}
	var means []figure
	counts := map[string]int{}
	for _, f := range all {
		i := slices.IndexFunc(means, func(m figure) bool { return m.unit == f.unit })
		if i < 0 {
			i = len(means)
			means = append(means, figure{unit: f.unit})
		}
		means[i].value += f.value
		counts[f.unit]++
	}
	for i := range means {
		means[i].value /= float64(counts[means[i].unit])
	}
	return means
}

// writeOffline appends a run to the result file: SGLang's fields, then ours.
func writeOffline(e *engine.Engine, s *load.Summary) error {
	if set.resultFile == "" {
		return nil
	}
	info := e.Info()
	line := map[string]any{
		"benchmark": "OfflineThroughput", "run_name": set.runName, "backend": info.Name, "successful_requests": s.Completed,
		"total_latency": s.Duration.Seconds(), "total_input_tokens": s.InputTokens, "total_output_tokens": s.OutputTokens,
		"request_throughput": s.PerSecond(s.Completed), "input_throughput": s.PerSecond(s.InputTokens),
		"output_throughput": s.PerSecond(s.OutputTokens), "total_throughput": s.PerSecond(s.InputTokens + s.OutputTokens),
		"cached_tokens": s.CachedTokens, "device": info.Device, "model": modelName(e.Options().ModelPath), "dtype": info.DType,
		"dataset_name": set.datasetName, "commit": commit(), "flags": set.flagsText(), "time": time.Now().UTC().Format(time.RFC3339),
	}
	if s.Steady != nil {
		line["steady_state_output_throughput"] = s.Steady.OutputRate()
	}
	return load.AppendJSON(set.resultFile, line)
}
