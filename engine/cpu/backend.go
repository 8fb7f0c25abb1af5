package cpu

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// Defaults of backend.Options. A CPU gains little from batches beyond 32 rows, and 512 tokens fill its tile kernels.
const (
	defaultMaxRows   = 32
	defaultMaxTokens = 512
	defaultPageSize  = 16
)

// Backend runs a model on the processor. See [backend.Backend].
type Backend struct {
	info    backend.Info
	stepper *stepper

	// Owned by the goroutine that calls the methods.
	checker  *backend.Checker
	launched backend.StepID // id of the next step to launch
	awaited  backend.StepID // id of the next step to await
	inFlight [backend.MaxInFlight]*step
	closed   bool
	failure  error

	queue   chan *step
	stopped chan struct{}
}

var _ backend.Backend = (*Backend)(nil)

// Open prepares cfg's weights w for computing on the processor. w must stay open until the backend is closed. Dummy weights are
// made here, as bfloat16. Errors: a weight that is missing or of a type the CPU does not compute with; an option out of
// range; a *[MemoryError].
func Open(cfg *model.Config, w *weights.Store, o backend.Options) (*Backend, error) {
	if err := checkOptions(cfg, &o); err != nil {
		return nil, err
	}
	p := newPool(o.Threads)
	b, err := open(cfg, w, o, p, fastest())
	if err != nil {
		p.close()
		return nil, err
	}
	go b.work()
	return b, nil
}

// checkOptions fills in o's defaults.
func checkOptions(cfg *model.Config, o *backend.Options) error {
	defaults := func(name string, field *int, value int) error {
		if *field < 0 {
			return fmt.Errorf("%s %d: want at least 1, or 0 for the default %d", name, *field, value)
		}
		if *field == 0 {
			*field = value
		}
		return nil
	}
	if o.MaxContext > cfg.MaxPositions {
		return fmt.Errorf("context of %d tokens: the model allows %d", o.MaxContext, cfg.MaxPositions)
	}
	for _, err := range []error{
		defaults("rows", &o.MaxRows, defaultMaxRows),
		defaults("tokens of a step", &o.MaxTokens, max(defaultMaxTokens, o.MaxRows)),
		defaults("context", &o.MaxContext, cfg.MaxPositions),
		defaults("page size", &o.PageSize, defaultPageSize),
		defaults("threads", &o.Threads, runtime.GOMAXPROCS(0)),
		defaults("KV pages", &o.NumPages, 0),
		defaults("rows and draft tokens of a step", &o.MaxVerify, 0),
	} {
		if err != nil {
			return err
		}
	}
	if !(o.MemFraction >= 0 && o.MemFraction <= 1) {
		return fmt.Errorf("memory fraction %v: want a number in 0..1", o.MemFraction)
	}
	if o.MaxTokens < o.MaxRows {
		return fmt.Errorf("%d tokens of a step: want at least one for each of its %d rows", o.MaxTokens, o.MaxRows)
	}
	if _, ok := kvTypes[o.KVDType]; !ok {
		return fmt.Errorf("KV cache type %q: the CPU has auto, float32, bfloat16 and fp8_e4m3", o.KVDType)
	}
	if o.Quantization != "" && o.Quantization != "fp8" && o.Quantization != "int4" { // weights are computed with as they are stored
		return fmt.Errorf("quantization %q: the CPU has fp8 and int4", o.Quantization)
	}
	return nil
}

func open(cfg *model.Config, w *weights.Store, o backend.Options, p *pool, ks *kernels) (*Backend, error) {
	dtype := kvTypes[o.KVDType]
	// Sizes come first: an error costs nothing yet.
	perToken := cfg.KVBytesPerToken(dtype.bytes())
	mostUseful := o.MaxRows * ((o.MaxContext + o.PageSize - 1) / o.PageSize)
	numPages, err := sizePages(o.NumPages, mostUseful, perToken*int64(o.PageSize), w.Bytes(), freeMemory(), o.MemFraction)
	if err != nil {
		return nil, err
	}
	l := newLoader(w, p, o.Quantization == "fp8", o.Progress)
	net, err := l.network(cfg)
	if err != nil {
		return nil, err
	}
	if err := checkDType(o.DType, net.dtype); err != nil {
		return nil, err
	}
	info := backend.Info{
		Name: "cpu", Device: deviceName(p.threads(), ks.name), DType: net.dtype,
		VocabSize: cfg.VocabSize, MaxContext: o.MaxContext, MaxRows: o.MaxRows, MaxTokens: o.MaxTokens,
		PageSize: o.PageSize, NumPages: numPages, MaxVerify: o.MaxVerify, DraftHead: cfg.DraftHead != nil,
		WeightBytes: net.bytes - int64(cfg.NumExperts)*net.expertBytes, KVBytesPerToken: perToken,
		Experts: cfg.NumExperts, ExpertsPerToken: cfg.NumExpertsPerToken, ExpertBytes: net.expertBytes,
	}
	s := &stepper{
		cfg: cfg, net: net, pool: p, kernels: ks, uniformExperts: o.SimulateUniformExperts, invFreq: cfg.InvFreq(),
		cache: kvCache{layers: cfg.NumLayers, heads: cfg.NumKVHeads, dim: cfg.HeadDim, pageSize: o.PageSize, dtype: dtype, scales: cacheScales(w, cfg.NumLayers),
			pages: make([]kvPage, numPages)},
		sequences: make([]*sequence, o.MaxRows),
		scratch:   make([]scratch, p.threads()),
	}
	if cfg.DraftHead != nil {
		s.draft = l.draftHead(cfg, info, s)
		if l.err != nil {
			return nil, fmt.Errorf("draft head: %w", l.err)
		}
	}
	return &Backend{
		info: info, stepper: s,
		checker:  backend.NewChecker(info),
		launched: 1, awaited: 1,
		queue: make(chan *step, backend.MaxInFlight), stopped: make(chan struct{}),
	}, nil
}

// Info describes the backend.
func (b *Backend) Info() backend.Info { return b.info }

// Launch checks batch and queues it. A batch that is refused leaves the backend as it was.
func (b *Backend) Launch(batch *backend.Batch) (backend.StepID, error) {
	if err := b.usable(); err != nil {
		return 0, err
	}
	if b.launched-b.awaited == backend.MaxInFlight {
		return 0, backend.ErrTooManySteps
	}
	if err := b.checker.Check(batch); err != nil {
		return 0, err
	}
	b.checker.Launched(batch)
	s := b.newStep(batch)
	b.inFlight[s.id%backend.MaxInFlight] = s
	b.launched++
	b.queue <- s
	return s.id, nil
}

// Wait fills out with the results of step id, which must be the oldest one not awaited.
func (b *Backend) Wait(id backend.StepID, out *backend.Result) error {
	if err := b.usable(); err != nil {
		return err
	}
	if id != b.awaited || id == b.launched {
		return fmt.Errorf("wait for step %d: steps %d..%d are in flight, the first of them is next", id, b.awaited, b.launched-1)
	}
	s := b.inFlight[id%backend.MaxInFlight]
	<-s.done
	b.awaited++
	b.checker.Awaited()
	b.inFlight[id%backend.MaxInFlight] = nil
	if s.err != nil {
		b.failure = s.err
		return s.err
	}
	if len(s.times) > 0 {
		trace.StepTimes(s.times)
	}
	copyResults(out, s.results)
	out.HeadTime = s.headTime
	return nil
}

func (b *Backend) usable() error {
	if b.closed {
		return backend.ErrClosed
	}
	return b.failure
}

// Close waits for launched steps and ends the worker threads.
func (b *Backend) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	close(b.queue)
	<-b.stopped
	b.stepper.pool.close()
	b.stepper = nil
	return nil
}

// work runs launched steps in order. After one that failed, the rest fail with its error.
func (b *Backend) work() {
	defer close(b.stopped)
	debug.SetPanicOnFault(true) // as in pool.work
	var failure error
	for s := range b.queue {
		if failure == nil {
			failure = b.stepper.runGuarded(s)
		}
		s.err = failure
		close(s.done)
	}
}

// runGuarded turns a panic (a weight file that was cut short while mapped, a broken invariant) into the step's error.
func (s *stepper) runGuarded(step *step) (err error) {
	defer func() {
		if v := recover(); v != nil {
			if _, ok := v.(*taskPanic); !ok {
				v = &taskPanic{v, debug.Stack()}
			}
			err = fmt.Errorf("cpu: step %d failed: %w", step.id, v.(*taskPanic))
		}
	}()
	s.notes.begin()
	s.run(step)
	step.times = s.notes.times
	return nil
}

// copyResults copies results to out, reusing its slices.
func copyResults(out *backend.Result, results []backend.RowResult) {
	if cap(out.Rows) < len(results) {
		out.Rows = append(out.Rows[:cap(out.Rows)], make([]backend.RowResult, len(results)-cap(out.Rows))...)
	}
	out.Rows = out.Rows[:len(results)]
	for i := range results {
		to, from := &out.Rows[i], &results[i]
		top, more, targets, guesses, logits := to.Top[:0], to.More[:0], to.TargetLogProbs[:0], to.Guesses[:0], to.Logits[:0]
		*to = *from
		to.Top = append(top, from.Top...)
		to.More = append(more, from.More...) // nobody else has what is in it
		to.TargetLogProbs = append(targets, from.TargetLogProbs...)
		to.Guesses = append(guesses, from.Guesses...)
		to.Logits = append(logits, from.Logits...)
	}
}
