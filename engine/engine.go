package engine

import (
	"context"
	"iter"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
)

// Engine runs one model. All its methods may be called by many goroutines at once.
type Engine struct {
	options Options
	config  *model.Config
	info    backend.Info
}

// Opt configures Open.
type Opt func(*opening)

type opening struct {
	options  Options
	progress func(phase string, done, total float64, unit string)
}

// WithOptions replaces the default options. The path given to Open wins over o.ModelPath.
func WithOptions(o Options) Opt { return func(p *opening) { p.options = o } }

// WithProgress is told of long work while the engine opens: done of total in unit ("GiB", "kernels"). It is called by one
// goroutine at a time and must not block.
func WithProgress(f func(phase string, done, total float64, unit string)) Opt {
	return func(p *opening) { p.progress = f }
}

// Open loads the model at path, opens a backend for it and starts the engine. path may be empty if the options carry one.
func Open(ctx context.Context, path string, opts ...Opt) (*Engine, error) {
	return nil, ErrNoDevice
}

// Options returns the options that the engine runs with, zero values replaced by what was chosen for them.
func (e *Engine) Options() Options { return e.options }

// Config returns the model's description. It must not be changed.
func (e *Engine) Config() *model.Config { return e.config }

// Info describes the backend.
func (e *Engine) Info() backend.Info { return e.info }

// Generate runs one request to its end. If ctx ends first it returns the output so far, with FinishAbort, and ctx's error.
func (e *Engine) Generate(ctx context.Context, r Request) (*Output, error) {
	return nil, ErrClosed
}

// Stream runs one request and yields its tokens as they are sampled. The last event has Done set. An error ends the stream; the
// event beside it carries the output so far in Done if the request was accepted. Leaving the loop early aborts the request.
func (e *Engine) Stream(ctx context.Context, r Request) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) { yield(Event{}, ErrClosed) }
}

// Abort ends the request with this ID, if it runs or waits, with FinishAbort; its caller gets [ErrAborted].
func (e *Engine) Abort(id string) bool { return false }

// FlushCache empties the prefix cache. While requests run or wait it returns [ErrBusy].
func (e *Engine) FlushCache() error { return ErrClosed }

// Stats returns a snapshot of counters and gauges.
func (e *Engine) Stats() Stats { return Stats{} }

// Err is nil while the engine is healthy. A backend error is final: from then on every request fails with it.
func (e *Engine) Err() error { return nil }

// Close ends running requests with FinishAbort, stops the loop and frees the device. It may be called twice.
func (e *Engine) Close() error { return nil }
