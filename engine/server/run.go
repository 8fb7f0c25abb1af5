package server

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/metrics"
)

// work is what one HTTP request asks of the engine: n generations of each prompt, prompts in order, a prompt's choices side by
// side.
type work struct {
	id       string // what /abort_request knows it by
	requests []engine.Request
	n        int
	timeout  float32 // seconds that the client allows; 0 leaves it to the server
}

// add appends n generations of one prompt. With a seed, choice i draws from seed+i.
func (w *work) add(r engine.Request, n int) {
	for i := range n {
		if i > 0 && r.Sampling.Seed != nil {
			seed := *r.Sampling.Seed + 1
			r.Sampling.Seed = &seed
		}
		w.requests = append(w.requests, r)
	}
	w.n = n
}

// begin names the requests and makes them known to /abort_request until end is called.
func (c *call) begin(w *work) (end func(), err error) {
	c.release()
	ids := make([]string, len(w.requests))
	for i := range w.requests {
		ids[i] = w.id
		if len(ids) > 1 {
			ids[i] = w.id + "-" + strconv.Itoa(i)
		}
		w.requests[i].ID = ids[i]
	}
	if !c.s.active.add(w.id, ids) {
		return nil, badRequest("rid", "invalid_value", "rid: a request with this id is running")
	}
	return func() { c.s.active.remove(w.id) }, nil
}

// collect runs the work to its end. The first error ends all of it; a request that was aborted is no error and keeps its output.
func (c *call) collect(w *work) ([]*engine.Output, error) {
	ctx, cancelTimeout, err := c.context(w.timeout)
	if err != nil {
		return nil, err
	}
	defer cancelTimeout()
	end, err := c.begin(w)
	if err != nil {
		return nil, err
	}
	defer end()
	outputs := make([]*engine.Output, len(w.requests))
	if len(w.requests) == 1 {
		outputs[0], err = c.generateOne(ctx, w.requests[0])
		if err != nil {
			return nil, apiErrorOf(ctx, err).because(err)
		}
		return outputs, nil
	}
	group, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wait sync.WaitGroup
	for i := range w.requests {
		wait.Go(func() {
			out, err := c.generateOne(group, w.requests[i])
			if err != nil {
				cancel(apiErrorOf(group, err).because(err)) // only the first counts
			}
			outputs[i] = out
		})
	}
	wait.Wait()
	if group.Err() != nil {
		return nil, apiErrorOf(group, group.Err())
	}
	return outputs, nil
}

func (c *call) generateOne(ctx context.Context, r engine.Request) (out *engine.Output, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = c.panicked(p)
		}
	}()
	out, err = c.live.gen.Generate(ctx, r)
	if errors.Is(err, engine.ErrAborted) && out != nil {
		err = nil
	}
	if err == nil {
		c.observe(out)
	}
	return out, err
}

// observe counts a finished generation.
func (c *call) observe(out *engine.Output) {
	c.s.metrics.Finish(metrics.Finished{
		Queue: out.Scheduled.Sub(out.Arrived), TTFT: out.FirstToken.Sub(c.start), E2E: out.Finished.Sub(c.start),
		PromptTokens: out.PromptTokens, OutputTokens: len(out.TokenIDs),
	})
}

// encoder turns events into an API's stream. Its methods append to buf and return it. index counts generations as in work.
type encoder interface {
	contentType() string
	event(buf []byte, index int, ev *engine.Event) []byte
	finish(buf []byte) []byte              // after the last event of the last generation
	fail(buf []byte, err *apiError) []byte // instead of finish
}

// chunk is one event on its way from a generation's goroutine to the writer.
type chunk struct {
	index int
	event engine.Event
	err   error
}

// stream runs the work and writes its events as they come, all that are there in one flush. The status is sent with the first
// event, so that a request which is refused or fails before it gets its error as a status.
func (c *call) stream(w *work, enc encoder) error {
	timed, cancelTimeout, err := c.context(w.timeout)
	if err != nil {
		return err
	}
	defer cancelTimeout()
	end, err := c.begin(w)
	if err != nil {
		return err
	}
	defer end()

	ctx, cancel := context.WithCancelCause(timed)
	chunks := make(chan chunk, min(4*len(w.requests), 256))
	var producers sync.WaitGroup
	for i := range w.requests {
		producers.Go(func() { c.produce(ctx, i, w.requests[i], chunks) })
	}
	go func() {
		producers.Wait()
		close(chunks)
	}()
	defer func() { // no goroutine outlives the request
		cancel(nil)
		for range chunks {
		}
	}()

	out := newStreamWriter(c, enc.contentType())
	gaps := make([]time.Time, len(w.requests))
	open := len(w.requests)
	for open > 0 {
		first, ok := <-chunks
		if !ok { // producers gave up without an event: the context has ended
			return c.failStream(out, enc, apiErrorOf(ctx, ctx.Err()))
		}
		oldest := first.event.At
		for next, more := first, true; more; {
			if next.err != nil && !(errors.Is(next.err, engine.ErrAborted) && next.event.Done != nil) {
				return c.failStream(out, enc, apiErrorOf(ctx, next.err).because(next.err))
			}
			c.gap(gaps, &next)
			out.buf = enc.event(out.buf, next.index, &next.event)
			if next.event.Done != nil {
				c.observe(next.event.Done)
				open--
			}
			select {
			case next, more = <-chunks:
			default:
				more = false
			}
		}
		if open == 0 {
			out.buf = enc.finish(out.buf)
		}
		if err := out.flush(); err != nil {
			return err
		}
		if open > 0 && out.lagging(oldest) { // not after the end was told
			return c.failStream(out, enc, errSlowReader)
		}
	}
	return nil
}

// produce hands a generation's events to the writer until one of the two ends.
func (c *call) produce(ctx context.Context, index int, r engine.Request, chunks chan<- chunk) {
	defer func() {
		if p := recover(); p != nil {
			select {
			case chunks <- chunk{index: index, err: c.panicked(p)}:
			case <-ctx.Done():
			}
		}
	}()
	for ev, err := range c.live.gen.Stream(ctx, r) {
		select {
		case chunks <- chunk{index, ev, err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// gap observes the time since the generation's last tokens.
func (c *call) gap(gaps []time.Time, next *chunk) {
	n := len(next.event.TokenIDs)
	if n == 0 {
		return
	}
	c.tokens += n
	if last := gaps[next.index]; !last.IsZero() {
		c.s.metrics.InterToken(next.event.At.Sub(last), n)
	}
	gaps[next.index] = next.event.At
}

// failStream ends a stream with an error: as a status if nothing was sent yet, else in the stream.
func (c *call) failStream(out *streamWriter, enc encoder, err *apiError) error {
	if !out.started {
		return err
	}
	out.buf = enc.fail(out.buf, err)
	out.flush() // the error at hand matters more than whether the client could still be told
	return err
}

// activeRequests knows the engine's ids of each running request.
type activeRequests struct {
	mu  sync.Mutex
	ids map[string][]string
}

func (a *activeRequests) add(id string, ids []string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, taken := a.ids[id]; taken {
		return false
	}
	if a.ids == nil {
		a.ids = make(map[string][]string)
	}
	a.ids[id] = ids
	return true
}

func (a *activeRequests) remove(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.ids, id)
}

// find returns the engine's ids of one request, or of all.
func (a *activeRequests) find(id string, all bool) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !all {
		return slices.Clone(a.ids[id])
	}
	var found []string
	for _, ids := range a.ids {
		found = append(found, ids...)
	}
	return found
}
