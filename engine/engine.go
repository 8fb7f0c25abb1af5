package engine

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/scheduler"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// Engine runs one model. All its methods may be called by many goroutines at once.
type Engine struct {
	options    Options
	config     *model.Config
	info       backend.Info
	tokenizer  *tokenizer.Tokenizer // nil if it was skipped
	eos        []int32
	vocabulary vocabulary // for constrained output
	limit      int        // tokens of prompt and output
	weights    *weights.Store
	loop       *loop

	requests atomic.Uint64 // made so far: numbers, seeds and ids come from it
	closing  sync.Once

	mu   sync.Mutex
	live map[string]*stream // by request ID
}

// Opt configures Open.
type Opt func(*opening)

type opening struct {
	options  Options
	progress func(phase string, done, total float64, unit string)
	backend  func(*model.Config) (backend.Backend, error)
}

// WithOptions replaces the default options. The path given to Open wins over o.ModelPath.
func WithOptions(o Options) Opt { return func(p *opening) { p.options = o } }

// WithProgress is told of long work while the engine opens: done of total in unit ("GiB", "kernels"). It is called by one
// goroutine at a time and must not block.
func WithProgress(f func(phase string, done, total float64, unit string)) Opt {
	return func(p *opening) { p.progress = f }
}

// WithBackend runs the engine on what open gives for the model, in the place of the backend that the options name: for tests.
func WithBackend(open func(*model.Config) (backend.Backend, error)) Opt {
	return func(p *opening) { p.backend = open }
}

// Open loads the model at path, a Hugging Face directory or a GGUF file, opens a backend for it and starts the engine. path may
// be empty if the options carry one. Errors are typed: *[OptionError], *model.Error, *weights.Error, *tokenizer.FormatError, and
// *[DeviceError], which wraps [ErrNoDevice] where there is no GPU. On an error nothing stays open.
func Open(ctx context.Context, path string, opts ...Opt) (_ *Engine, err error) {
	p := opening{options: DefaultOptions()}
	for _, opt := range opts {
		opt(&p)
	}
	o := &p.options
	if path != "" {
		o.ModelPath = path
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	src, err := openSource(o.ModelPath, o.LoadFormat)
	if err != nil {
		return nil, err
	}
	defer src.close()
	e := &Engine{live: map[string]*stream{}}
	if e.config, err = src.config(o.JSONModelOverrides); err != nil {
		return nil, err
	}
	if o.ContextLength > e.config.MaxPositions {
		return nil, &OptionError{"context-length", fmt.Sprint(o.ContextLength), fmt.Sprintf("at most the model's %d tokens", e.config.MaxPositions)}
	}
	if err := checkQuantization(o.Quantization, e.config); err != nil {
		return nil, err
	}
	if e.tokenizer, err = src.tokenizer(o, e.config); err != nil {
		return nil, err
	}
	if err := checkpoint(ctx); err != nil {
		return nil, err
	}
	if e.weights, err = src.weights(e.config, o.LoadFormat); err != nil {
		return nil, err
	}
	if err := addDraftHead(o, e.config, e.weights); err != nil {
		_ = e.weights.Close() // the first error is the one to tell
		return nil, err
	}
	open := func() (backend.Backend, error) {
		if err := checkpoint(ctx); err != nil {
			return nil, err
		}
		if p.backend != nil {
			return p.backend(e.config)
		}
		return openBackend(o, e.config, e.weights, backendOptions(o, e.config, p.progress))
	}
	if err := e.start(*o, open); err != nil {
		_ = e.weights.Close() // the first error is the one to tell
		return nil, err
	}
	return e, nil
}

// start opens the backend on the loop's own thread and runs the loop.
func (e *Engine) start(o Options, open func() (backend.Backend, error)) error {
	e.loop = newLoop()
	opened := make(chan error)
	go e.loop.run(func() error {
		device, err := open()
		if err == nil {
			e.info = device.Info()
			e.options = chosen(o, e.info)
			e.loop.init(device, newScheduler(&e.options, e.info), &e.options)
		}
		opened <- err
		return err
	})
	if err := <-opened; err != nil {
		<-e.loop.done
		return err
	}
	e.limit = e.loop.sched.Limit()
	if e.config != nil {
		e.eos = e.config.EOS
	}
	if len(e.eos) == 0 && e.tokenizer != nil {
		if id, ok := e.tokenizer.EOS(); ok {
			e.eos = []int32{id}
		}
	}
	return nil
}

// chosen fills in what was left to the engine and the backend.
func chosen(o Options, info backend.Info) Options {
	o.Device = info.Name
	o.DType = info.DType
	o.MaxRunningRequests, o.MaxPrefillTokens = info.MaxRows, info.MaxTokens
	o.ContextLength, o.PageSize = info.MaxContext, info.PageSize
	o.MaxTotalTokens = info.NumPages * info.PageSize
	if o.ChunkedPrefillSize == 0 {
		o.ChunkedPrefillSize = info.MaxTokens
	}
	return o
}

func newScheduler(o *Options, info backend.Info) *scheduler.Scheduler {
	policy := scheduler.FCFS
	if o.SchedulePolicy == "lpm" {
		policy = scheduler.LPM
	}
	return scheduler.New(scheduler.Config{
		MaxRows: info.MaxRows, MaxTokens: info.MaxTokens, MaxContext: info.MaxContext, PageSize: info.PageSize, NumPages: info.NumPages,
		ChunkSize: max(0, o.ChunkedPrefillSize), MixedTokens: o.MaxMixedTokens, Policy: policy, PrefixCache: !o.DisableRadixCache,
		RowDrafts: o.rowDrafts(), MaxVerify: info.MaxVerify, EagerDrafts: o.SpeculativeEager, Seed: uint64(o.RandomSeed),
	})
}

// Options returns the options that the engine runs with, zero values replaced by what was chosen for them.
func (e *Engine) Options() Options { return e.options }

// Config returns the model's description. It must not be changed.
func (e *Engine) Config() *model.Config { return e.config }

// Info describes the backend.
func (e *Engine) Info() backend.Info { return e.info }

// Tokenizer returns the model's tokenizer, or nil if the engine works with token ids alone.
func (e *Engine) Tokenizer() *tokenizer.Tokenizer { return e.tokenizer }

// Abort ends the request with this ID, if it runs or waits, with FinishAbort; its caller gets [ErrAborted].
func (e *Engine) Abort(id string) bool {
	e.mu.Lock()
	s := e.live[id]
	e.mu.Unlock()
	return s != nil && e.loop.post(message{kind: cancelRequest, stream: s, err: ErrAborted})
}

// FlushCache empties the prefix cache. While requests run or wait it returns [ErrBusy].
func (e *Engine) FlushCache() error {
	return e.loop.call(func(l *loop) error {
		l.sched.Flush()
		return nil
	})
}

// Stats returns a snapshot of counters and gauges.
func (e *Engine) Stats() Stats { return e.loop.snapshot() }

// Err is nil while the engine is healthy. A backend error is final: from then on every request fails with it.
func (e *Engine) Err() error { return e.Stats().Err }

// Close ends running requests with FinishAbort, stops the loop and frees the device. It may be called twice.
func (e *Engine) Close() error {
	var err error
	e.closing.Do(func() {
		e.loop.close()
		<-e.loop.done
		err = e.loop.closeErr
		if e.weights != nil {
			if closeErr := e.weights.Close(); err == nil {
				err = closeErr
			}
		}
	})
	return err
}
