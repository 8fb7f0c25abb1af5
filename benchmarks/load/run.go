package load

import (
	"context"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"github.com/tokamak-engine/tokamak/benchmarks/load/pace"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// Config says how a workload is offered.
type Config struct {
	Client   *Client
	Arrivals Arrivals
	// MaxConcurrency bounds the conversations in progress; 0: no bound. Under a schedule the wait for a place counts into the
	// latency. With an infinite rate there is no schedule but the places themselves: MaxConcurrency users who each send the
	// next request when their last one has ended, and a request is scheduled for when its place came free.
	MaxConcurrency int
	// Duration ends the arrivals early; requests on their way are awaited. 0: until the samples are used up.
	Duration time.Duration
	// KeepText keeps every answer's text and ids in its Result.
	KeepText bool
	// OnResult, if set, is told of every result as it comes, by one goroutine at a time.
	OnResult func(*Result)
}

// Report is what a run gave.
type Report struct {
	Config  Config
	Started time.Time
	// Duration is from the start to the end of the last answer.
	Duration time.Duration
	Results  []Result // by sample, then turn
	// CPU is the processor time that this process took meanwhile, of Procs processors; not known on every system.
	CPU   *time.Duration
	Procs int
}

// Run offers samples and waits for every answer. It fails only if the workload cannot be put at all; what goes wrong with
// single requests stands in their results.
func Run(ctx context.Context, cfg Config, samples []datasets.Sample) (*Report, error) {
	schedule, err := cfg.Arrivals.Schedule(len(samples))
	if err != nil {
		return nil, err
	}
	r := &runner{Config: cfg, samples: samples, keep: cfg.KeepText}
	r.first = make([]*prompt, len(samples))
	r.bodies = make([][]byte, len(samples))
	r.results = make([][]Result, len(samples))
	for i := range samples {
		// Bodies are made before the clock starts: they are the client's work, not the server's.
		if r.first[i], err = cfg.Client.firstPrompt(&samples[i]); err != nil {
			return nil, fmt.Errorf("sample %d: %w", i+1, err)
		}
		if r.bodies[i], err = cfg.Client.encode(r.first[i]); err != nil {
			return nil, err
		}
		r.results[i] = make([]Result, 0, 1+len(samples[i].Turns))
	}
	if cfg.MaxConcurrency > 0 {
		r.places = make(chan struct{}, cfg.MaxConcurrency)
	}
	r.closed = cfg.MaxConcurrency > 0 && cfg.Arrivals.Trace == nil && cfg.Arrivals.Ramp == RampNone && math.IsInf(cfg.Arrivals.Rate, 1)

	runtime.GC() // what building the workload left behind is not the run's to sweep up
	report := &Report{Config: cfg, Started: time.Now(), Procs: runtime.GOMAXPROCS(0)}
	r.started = report.Started
	cpuBefore, cpuKnown := processCPU()
	r.dispatch(ctx, schedule)
	r.running.Wait()
	if cpuAfter, ok := processCPU(); ok && cpuKnown {
		used := cpuAfter - cpuBefore
		report.CPU = &used
	}
	for _, results := range r.results {
		for _, result := range results {
			report.Duration = max(report.Duration, result.End)
			report.Results = append(report.Results, result)
		}
	}
	return report, nil
}

type runner struct {
	Config
	samples []datasets.Sample
	first   []*prompt
	bodies  [][]byte
	results [][]Result // by sample; each is written by its own goroutine
	keep    bool
	closed  bool          // users in a closed loop: no schedule
	places  chan struct{} // one entry for each conversation in progress; nil: no bound
	started time.Time
	running sync.WaitGroup
	telling sync.Mutex
}

func (r *runner) clock() time.Duration { return time.Since(r.started) }

// dispatch starts every conversation at its time. It never waits for an answer, except for a place in a closed loop.
func (r *runner) dispatch(ctx context.Context, schedule []time.Duration) {
	for i, at := range schedule {
		if r.closed {
			select {
			case r.places <- struct{}{}:
			case <-ctx.Done():
				return
			}
			at = r.clock()
		}
		if r.Duration > 0 && at >= r.Duration {
			if r.closed {
				<-r.places
			}
			return
		}
		if !pace.Until(r.started.Add(at), ctx.Done()) {
			return
		}
		if ctx.Err() != nil {
			return
		}
		r.running.Add(1)
		go r.converse(ctx, i, at)
	}
}

// converse holds one conversation: a request, and the next one when it is answered.
func (r *runner) converse(ctx context.Context, i int, at time.Duration) {
	defer r.running.Done()
	granted := at
	if r.places != nil {
		if !r.closed {
			select {
			case r.places <- struct{}{}: // no wait
			default:
				select {
				case r.places <- struct{}{}:
					granted = r.clock()
				case <-ctx.Done():
					return
				}
			}
		}
		defer func() { <-r.places }()
	}
	turns := r.samples[i].Turns
	p, body := r.first[i], r.bodies[i]
	for turn := 0; ; turn++ {
		result := Result{Index: i, Turn: turn, Scheduled: at, Granted: granted, WantPrompt: len(p.ids), WantOutput: p.outputLen}
		r.Client.do(ctx, body, &result, r.clock, r.keep || turn < len(turns))
		if turn < len(turns) && result.Failure == nil {
			p = r.Client.nextPrompt(p, &result, &turns[turn])
		}
		if !r.keep {
			result.Text, result.OutputIDs = "", nil
		}
		r.results[i] = append(r.results[i], result)
		if r.OnResult != nil {
			r.telling.Lock()
			r.OnResult(&result)
			r.telling.Unlock()
		}
		if result.Failure != nil || turn == len(turns) {
			return
		}
		var err error
		if body, err = r.Client.encode(p); err != nil {
			return // cannot happen: the first body with the same extras was made
		}
		at = r.clock()
		granted = at
	}
}
