package engine

import (
	"context"
	"iter"
	"sync"
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// stream carries one request's tokens from the loop to its reader. The loop never waits for the reader: what was not read
// is kept, at most MaxNewTokens tokens.
type stream struct {
	id      string
	number  uint64
	arrived time.Time
	req     scheduler.Request
	// constraint belongs to a helper while a token of the request is followed; nil if there is none.
	constraint *constraint
	// each wakes the reader for each token; else only for the end.
	each bool
	wake chan struct{}
	span string // phase that is open in the trace; the loop's

	mu sync.Mutex
	in feed
}

// feed is what the loop has given since the reader last looked.
type feed struct {
	tokens         []int32
	at             []time.Time    // of each token
	logProbs       []TokenLogProb // of each token, if asked for
	promptLogProbs []float32      // of prompt tokens 1, 2, ...
	standing
}

// standing is what stays known of a request once it is.
type standing struct {
	scheduled time.Time // first admission
	cached    int       // prompt tokens found in the prefix cache
	ended     bool      // nothing more will come
	// If ended:
	finish    FinishReason
	stopToken bool // the last token is what ended it
	err       error
	finished  time.Time
}

// admitted notes the first time that the request got a slot.
func (s *stream) admitted(at time.Time) {
	s.enter("running")
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.in.scheduled.IsZero() {
		s.in.scheduled, s.in.cached = at, s.req.CachedTokens()
	}
}

// enter moves the request to another phase in the trace; "" is none.
func (s *stream) enter(phase string) {
	if s.span == phase {
		return
	}
	if s.span != "" {
		trace.SpanEnd(s.span, trace.Request, s.number)
	}
	if phase != "" {
		trace.SpanBegin(phase, trace.Request, s.number)
	}
	s.span = phase
}

func (s *stream) deliver(o *scheduler.Outcome, at time.Time) {
	s.mu.Lock()
	s.append(o, at)
	s.mu.Unlock()
	if s.each && o.Sampled > 0 {
		s.notify()
	}
}

// append takes over o's part of the step's result, which the next step overwrites. The caller holds s.mu.
func (s *stream) append(o *scheduler.Outcome, at time.Time) {
	f := &s.in
	f.promptLogProbs = append(f.promptLogProbs, o.PromptLogProbs...)
	for i := range o.Sampled {
		token := backend.Sampled{Token: o.Result.Token, LogProb: o.Result.LogProb, Top: o.Result.Top}
		if i > 0 {
			token = o.Result.More[i-1]
		}
		f.tokens = append(f.tokens, token.Token)
		f.at = append(f.at, at)
		if s.req.Sampling.LogProbs {
			f.logProbs = append(f.logProbs, copyLogProb(&token))
		}
	}
}

func copyLogProb(r *backend.Sampled) TokenLogProb {
	p := TokenLogProb{Token: r.Token, LogProb: r.LogProb}
	for _, t := range r.Top {
		p.Top = append(p.Top, TokenLogProb{Token: t.Token, LogProb: t.LogProb})
	}
	return p
}

// end gives the last outcome, if there is one, and the end in one piece: a reader never sees the one without the other.
func (s *stream) end(o *scheduler.Outcome, finish FinishReason, err error, at time.Time) {
	s.mu.Lock()
	if o != nil {
		s.append(o, at)
	}
	s.in.ended, s.in.finish, s.in.err, s.in.finished = true, finish, err, at
	s.in.stopToken = o != nil && o.Finish == scheduler.Stop
	s.mu.Unlock()
	s.notify()
}

func (s *stream) notify() {
	select {
	case s.wake <- struct{}{}:
	default: // the reader was told and has not looked yet
	}
}

// take exchanges f, which the reader is done with, for what has come since. With wait it sleeps until something has, or until
// ctx ends.
func (s *stream) take(ctx context.Context, f *feed, wait bool) error {
	for {
		s.mu.Lock()
		if !wait || s.in.ended || s.each && len(s.in.tokens) > 0 {
			*f, s.in = s.in, feed{
				tokens: f.tokens[:0], at: f.at[:0], logProbs: f.logProbs[:0], promptLogProbs: f.promptLogProbs[:0],
				standing: s.in.standing,
			}
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Generate runs one request to its end. If ctx ends first it returns the output so far, with FinishAbort, and ctx's error.
// The same holds for an abort and a failed engine. The output is nil if the request was not accepted.
func (e *Engine) Generate(ctx context.Context, r Request) (*Output, error) {
	var out *Output
	var err error
	e.generate(ctx, &r, false, func(ev Event, evErr error) bool {
		out, err = ev.Done, evErr
		return true
	})
	return out, err
}

// Stream runs one request and yields its tokens as they are sampled, one event a token. The last event has Done set. An error
// ends the stream; the event beside it carries the output so far in Done if the request was accepted. Leaving the loop early
// aborts the request. A reader that is slow loses nothing and slows nobody.
func (e *Engine) Stream(ctx context.Context, r Request) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) { e.generate(ctx, &r, true, yield) }
}

// generate submits r and hands its events, or only the last, to yield.
func (e *Engine) generate(ctx context.Context, r *Request, events bool, yield func(Event, error) bool) {
	s, err := e.submit(ctx, r, events || len(r.Sampling.Stop) > 0)
	if err != nil {
		yield(Event{}, err)
		return
	}
	rd := newReader(e, r, s, events)
	// The caller may leave, or panic, at any event: then the request is aborted. Where it has ended already this does nothing.
	defer rd.leave()
	for {
		if err := s.take(ctx, &rd.feed, true); err != nil {
			rd.giveUp(err)
		}
		if !rd.read(yield) {
			return
		}
	}
}

// reader is the caller's side of a stream.
type reader struct {
	engine    *Engine
	stream    *stream
	assembler *assembler
	events    bool  // hand out each event; else only the last
	feed      feed  // taken and not read yet
	left      error // why the request is cancelled if it is not read to its end; nil: a stop string ended it
}

func newReader(e *Engine, r *Request, s *stream, events bool) *reader {
	return &reader{engine: e, stream: s, assembler: newAssembler(e, r, s), events: events, left: ErrAborted}
}

// giveUp takes what has come so far and nothing after it.
func (rd *reader) giveUp(err error) {
	f := &rd.feed
	_ = rd.stream.take(context.Background(), f, false)
	if f.ended && f.err == nil {
		return // it was done
	}
	f.ended, f.finish, f.err, f.finished = true, FinishAbort, err, rd.engine.loop.now()
	rd.left = err
}

// read hands what was taken to yield and tells whether more is to come.
func (rd *reader) read(yield func(Event, error) bool) bool {
	f, a := &rd.feed, rd.assembler
	a.note(f)
	for i := range f.tokens {
		last := f.ended && i == len(f.tokens)-1
		ev, matched := a.add(f, i, last && f.stopToken)
		switch {
		case matched: // tokens after this one, here or to come, are nobody's
			rd.left = nil
			ev.Done = a.finish(FinishStop, ev.At)
			yield(ev, nil)
			return false
		case last:
			ev.Text += a.flush()
			ev.Done = a.finish(f.finish, f.finished)
			yield(ev, f.err)
			return false
		case rd.events && !yield(ev, nil):
			return false
		}
	}
	if !f.ended {
		return true
	}
	text := a.flush()
	yield(Event{Text: text, At: f.finished, Done: a.finish(f.finish, f.finished)}, f.err)
	return false
}

// leave is called once nothing more will be read.
func (rd *reader) leave() { rd.engine.forget(rd.stream, rd.left) }

// forget takes s off the list of live requests and, if it has not ended, cancels it: with an error as aborted, without as
// stopped.
func (e *Engine) forget(s *stream, err error) {
	e.mu.Lock()
	if e.live[s.id] == s {
		delete(e.live, s.id)
	}
	e.mu.Unlock()
	s.mu.Lock()
	ended := s.in.ended
	s.mu.Unlock()
	if !ended {
		e.loop.post(message{kind: cancelRequest, stream: s, err: err})
	}
}
