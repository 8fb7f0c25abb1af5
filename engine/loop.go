package engine

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// loop is the one goroutine that owns scheduler and backend. It launches step N+1 before step N has ended, then awaits step N. It never tokenises, never
// logs and never waits for a reader: what it samples goes to streams, whose memory MaxNewTokens bounds.
type loop struct {
	sched    *scheduler.Scheduler
	device   backend.Backend
	depth    int // steps in flight: 2, or 1 without overlap
	maxQueue int

	inbox    inbox
	done     chan struct{}
	closeErr error // of the backend; read after done

	// Below: the loop's own.
	batch    backend.Batch
	result   backend.Result
	flights  [backend.MaxInFlight]flight // oldest first
	flying   int
	streams  map[*stream]struct{} // that have not ended
	calls    []message            // wait until nothing is in flight
	stalled  bool                 // nothing can be launched before a message comes
	failure  error
	helpers  helpers
	patience time.Duration // for masks, while the device is busy
	late     bool          // plan a step as late as the running one allows
	pace     pace
	meter    meter
	awaited  time.Time // when the last step was; zero after a rest
	now      func() time.Time
}

// flight is a launched step.
type flight struct {
	id    backend.StepID
	step  trace.Step
	began time.Time // at the latest: when it was launched, or the step before it was awaited
	// since is when the step before was awaited, if nothing was in flight when this one was planned and the loop had no rest between.
	since time.Time
}

func newLoop() *loop {
	return &loop{
		inbox: inbox{wake: make(chan struct{}, 1)}, done: make(chan struct{}), streams: map[*stream]struct{}{}, stalled: true,
		now: time.Now, patience: maskPatience,
	}
}

func (l *loop) init(device backend.Backend, sched *scheduler.Scheduler, o *Options) {
	l.device, l.sched, l.depth, l.maxQueue = device, sched, backend.MaxInFlight, o.MaxQueuedRequests
	if o.DisableOverlap {
		l.depth = 1
	}
	l.late = device.Info().Name != "cpu" // whose steps take the very processors that would have to be in time
	l.publish()
}

// run is the goroutine. start opens the backend: some belong to the thread they were opened on.
func (l *loop) run(start func() error) {
	defer close(l.done)
	runtime.LockOSThread() // for good: a thread that had a device context ends with the goroutine
	if start() != nil {
		return
	}
	for l.turn() {
	}
	l.shutdown()
}

func (l *loop) shutdown() {
	l.helpers.stop()
	for s := range l.streams {
		l.end(s, FinishAbort, ErrClosed)
	}
	for _, m := range l.calls {
		m.reply <- ErrClosed
	}
	l.publish()
	l.closeErr = l.device.Close()
}

// turn is one round of the loop. It returns false once the engine closes.
func (l *loop) turn() bool {
	if !l.receive(l.stalled) {
		return false
	}
	if l.helpers.open > 0 && l.flying > 0 && l.patience > 0 && !l.waitForMasks() {
		return false
	}
	if l.late && l.flying > 0 && l.flying < l.depth && !l.linger() {
		return false
	}
	for l.flying < l.depth && l.launch() {
	}
	if l.stalled = l.flying == 0; l.stalled {
		l.awaited = time.Time{}
	} else {
		l.await()
	}
	if l.flying == 0 {
		l.runCalls()
	}
	l.publish()
	return true
}

// receive takes what was posted, sleeping until something is if wait, and returns false once the engine closes.
func (l *loop) receive(wait bool) bool {
	messages, open := l.inbox.take(wait)
	for i := range messages {
		l.handle(messages[i])
		messages[i] = message{}
	}
	return open
}

func (l *loop) handle(m message) {
	switch m.kind {
	case addRequest:
		l.add(m.stream)
	case cancelRequest:
		if _, live := l.streams[m.stream]; live {
			l.sched.Cancel(&m.stream.req)
			l.end(m.stream, m.finish(), m.err)
		}
	case maskReady, constraintDone:
		l.maskAnswer(m)
	case callLoop:
		if len(l.streams) > 0 {
			m.reply <- ErrBusy
			return
		}
		l.calls = append(l.calls, m)
	}
}

func (l *loop) add(s *stream) {
	l.streams[s] = struct{}{}
	switch {
	case l.failure != nil:
		l.end(s, FinishAbort, l.failure)
	case l.sched.NumWaiting() >= l.maxQueue:
		l.end(s, FinishAbort, ErrQueueFull)
	default:
		l.sched.Add(&s.req)
		if s.constraint != nil {
			l.helpers.start(l, l.device.Info().MaxRows)
			l.sched.SetMask(&s.req, s.constraint.mask)
		}
		s.enter("waiting")
	}
}

// runCalls does what needs the engine to itself. Requests that came after a call wait for it.
func (l *loop) runCalls() {
	for i, m := range l.calls {
		l.calls[i] = message{}
		switch {
		case l.failure != nil:
			m.reply <- l.failure
		case len(l.streams) > 0:
			m.reply <- ErrBusy
		default:
			m.reply <- m.call(l)
		}
	}
	l.calls = l.calls[:0]
}

// launch plans a step and launches it, if there is one.
func (l *loop) launch() bool {
	if l.failure != nil {
		return false
	}
	began := l.now()
	r := trace.Begin("schedule", trace.Scheduler)
	plan := l.sched.Next(&l.batch)
	r.End()
	if plan.Rows == 0 {
		return false
	}
	for _, req := range plan.Admitted {
		req.Owner.(*stream).admitted(began)
	}
	launched := l.now()
	r = trace.BeginArg("launch", trace.Backend, l.sched.Counts().Steps)
	id, err := l.device.Launch(&l.batch)
	r.End()
	if err != nil {
		l.fail(fmt.Errorf("launch a step: %w", err))
		return false
	}
	f := &l.flights[l.flying]
	l.flying++
	f.id = id
	f.step = trace.Step{
		ID: l.sched.Counts().Steps, Phase: phaseOf(plan), Rows: plan.Rows, DecodeRows: plan.DecodeRows, Tokens: plan.Tokens,
		SampledTokens: plan.Sampled, Launched: launched, LaunchTime: l.now().Sub(launched), InFlight: l.flying,
	}
	f.began, f.since = launched, time.Time{}
	if l.flying == 1 {
		f.since = l.awaited
	}
	took := f.step.Launched.Add(f.step.LaunchTime).Sub(began)
	l.pace.launched(&f.step, took)
	l.meter.launched(plan, took)
	return true
}

func phaseOf(p *scheduler.Plan) trace.Phase {
	switch p.DecodeRows {
	case 0:
		return trace.Prefill
	case p.Rows:
		return trace.Decode
	}
	return trace.Mixed
}

// await waits for the oldest step and hands out what it gave.
func (l *loop) await() {
	f := l.flights[0]
	f.step.WaitStart = l.now()
	r := trace.BeginArg("wait", trace.Backend, f.step.ID)
	err := l.device.Wait(f.id, &l.result)
	r.End()
	if err != nil {
		l.fail(fmt.Errorf("step %d: %w", f.id, err))
		return
	}
	at := l.now()
	f.step.WaitTime = at.Sub(f.step.WaitStart)
	l.pace.ended(&f.step, at.Sub(f.began))
	if f.step.Phase == trace.Decode {
		began := f.began
		if !f.since.IsZero() { // the host's work between the steps is part of the price
			began = f.since
		}
		l.sched.Took(f.step.Tokens, at.Sub(began), l.result.HeadTime)
	}
	l.awaited = at
	copy(l.flights[:], l.flights[1:])
	l.flights[0].began = at
	l.flying--
	r = trace.BeginArg("commit", trace.Scheduler, f.step.ID)
	outcomes := l.sched.Commit(&l.result)
	r.End()
	r = trace.Begin("deliver", trace.Loop)
	for i := range outcomes {
		l.deliver(&outcomes[i], at)
	}
	r.End()
	l.meter.awaited(at, f.step.WaitTime, l.sched.Counts())
	if trace.Enabled() {
		trace.StepDone(f.step)
		trace.Counter("batch rows", trace.Scheduler, int64(f.step.Rows))
		trace.Counter("step tokens", trace.Scheduler, int64(f.step.Tokens))
		trace.Counter("waiting requests", trace.Scheduler, int64(l.sched.NumWaiting()))
		trace.Counter("used pages", trace.Scheduler, int64(l.sched.Cache().NumPages()-l.sched.Cache().Available()))
	}
}

func (l *loop) deliver(o *scheduler.Outcome, at time.Time) {
	s := o.Request.Owner.(*stream)
	switch o.Finish {
	case scheduler.Running:
		s.deliver(o, at)
		if s.constraint != nil && o.Sampled > 0 {
			l.helpers.open++
			l.helpers.jobs <- maskJob{s, o.Result.Token}
		}
	case scheduler.Length:
		l.endWith(s, o, FinishLength, nil, at)
	case scheduler.Stop:
		l.endWith(s, o, FinishStop, nil, at)
	case scheduler.NonFinite:
		l.endWith(s, o, FinishAbort, fmt.Errorf("after %d tokens: %w", len(o.Request.Tokens()), ErrNonFinite), at)
	}
}

// end tells s that nothing more will come.
func (l *loop) end(s *stream, finish FinishReason, err error) {
	l.endWith(s, nil, finish, err, l.now())
}

// endWith is end together with the last outcome, or nil.
func (l *loop) endWith(s *stream, o *scheduler.Outcome, finish FinishReason, err error, at time.Time) {
	delete(l.streams, s)
	l.meter.finished(finish)
	s.enter("")
	s.end(o, finish, err, at)
}

// fail makes the engine unhealthy for good: the backend's state is not known any more, and nothing is planned again.
func (l *loop) fail(err error) {
	l.failure = fmt.Errorf("backend failed, restart the engine: %w", err)
	l.flying = 0
	for s := range l.streams {
		l.end(s, FinishAbort, l.failure)
	}
	l.sched.Abandon()
}

// call runs f on the loop's goroutine when the engine has nothing else to do, or returns ErrBusy.
func (l *loop) call(f func(*loop) error) error {
	reply := make(chan error, 1) // the loop does not wait for the caller
	if !l.post(message{kind: callLoop, call: f, reply: reply}) {
		return ErrClosed
	}
	return <-reply
}

func (l *loop) post(m message) bool { return l.inbox.put(m) }

func (l *loop) close() { l.inbox.close() }

// message is what others ask of the loop.
type message struct {
	kind   messageKind
	stream *stream
	err    error // why a request is cancelled; nil if its reader has all it wants
	call   func(*loop) error
	reply  chan error
}

type messageKind uint8

const (
	addRequest messageKind = iota
	cancelRequest
	callLoop
	maskReady      // the stream's constraint has a mask
	constraintDone // it is complete
)

func (m *message) finish() FinishReason {
	if m.err == nil {
		return FinishStop
	}
	return FinishAbort
}

// inbox is a queue of messages, in the order they were put. A put never waits.
type inbox struct {
	mu     sync.Mutex
	queue  []message
	taken  []message // the memory of the last take
	closed bool
	wake   chan struct{}
}

// put returns false if the inbox is closed.
func (b *inbox) put(m message) bool {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		return false
	}
	b.queue = append(b.queue, m)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default: // it is awake already
	}
	return true
}

// take returns what was put since the last take, valid until the next, and false if the inbox is closed. With wait it sleeps until
// there is something.
func (b *inbox) take(wait bool) ([]message, bool) {
	for {
		b.mu.Lock()
		if len(b.queue) > 0 || b.closed || !wait {
			b.taken, b.queue = b.queue, b.taken[:0]
			open := !b.closed
			b.mu.Unlock()
			return b.taken, open
		}
		b.mu.Unlock()
		<-b.wake
	}
}

func (b *inbox) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}
