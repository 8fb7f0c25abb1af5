package engine

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/tokamak-engine/tokamak/engine/grammar"
)

// Constrained output. A request's grammar is compiled in its caller's goroutine. After each of its tokens a helper follows the
// grammar and makes the mask for the next, while the loop goes on with everyone else: the request is left out of the step that
// is launched meanwhile.

// maskPatience is how long the loop waits for masks before it launches the next step, while the device is busy with the one
// ahead: a mask mostly takes microseconds, a step milliseconds, and a request that misses a step waits a whole one.
const maskPatience = 300 * time.Microsecond

// constraint follows one request's output. Only one goroutine at a time uses it: the caller's at first, then a helper.
type constraint struct {
	matcher *grammar.Matcher
	mask    []uint32
	minMask []uint32 // of tokens before minTokens; nil if there are none
	min     int
	tokens  int
}

// vocabulary is made when the first constrained request comes: it takes tens of milliseconds.
type vocabulary struct {
	once sync.Once
	v    *grammar.Vocabulary
}

func (e *Engine) grammarVocabulary() *grammar.Vocabulary {
	e.vocabulary.once.Do(func() {
		e.vocabulary.v = grammar.FromTokenizer(e.tokenizer, e.info.VocabSize, e.eos)
	})
	return e.vocabulary.v
}

// newConstraint compiles what r's output must be; nil if anything goes.
func (e *Engine) newConstraint(r *Request, minMask []uint32) (*constraint, error) {
	p := &r.Sampling
	field, spec := "json_schema", grammar.Spec{JSONSchema: p.JSONSchema}
	if p.Regex != "" {
		field, spec = "regex", grammar.Spec{Regex: p.Regex}
	}
	if spec == (grammar.Spec{}) {
		return nil, nil
	}
	if e.tokenizer == nil {
		return nil, &RequestError{field, "the engine runs without a tokenizer"}
	}
	v := e.grammarVocabulary()
	g, err := grammar.Compile(spec, v)
	if err != nil {
		return nil, &RequestError{field, err.Error()}
	}
	c := &constraint{matcher: g.NewMatcher(), mask: make([]uint32, v.MaskWords()), minMask: minMask, min: p.MinNewTokens}
	if !c.next() {
		return nil, &RequestError{field, "no token of the vocabulary can begin such an output"}
	}
	return c, nil
}

// next makes the mask for the next token and returns false if no token can follow.
func (c *constraint) next() bool {
	if !c.matcher.Mask(c.mask) {
		return false
	}
	if c.minMask != nil && c.tokens < c.min {
		c.withoutStops()
	}
	return true
}

// withoutStops forbids stop tokens, unless nothing else is allowed: a complete value goes before a minimum of tokens.
func (c *constraint) withoutStops() {
	left := uint32(0)
	for i, m := range c.minMask {
		left |= c.mask[i] & m
	}
	if left == 0 {
		return
	}
	for i, m := range c.minMask {
		c.mask[i] &= m
	}
}

// accept follows one token and tells whether more may come.
func (c *constraint) accept(token int32) (more bool, err error) {
	c.tokens++
	if err := c.matcher.Accept(token); err != nil {
		return false, fmt.Errorf("the backend sampled a token against the request's mask: %w", err)
	}
	return !c.matcher.Ended() && c.next(), nil
}

// maskJob asks a helper to follow token.
type maskJob struct {
	stream *stream
	token  int32
}

// do follows the token and makes the answer to the loop.
func (j maskJob) do() message {
	more, err := j.stream.constraint.accept(j.token)
	m := message{kind: maskReady, stream: j.stream, err: err}
	if !more {
		m.kind = constraintDone
	}
	return m
}

// helpers make masks. They are started with the first constrained request.
type helpers struct {
	jobs    chan maskJob // holds one job a slot: a send never waits
	running sync.WaitGroup
	open    int // jobs whose answer has not come; the loop's
	timer   *time.Timer
}

// start starts the helpers if they do not run.
func (h *helpers) start(l *loop, slots int) {
	if h.jobs != nil {
		return
	}
	h.jobs = make(chan maskJob, slots)
	h.timer = time.NewTimer(maskPatience)
	for range min(4, runtime.GOMAXPROCS(0)) {
		h.running.Go(func() {
			for job := range h.jobs {
				l.post(job.do()) // a closed loop needs none
			}
		})
	}
}

func (h *helpers) stop() {
	if h.jobs != nil {
		close(h.jobs)
		h.running.Wait()
	}
}

// waitForMasks takes messages until all masks have come or patience ends, and returns false once the engine closes.
func (l *loop) waitForMasks() bool {
	h := &l.helpers
	h.timer.Reset(l.patience)
	for h.open > 0 {
		select {
		case <-l.inbox.wake:
			if !l.receive(false) {
				return false
			}
		case <-h.timer.C:
			return true
		}
	}
	return true
}

// maskAnswer takes what a helper found out.
func (l *loop) maskAnswer(m message) {
	l.helpers.open--
	if _, live := l.streams[m.stream]; !live {
		return
	}
	switch {
	case m.err != nil:
		l.sched.Cancel(&m.stream.req)
		l.end(m.stream, FinishAbort, m.err)
	case m.kind == maskReady:
		l.sched.SetMask(&m.stream.req, m.stream.constraint.mask)
	default: // the value is complete and nothing can follow
		l.sched.Cancel(&m.stream.req)
		l.end(m.stream, FinishStop, nil)
	}
}
