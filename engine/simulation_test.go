package engine

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

var (
	simRequests = flag.Int("sim.requests", 30_000, "requests that TestSimulation runs")
	simSeed     = flag.Uint64("sim.seed", 0, "run this one world of TestSimulation and say what happens in it; 0 runs many")
)

// TestSimulation runs many small worlds: scheduler, page books, loop, streams and readers of an engine on a fake backend and a
// fake clock, all in one goroutine, so that a world is a function of its seed. Requests arrive in bursts, are cancelled in
// three ways, read slowly or not at all, run out of pages, meet a full queue, a flushed cache, a failing device and a closing
// engine. After each turn the books are audited; each reader checks what it gets against what its request would get alone.
//
//	go test ./engine -run TestSimulation -sim.requests 1000000
//	go test ./engine -run TestSimulation -sim.seed 17
//
// A failing world is shrunk before it is printed.
func TestSimulation(t *testing.T) {
	tok := fakeTokenizer(t)
	wanted := uint64(*simRequests)
	if testing.Short() {
		wanted = min(wanted, 4000) // the race detector is slow
	}
	if *simSeed != 0 {
		w := drawWorld(*simSeed)
		t.Logf("%v", w)
		_, err := w.run(tok, os.Stderr)
		require.NoError(t, err)
		return
	}
	var next, requests atomic.Uint64
	var total simTotals
	var mu sync.Mutex
	var wg sync.WaitGroup
	began := time.Now()
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for requests.Load() < wanted && !t.Failed() {
				w := drawWorld(next.Add(1))
				requests.Add(uint64(len(w.requests)))
				got, err := w.run(tok, nil)
				mu.Lock()
				total.add(got)
				if err != nil && !t.Failed() {
					small, smallErr := w.shrink(tok)
					t.Errorf("seed %d: %v\nshrunk: %v\n%v", w.seed, err, smallErr, small)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	t.Logf("%d worlds, %d requests in %v: %+v", next.Load(), requests.Load(), time.Since(began).Round(time.Millisecond), total)
	if requests.Load() < 20_000 {
		return
	}
	// Without these the worlds would be too tame to prove anything.
	require.Greater(t, total.Preemptions, requests.Load()/100)
	require.Greater(t, total.Cached, requests.Load()/2)
	require.Greater(t, total.Surplus, requests.Load()/50)
	require.Greater(t, total.Accepted, requests.Load()/25)
	require.Greater(t, total.Drafts-total.Accepted, requests.Load()/5)
	for _, n := range []int{total.Stopped, total.Length, total.Aborted, total.Refused, total.Failed, total.Closed, total.Held} {
		require.Greater(t, n, int(requests.Load()/1000), "%+v", total)
	}
}

// simTotals tells how wild the worlds were.
type simTotals struct {
	Turns, Preemptions, Cached, Surplus, Evicted, Drafts, Accepted  uint64
	Stopped, Length, Aborted, Refused, Failed, Closed, Busied, Held int
}

func (a *simTotals) add(b simTotals) {
	a.Turns += b.Turns
	a.Preemptions += b.Preemptions
	a.Cached += b.Cached
	a.Surplus += b.Surplus
	a.Evicted += b.Evicted
	a.Drafts += b.Drafts
	a.Accepted += b.Accepted
	a.Stopped += b.Stopped
	a.Length += b.Length
	a.Aborted += b.Aborted
	a.Refused += b.Refused
	a.Failed += b.Failed
	a.Closed += b.Closed
	a.Busied += b.Busied
	a.Held += b.Held
}

var (
	errSimFault  = errors.New("simulated device fault")
	errSimGiveUp = errors.New("simulated reader gave up")
)

// simReader is a request and what its reader saw.
type simReader struct {
	*simRequest
	r       Request
	want    simExpectation
	reader  *reader
	arrived uint64 // turn
	bound   uint64 // turn by which it must have ended

	tokens  []int32
	text    strings.Builder
	done    *Output
	err     error
	ends    int
	events  int
	last    time.Time
	gone    bool // reads no more
	acted   bool
	problem error
}

// simMask is a job of the helpers that make masks, which the simulation does itself, late.
type simMask struct {
	job maskJob
	due uint64 // turn
}

// simulation is one world in progress.
type simulation struct {
	world   *world
	engine  *Engine
	loop    *loop
	clock   time.Time
	turn    uint64
	readers []*simReader
	live    []*simReader
	flushes []chan error
	masks   []simMask
	totals  simTotals
	closed  bool
}

// run plays w to its end and returns the first violation.
func (w *world) run(tok *tokenizer.Tokenizer, log *os.File) (_ simTotals, err error) {
	defer func() {
		if p := recover(); p != nil {
			stack := make([]byte, 8<<10)
			err = fmt.Errorf("panic: %v\n%s", p, stack[:runtime.Stack(stack, false)])
		}
	}()
	s := &simulation{world: w, clock: time.Unix(1_000_000, 0)}
	s.open(tok)
	for next := 0; ; s.turn++ {
		for ; next < len(w.requests) && w.requests[next].Arrive <= s.turn; next++ {
			s.arrive(&w.requests[next])
		}
		if slices.Contains(w.Flushes, s.turn) {
			s.flush()
		}
		if w.CloseAt > 0 && s.turn == w.CloseAt {
			s.loop.close()
		}
		s.act()
		s.makeMasks()
		if err := s.loopTurn(); err != nil {
			return s.totals, err
		}
		if err := s.read(); err != nil {
			return s.totals, fmt.Errorf("turn %d: %w", s.turn, err)
		}
		if log != nil {
			fmt.Fprintf(log, "turn %d: %+v\n", s.turn, s.loop.snapshot())
		}
		if next == len(w.requests) && len(s.live) == 0 && (s.closed || s.quiet()) {
			break
		}
	}
	return s.totals, s.finish()
}

func (s *simulation) open(tok *tokenizer.Tokenizer) {
	w := s.world
	device := fakebackend.New(w.Info)
	if w.FaultAt > 0 {
		fail := func(step backend.StepID) error {
			if step == w.FaultAt {
				return errSimFault
			}
			return nil
		}
		if w.FaultInLaunch {
			device.FailLaunch = fail
		} else {
			device.FailWait = fail
		}
	}
	s.loop = newLoop()
	s.loop.now = func() time.Time { return s.clock }
	s.loop.patience = 0
	s.loop.helpers.jobs = make(chan maskJob, w.Info.MaxRows)
	s.engine = &Engine{
		options: w.Options, info: w.Info, tokenizer: tok, eos: []int32{0}, live: map[string]*stream{}, loop: s.loop,
	}
	s.engine.vocabulary.once.Do(func() { s.engine.vocabulary.v = simVocabulary(tok) })
	s.loop.init(device, newScheduler(&w.Options, w.Info), &w.Options)
	s.loop.late = false // it waits by a timer, which knows nothing of this clock
	s.engine.limit = s.loop.sched.Limit()
}

func (s *simulation) arrive(q *simRequest) {
	rd := &simReader{simRequest: q, r: q.request(), arrived: s.turn}
	st, err := s.engine.submit(context.Background(), &rd.r, q.Events || len(q.Stop) > 0)
	s.readers = append(s.readers, rd)
	if err != nil { // only an engine that failed or closed may refuse here
		rd.err, rd.ends, rd.gone, rd.tokens = err, 1, true, nil
		return
	}
	// Everyone who came before may go first, one token a turn, and be preempted now and then.
	work := uint64(len(q.Prompt) + q.MaxNew)
	for _, other := range s.live {
		work += uint64(len(other.Prompt) + other.MaxNew)
	}
	if s.world.Options.SchedulePolicy == "lpm" {
		work += 32 * 30 // and 32 who came after
	}
	rd.bound = s.turn + 50 + 10*work + uint64(10*q.Pace)
	rd.want = expect(s.engine.tokenizer, &rd.r, st.req.MaxNewTokens)
	rd.reader = newReader(s.engine, &rd.r, st, q.Events)
	s.live = append(s.live, rd)
}

func (s *simulation) flush() {
	reply := make(chan error, 1)
	if s.loop.post(message{kind: callLoop, reply: reply, call: func(l *loop) error { l.sched.Flush(); return nil }}) {
		s.flushes = append(s.flushes, reply)
	}
}

// act lets the readers whose time has come cancel in their way.
func (s *simulation) act() {
	for _, rd := range s.live {
		if rd.acted || rd.Act == actNone || s.turn < rd.arrived+rd.ActAfter {
			continue
		}
		rd.acted = true
		switch rd.Act {
		case actAbort:
			s.engine.Abort(rd.reader.stream.id)
		case actGiveUp:
			rd.reader.giveUp(errSimGiveUp)
			s.readOne(rd)
		case actLeave: // at its next event, or at once if it takes none
			if !rd.Events {
				rd.gone = true
				rd.reader.leave()
			}
		}
	}
}

// makeMasks takes the helpers' jobs and answers those whose time has come.
func (s *simulation) makeMasks() {
	jobs := s.loop.helpers.jobs
	for len(jobs) > 0 {
		job := <-jobs
		s.masks = append(s.masks, simMask{job, s.turn + uint64(job.token)%4})
	}
	kept := s.masks[:0]
	for _, m := range s.masks {
		if m.due > s.turn {
			kept = append(kept, m)
			continue
		}
		s.loop.post(m.job.do())
	}
	s.masks = kept
}

// loopTurn is one round of the loop, if it would not sleep.
func (s *simulation) loopTurn() error {
	s.clock = s.clock.Add(time.Duration(1+s.turn*7919%5000) * time.Microsecond)
	l := s.loop
	if s.closed || l.stalled && len(l.inbox.queue) == 0 && !l.inbox.closed {
		return nil
	}
	s.totals.Turns++
	if !l.turn() {
		s.closed = true
		l.shutdown()
		return nil
	}
	if err := l.sched.Check(); err != nil {
		return fmt.Errorf("turn %d: %w", s.turn, err)
	}
	if l.failure != nil {
		return nil
	}
	if l.stalled && l.helpers.open == 0 && l.sched.NumWaiting()+l.sched.NumRunning() > 0 {
		return fmt.Errorf("turn %d: %d requests wait and %d run, and nothing can be launched", s.turn, l.sched.NumWaiting(), l.sched.NumRunning())
	}
	return nil
}

func (s *simulation) read() error {
	kept := s.live[:0]
	for _, rd := range s.live {
		if in := &rd.reader.stream.in; !rd.gone && (s.turn-rd.arrived)%uint64(rd.Pace) == 0 && (in.ended || len(in.tokens) > 0) {
			_ = rd.reader.stream.take(context.Background(), &rd.reader.feed, false)
			s.readOne(rd)
		}
		if rd.problem != nil {
			return rd.problem
		}
		if s.turn > rd.bound && !rd.gone {
			return fmt.Errorf("request %d starves: it came in turn %d", rd.ID, rd.arrived)
		}
		if !rd.gone {
			kept = append(kept, rd)
		}
	}
	s.live = kept
	return nil
}

// readOne reads what was taken.
func (s *simulation) readOne(rd *simReader) {
	more := rd.reader.read(func(ev Event, err error) bool {
		rd.events++
		rd.tokens = append(rd.tokens, ev.TokenIDs...)
		rd.text.WriteString(ev.Text)
		switch {
		case rd.ends > 0:
			rd.problem = fmt.Errorf("request %d got an event after its end", rd.ID)
		case ev.At.Before(rd.last):
			rd.problem = fmt.Errorf("request %d: time runs back", rd.ID)
		case len(ev.TokenIDs) == 0 && ev.Done == nil:
			rd.problem = fmt.Errorf("request %d got an event of nothing", rd.ID)
		}
		rd.last = ev.At
		if ev.Done != nil {
			rd.ends++
			rd.done, rd.err = ev.Done, err
		}
		return !(rd.acted && rd.Act == actLeave)
	})
	if !more {
		rd.gone = true
		rd.reader.leave()
	}
}

func (s *simulation) quiet() bool {
	l := s.loop
	return l.failure != nil || l.sched.Idle() && l.flying == 0 && len(l.inbox.queue) == 0 && l.helpers.open == 0
}

// finish checks what must hold once everyone has gone.
func (s *simulation) finish() error {
	l := s.loop
	for _, reply := range s.flushes {
		select {
		case err := <-reply:
			if err != nil {
				s.totals.Busied++
			}
		default:
			return errors.New("a caller of FlushCache waits for ever")
		}
	}
	if len(s.engine.live) > 0 || len(l.streams) > 0 {
		return fmt.Errorf("%d requests are live, %d streams", len(s.engine.live), len(l.streams))
	}
	if !s.closed {
		l.sched.Flush()
		if cache := l.sched.Cache(); cache.Available() != cache.NumPages() || cache.Cached() != 0 {
			return fmt.Errorf("%d of %d pages are left, %d cached", cache.Available(), cache.NumPages(), cache.Cached())
		}
		if s.world.FaultAt == 0 && l.flying != 0 {
			return errors.New("a step is in flight")
		}
	}
	c := l.sched.Counts()
	s.totals.Preemptions, s.totals.Cached, s.totals.Surplus = c.Preemptions, c.CachedTokens, c.SurplusTokens
	s.totals.Evicted = l.sched.Cache().Evictions()
	s.totals.Drafts, s.totals.Accepted = c.DraftTokens, c.AcceptedTokens
	delivered, finished := 0, uint64(0)
	for _, rd := range s.readers {
		if err := s.verify(rd); err != nil {
			return fmt.Errorf("request %d: %w", rd.ID, err)
		}
		delivered += len(rd.tokens)
	}
	for _, n := range l.snapshot().FinishedTotal {
		finished += n
	}
	accepted := 0
	for _, rd := range s.readers {
		if rd.reader != nil {
			accepted++
		}
	}
	if finished != uint64(accepted) {
		return fmt.Errorf("%d requests were accepted and %d ends counted", accepted, finished)
	}
	if uint64(delivered) > c.OutputTokens {
		return fmt.Errorf("%d tokens were read and %d sampled", delivered, c.OutputTokens)
	}
	return nil
}

// verify compares what a reader saw with what its request alone would have got.
func (s *simulation) verify(rd *simReader) error {
	left := rd.acted && rd.Act == actLeave && rd.done == nil
	if rd.ends != 1 && !left {
		return fmt.Errorf("it ended %d times", rd.ends)
	}
	if rd.done != nil && !rd.Events {
		rd.tokens = rd.done.TokenIDs
		rd.text.Reset()
		rd.text.WriteString(rd.done.Text)
	}
	want := rd.want.tokens
	if len(rd.tokens) > len(want) || !slices.Equal(want[:len(rd.tokens)], rd.tokens) {
		return fmt.Errorf("tokens %v, alone %v", rd.tokens, want)
	}
	switch {
	case left:
		s.totals.Aborted++
		return nil
	case rd.err == nil:
		d := rd.done
		switch {
		case len(rd.tokens) != len(want):
			return fmt.Errorf("%d of %d tokens and no error", len(rd.tokens), len(want))
		case d.Finish != rd.want.finish || d.MatchedString != rd.want.matched || d.Text != rd.want.text || rd.text.String() != d.Text:
			return fmt.Errorf("finish %q by %q with text %q; alone %q by %q with %q",
				d.Finish, d.MatchedString, d.Text, rd.want.finish, rd.want.matched, rd.want.text)
		case !slices.Equal(d.TokenIDs, want) || d.PromptTokens != len(rd.Prompt):
			return errors.New("the output differs from the events")
		case d.CachedTokens >= d.PromptTokens || rd.PromptLogProbs && d.CachedTokens > 0:
			return fmt.Errorf("%d of %d prompt tokens cached", d.CachedTokens, d.PromptTokens)
		case rd.PromptLogProbs && len(d.PromptLogProbs) != len(rd.Prompt)-1:
			return fmt.Errorf("%d prompt log probabilities", len(d.PromptLogProbs))
		case d.Scheduled.Before(d.Arrived) || d.Finished.Before(d.Scheduled) || len(want) > 0 && (d.FirstToken.Before(d.Scheduled) || d.Finished.Before(d.FirstToken)):
			return errors.New("times are out of order")
		}
		if rd.Regex != "" {
			s.totals.Held++
		}
		if d.Finish == FinishStop {
			s.totals.Stopped++
		} else {
			s.totals.Length++
		}
	case errors.Is(rd.err, ErrQueueFull):
		if len(rd.tokens) > 0 {
			return errors.New("refused and served")
		}
		s.totals.Refused++
	case errors.Is(rd.err, errSimFault) && s.loop.failure != nil:
		s.totals.Failed++
	case errors.Is(rd.err, ErrClosed) && s.closed:
		s.totals.Closed++
	case errors.Is(rd.err, ErrAborted) && rd.acted && rd.Act == actAbort, errors.Is(rd.err, errSimGiveUp) && rd.acted && rd.Act == actGiveUp:
		s.totals.Aborted++
	default:
		return fmt.Errorf("unexpected error %w", rd.err)
	}
	if rd.done != nil && rd.err != nil && rd.done.Finish != FinishAbort {
		return fmt.Errorf("error %w with finish %q", rd.err, rd.done.Finish)
	}
	return nil
}
