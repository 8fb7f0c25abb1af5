package load

import (
	"fmt"
	"math"
	"slices"
	"sort"
	"strings"
	"time"
)

// Summary holds a run's figures. Latencies and counts are of the requests that did what was asked; failures are counted apart.
type Summary struct {
	Duration  time.Duration
	Completed int
	Failures  map[string]int // by reason

	InputTokens, OutputTokens, CachedTokens int
	// CachedKnown tells that every server's answer said how much came from its prefix cache.
	CachedKnown bool
	// EstimatedRequests counts those whose server gives no running count of tokens, so that their ITL is a fair split.
	EstimatedRequests int

	TTFT, TPOT, ITL, ChunkGap, E2E Dist
	Queued                         Dist // wait for a place under the concurrency limit, part of the latencies
	Lag                            Dist // the client's own delay, part of the latencies

	Concurrency     float64 // mean number of requests in progress, sent and not ended
	PeakConcurrency int
	Steady          *Steady  // nil if the run has no such stretch
	Good            *int     // requests within all objectives; nil if there are none
	ClientCPU       *float64 // part of the processors, 0 to 1; nil where the system does not tell
}

// Dist describes a sample of durations. With N = 0 nothing was measured and the rest means nothing.
type Dist struct {
	N                            int
	Mean, Std                    time.Duration
	P50, P90, P95, P99, Max, Min time.Duration
	sorted                       []time.Duration
}

// Steady is the longest stretch of a run with at least SteadyRatio of its peak concurrency: ramp-up and drain are outside.
type Steady struct {
	From, To     time.Duration
	OutputTokens int
}

// OutputRate is in tokens a second.
func (s *Steady) OutputRate() float64 { return float64(s.OutputTokens) / (s.To - s.From).Seconds() }

// SteadyRatio is the part of the peak concurrency that the steady stretch keeps.
const SteadyRatio = 0.9

// Summarize works out a report's figures. objectives may be empty.
func Summarize(r *Report, objectives Objectives) *Summary {
	s := &Summary{Duration: r.Duration, Failures: map[string]int{}, CachedKnown: true}
	var ttft, tpot, itl, gaps, e2e, queued, lag []time.Duration
	good := 0
	for i := range r.Results {
		x := &r.Results[i]
		queued = append(queued, x.Queued())
		lag = append(lag, x.Lag())
		if x.Failure != nil {
			s.Failures[x.Failure.Reason]++
			continue
		}
		s.Completed++
		s.InputTokens += x.inputTokens()
		s.OutputTokens += x.OutputTokens.N
		s.CachedTokens += x.CachedTokens.N
		s.CachedKnown = s.CachedKnown && x.CachedTokens.Known
		if x.CountsEstimated {
			s.EstimatedRequests++
		}
		e2e = append(e2e, x.E2E())
		if d, ok := x.TTFT(); ok {
			ttft = append(ttft, d)
		}
		if d, ok := x.TPOT(); ok {
			tpot = append(tpot, d)
		}
		x.eachITL(func(d time.Duration) { itl = append(itl, d) })
		for j := 1; j < len(x.Chunks); j++ {
			gaps = append(gaps, x.Chunks[j].At-x.Chunks[j-1].At)
		}
		if objectives.met(x) {
			good++
		}
	}
	s.TTFT, s.TPOT, s.ITL, s.ChunkGap = NewDist(ttft), NewDist(tpot), NewDist(itl), NewDist(gaps)
	s.E2E, s.Queued, s.Lag = NewDist(e2e), NewDist(queued), NewDist(lag)
	s.CachedKnown = s.CachedKnown && s.Completed > 0
	if len(objectives) > 0 {
		s.Good = &good
	}
	var busy time.Duration
	for i := range r.Results {
		busy += r.Results[i].End - r.Results[i].Sent
	}
	if r.Duration > 0 {
		s.Concurrency = busy.Seconds() / r.Duration.Seconds()
		if r.CPU != nil {
			share := r.CPU.Seconds() / r.Duration.Seconds() / float64(r.Procs)
			s.ClientCPU = &share
		}
	}
	steps := concurrency(r.Results, func(x *Result) time.Duration { return x.Sent })
	for _, step := range steps {
		s.PeakConcurrency = max(s.PeakConcurrency, step.n)
	}
	s.Steady = steady(r.Results)
	return s
}

func (r *Result) inputTokens() int {
	if r.PromptTokens.Known {
		return r.PromptTokens.N
	}
	return r.WantPrompt
}

// Failed is the number of failed requests.
func (s *Summary) Failed() int {
	n := 0
	for _, count := range s.Failures {
		n += count
	}
	return n
}

// FailureText lists the failures by reason, most frequent first: "3 http-429, 1 timeout".
func (s *Summary) FailureText() string {
	reasons := make([]string, 0, len(s.Failures))
	for reason := range s.Failures {
		reasons = append(reasons, reason)
	}
	sort.Slice(reasons, func(i, j int) bool {
		a, b := reasons[i], reasons[j]
		return s.Failures[a] > s.Failures[b] || (s.Failures[a] == s.Failures[b] && a < b)
	})
	for i, reason := range reasons {
		reasons[i] = fmt.Sprintf("%d %s", s.Failures[reason], reason)
	}
	return strings.Join(reasons, ", ")
}

// PerSecond gives n over the whole duration.
func (s *Summary) PerSecond(n int) float64 { return float64(n) / s.Duration.Seconds() }

// NewDist sorts values and describes them. Quantiles are interpolated linearly, as numpy.percentile does.
func NewDist(values []time.Duration) Dist {
	d := Dist{N: len(values), sorted: values}
	if d.N == 0 {
		return d
	}
	slices.Sort(values)
	var sum float64
	for _, v := range values {
		sum += float64(v)
	}
	mean := sum / float64(d.N)
	var squares float64
	for _, v := range values {
		squares += (float64(v) - mean) * (float64(v) - mean)
	}
	d.Mean, d.Std = time.Duration(mean), time.Duration(math.Sqrt(squares/float64(d.N)))
	d.P50, d.P90, d.P95, d.P99 = d.Quantile(0.5), d.Quantile(0.9), d.Quantile(0.95), d.Quantile(0.99)
	d.Min, d.Max = values[0], values[d.N-1]
	return d
}

// Quantile gives the value that part q, 0 to 1, of the sample does not exceed. The sample must not be empty.
func (d *Dist) Quantile(q float64) time.Duration {
	at := q * float64(d.N-1)
	low := int(at)
	high := min(low+1, d.N-1)
	return d.sorted[low] + time.Duration(math.Round((at-float64(low))*float64(d.sorted[high]-d.sorted[low])))
}

// step is a change of the number of requests in progress.
type step struct {
	at time.Duration
	n  int
}

// concurrency gives the number of requests in progress over time, from start(r) to r.End.
func concurrency(results []Result, start func(*Result) time.Duration) []step {
	steps := make([]step, 0, 2*len(results))
	for i := range results {
		if r := &results[i]; r.End > start(r) {
			steps = append(steps, step{start(r), 1}, step{r.End, -1})
		}
	}
	slices.SortFunc(steps, func(a, b step) int {
		if a.at != b.at {
			return int(min(max(a.at-b.at, -1), 1))
		}
		return a.n - b.n // an end before the start that takes its place
	})
	n := 0
	for i := range steps {
		n += steps[i].n
		steps[i].n = n
	}
	return steps
}

// steady finds the longest stretch in which at least SteadyRatio of the peak number of requests generate tokens, and counts the
// tokens that came in it. A gap of the ratio that is shorter than the time between two tokens does not end a stretch: the
// next request takes the free place one step later.
func steady(results []Result) *Steady {
	var decoding []Result
	var gaps []time.Duration
	for _, r := range results {
		if r.Failure == nil && len(r.Chunks) > 1 {
			decoding = append(decoding, r)
			last := r.Chunks[len(r.Chunks)-1]
			gaps = append(gaps, (last.At-r.FirstToken)/time.Duration(len(r.Chunks)-1))
		}
	}
	if len(decoding) < 2 {
		return nil
	}
	steps := concurrency(decoding, func(r *Result) time.Duration { return r.FirstToken })
	if len(steps) == 0 {
		return nil
	}
	peak := slices.MaxFunc(steps, func(a, b step) int { return a.n - b.n }).n
	need := int(math.Ceil(SteadyRatio * float64(peak)))
	slack := 4 * NewDist(gaps).P90 // a place stays empty for the step that frees it and a prefill step or two

	var best, now Steady
	open := false
	for i, s := range steps[:len(steps)-1] {
		next := steps[i+1].at
		switch {
		case s.n >= need:
			if !open {
				now, open = Steady{From: s.at}, true
			}
			now.To = next
		case open && next-now.To > slack:
			open = false
		}
		if now.To-now.From > best.To-best.From {
			best = now
		}
	}
	if best.To == best.From {
		return nil
	}
	for i := range decoding {
		for _, c := range decoding[i].Chunks {
			if c.At > best.From && c.At <= best.To {
				best.OutputTokens += c.Tokens
			}
		}
	}
	if best.OutputTokens == 0 {
		return nil
	}
	return &best
}
