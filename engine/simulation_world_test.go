package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/grammar"
	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// world is all that a simulation depends on.
type world struct {
	seed          uint64
	Info          backend.Info
	Options       Options
	FaultAt       backend.StepID // 0: the device never fails
	FaultInLaunch bool
	CloseAt       uint64   // turn; 0: never
	Flushes       []uint64 // turns
	requests      []simRequest
}

// simRequest is one request and how its reader behaves.
type simRequest struct {
	ID             int
	Arrive         uint64 // turn
	Prompt         []int32
	MaxNew, MinNew int
	IgnoreEOS      bool
	StopIDs        []int32
	Stop           []string
	Regex          string
	Salt           string
	PromptLogProbs bool
	Penalty        bool // makes the backend compare the tokens it is told with those it has
	Events         bool
	Pace           int // reads every so many turns
	Act            action
	ActAfter       uint64 // turns
}

// action is how a reader ends its request before its time.
type action uint8

const (
	actNone   action = iota
	actAbort         // by its ID
	actGiveUp        // its context ends
	actLeave         // it leaves the loop of its stream
)

func (q *simRequest) request() Request {
	r := Request{ID: fmt.Sprint("sim-", q.ID), InputIDs: q.Prompt, CacheSalt: q.Salt, PromptLogProbs: q.PromptLogProbs, Sampling: DefaultSampling(q.MaxNew)}
	r.Sampling.MinNewTokens, r.Sampling.IgnoreEOS = q.MinNew, q.IgnoreEOS
	r.Sampling.StopTokenIDs, r.Sampling.Stop = q.StopIDs, q.Stop
	r.Sampling.Regex = q.Regex
	if q.Penalty {
		r.Sampling.RepetitionPenalty = 1.1
	}
	return r
}

// drawWorld makes a world of a few hundred requests from a seed.
func drawWorld(seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 0x746f6b616d616b))
	between := func(low, high int) int { return low + rng.IntN(high-low+1) }
	chance := func(percent int) bool { return rng.IntN(100) < percent }
	w := &world{seed: seed, Options: DefaultOptions()}
	w.Info = backend.Info{
		Name: "fake", VocabSize: len(pieces), MaxRows: between(1, 8), PageSize: between(1, 4), MaxContext: between(16, 48),
	}
	w.Info.MaxTokens = w.Info.MaxRows + between(0, 24)
	if chance(70) {
		w.Info.MaxVerify = between(2, 14)
		o := &w.Options
		o.SpeculativeAlgorithm, o.SpeculativeEager = "NGRAM", chance(70)
		o.SpeculativeNumTokens, o.SpeculativeNgramMin, o.SpeculativeNgramMax = between(1, 8), between(1, 2), between(2, 6)
		if seed%3 == 0 {
			w.Info.DraftHead = true
			o.SpeculativeAlgorithm, o.SpeculativeNumSteps = eagle3, o.SpeculativeNumTokens
		}
	}
	w.Info.NumPages = max(4, between(16, 70)/w.Info.PageSize)
	o := &w.Options
	o.ChunkedPrefillSize = []int{-1, 1, 3, 8, 100}[rng.IntN(5)]
	o.DisableOverlap, o.DisableRadixCache = chance(20), chance(25)
	if chance(30) {
		o.SchedulePolicy = "lpm"
	}
	if chance(10) {
		o.MaxQueuedRequests = between(1, 6)
	}
	if chance(6) {
		w.FaultAt, w.FaultInLaunch = backend.StepID(between(1, 300)), chance(50)
	}
	if chance(6) {
		w.CloseAt = uint64(between(1, 400))
	}
	for range between(0, 4) {
		w.Flushes = append(w.Flushes, uint64(between(0, 500)))
	}
	bases := make([][]int32, 3)
	for i := range bases {
		for range 14 {
			bases[i] = append(bases[i], int32(1+rng.IntN(3)))
		}
	}
	limit := min(w.Info.MaxContext, w.Info.NumPages*w.Info.PageSize)
	turn, crowded := uint64(0), between(1, 6)
	for id := range between(100, 400) {
		if chance(100 / crowded) {
			turn += uint64(between(0, 6))
		}
		q := simRequest{ID: id, Arrive: turn, Pace: 1, IgnoreEOS: chance(40), Events: chance(70), Penalty: chance(30)}
		base := bases[rng.IntN(len(bases))]
		q.Prompt = slices.Clone(base[:min(between(0, len(base)), limit-2)])
		for range between(1, 4) {
			if len(q.Prompt) < limit-1 {
				q.Prompt = append(q.Prompt, int32(1+rng.IntN(len(pieces)-1)))
			}
		}
		q.MaxNew = between(0, 8+rng.IntN(20))
		if chance(3) {
			q.MaxNew = 1000 // to the end of the context
		}
		if chance(15) {
			q.MinNew = between(0, min(3, q.MaxNew))
		}
		if chance(20) {
			q.StopIDs = []int32{int32(between(1, 20)), int32(between(1, 20)), int32(between(1, 20))}
		}
		if chance(15) {
			q.Stop = [][]string{{"a"}, {"e", "z"}, {"ab", "th"}, {"é"}, {"th~"}}[rng.IntN(5)]
		}
		if chance(20) {
			q.Salt = []string{"x", "y"}[rng.IntN(2)]
		}
		if chance(8) {
			q.Regex = []string{`(ab|cd)*z`, `the( in)+`, `[a-e]{1,5}`}[rng.IntN(3)]
			q.Stop, q.StopIDs, q.MinNew = nil, nil, 0
		}
		q.PromptLogProbs = chance(8)
		if chance(15) {
			q.Pace = between(2, 40)
		}
		if chance(20) {
			q.Act, q.ActAfter = action(between(1, 3)), uint64(between(0, 25))
		}
		w.requests = append(w.requests, q)
	}
	return w
}

// simExpectation is what a request gets alone.
type simExpectation struct {
	tokens  []int32
	text    string
	finish  FinishReason
	matched string
}

// expect works out a request's output from the fake model and the rules, and not from the engine's code.
func expect(tok *tokenizer.Tokenizer, r *Request, maxNew int) simExpectation {
	p := &r.Sampling
	if p.Regex != "" {
		return expectHeld(tok, r, maxNew)
	}
	stop := slices.Clone(p.StopTokenIDs)
	if !p.IgnoreEOS {
		stop = append(stop, 0)
	}
	chain := uint64(0)
	for _, t := range r.InputIDs {
		chain = fakebackend.Extend(chain, t)
	}
	want := simExpectation{finish: FinishLength}
	decoder := tok.NewDecoder(true)
	said, free := "", 0 // stop strings count from free on
	for len(want.tokens) < maxNew {
		t := fakebackend.Sample(chain, len(pieces), nil)
		for len(want.tokens) < p.MinNewTokens && slices.Contains(stop, t) {
			t = (t + 1) % int32(len(pieces))
		}
		chain = fakebackend.Extend(chain, t)
		want.tokens = append(want.tokens, t)
		if slices.Contains(stop, t) {
			want.finish = FinishStop
			break
		}
		said += decoder.Add(t)
		if len(want.tokens) <= p.MinNewTokens {
			free = len(said)
		} else if at, s := firstStop(said[free:], p.Stop); at >= 0 {
			want.finish, want.matched, want.text = FinishStop, s, said[:free+at]
			return want
		}
	}
	said += decoder.Flush()
	if len(want.tokens) > p.MinNewTokens {
		if at, s := firstStop(said[free:], p.Stop); at >= 0 {
			want.finish, want.matched, said = FinishStop, s, said[:free+at]
		}
	}
	want.text = said
	return want
}

var simVocabularies sync.Map // by tokenizer: compiled grammars are kept from world to world

func simVocabulary(tok *tokenizer.Tokenizer) *grammar.Vocabulary {
	v, ok := simVocabularies.Load(tok)
	if !ok {
		v, _ = simVocabularies.LoadOrStore(tok, grammar.FromTokenizer(tok, len(pieces), []int32{0}))
	}
	return v.(*grammar.Vocabulary)
}

// expectHeld is expect for a request that is held to a regular expression and has no other stop.
func expectHeld(tok *tokenizer.Tokenizer, r *Request, maxNew int) simExpectation {
	g, err := grammar.Compile(grammar.Spec{Regex: r.Sampling.Regex}, simVocabulary(tok))
	if err != nil {
		panic(err)
	}
	m := g.NewMatcher()
	mask := make([]uint32, (len(pieces)+31)/32)
	chain := uint64(0)
	for _, t := range r.InputIDs {
		chain = fakebackend.Extend(chain, t)
	}
	want := simExpectation{finish: FinishLength}
	for len(want.tokens) < maxNew {
		m.Mask(mask)
		t := fakebackend.Sample(chain, len(pieces), mask)
		if err := m.Accept(t); err != nil {
			panic(err)
		}
		chain = fakebackend.Extend(chain, t)
		want.tokens = append(want.tokens, t)
		ended := t == 0 && !r.Sampling.IgnoreEOS
		if ended || m.Ended() && len(want.tokens) < maxNew {
			want.finish = FinishStop
			break
		}
	}
	said := want.tokens
	if n := len(said); n > 0 && said[n-1] == 0 {
		said = said[:n-1]
	}
	want.text = tok.Decode(said, true)
	return want
}

func firstStop(text string, stops []string) (at int, which string) {
	at = -1
	for _, s := range stops {
		if i := strings.Index(text, s); i >= 0 && (at < 0 || i < at) {
			at, which = i, s
		}
	}
	return at, which
}

// shrink looks for a smaller world that fails too: fewer requests, tamer readers, fewer events.
func (w *world) shrink(tok *tokenizer.Tokenizer) (*world, error) {
	best := *w
	_, bestErr := w.run(tok, nil)
	deadline := time.Now().Add(10 * time.Second)
	try := func(change func(*world)) bool {
		if time.Now().After(deadline) {
			return false
		}
		c := best
		c.requests, c.Flushes = slices.Clone(best.requests), slices.Clone(best.Flushes)
		change(&c)
		if _, err := c.run(tok, nil); err != nil {
			best, bestErr = c, err
			return true
		}
		return false
	}
	for size := len(best.requests) / 2; size > 0; size /= 2 {
		for from := 0; from < len(best.requests); {
			to := min(from+size, len(best.requests))
			if !try(func(c *world) { c.requests = slices.Delete(c.requests, from, to) }) {
				from = to
			}
		}
	}
	try(func(c *world) { c.Flushes = nil })
	try(func(c *world) { c.CloseAt = 0 })
	try(func(c *world) { c.FaultAt = 0 })
	try(func(c *world) { c.Options.DisableOverlap = true })
	try(func(c *world) { c.Options.DisableRadixCache = true })
	try(func(c *world) { c.Options.SpeculativeAlgorithm = "" })
	try(func(c *world) { c.Options.SchedulePolicy = "fcfs" })
	for i := range best.requests {
		for _, tame := range []func(*simRequest){
			func(q *simRequest) { q.Act = actNone },
			func(q *simRequest) { q.Pace = 1 },
			func(q *simRequest) { q.Stop = nil },
			func(q *simRequest) { q.Regex = "" },
			func(q *simRequest) { q.StopIDs, q.MinNew = nil, 0 },
			func(q *simRequest) { q.Salt = "" },
			func(q *simRequest) { q.PromptLogProbs = false },
			func(q *simRequest) { q.Penalty = false },
			func(q *simRequest) { q.IgnoreEOS = true },
			func(q *simRequest) { q.Arrive = 0 },
			func(q *simRequest) { q.MaxNew = 1 },
			func(q *simRequest) { q.Prompt = q.Prompt[:1] },
		} {
			try(func(c *world) { tame(&c.requests[i]) })
		}
	}
	return &best, bestErr
}

func (w *world) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "device %+v\nspeculate %q %d tokens %d..%d eager %t\n", w.Info, w.Options.SpeculativeAlgorithm, w.Options.SpeculativeNumTokens,
		w.Options.SpeculativeNgramMin, w.Options.SpeculativeNgramMax, w.Options.SpeculativeEager)
	fmt.Fprintf(&b, "chunk %d overlap %t cache %t policy %s queue %d fault at step %d (in launch: %t) close at turn %d flushes %v\n",
		w.Options.ChunkedPrefillSize, !w.Options.DisableOverlap, !w.Options.DisableRadixCache, w.Options.SchedulePolicy,
		w.Options.MaxQueuedRequests, w.FaultAt, w.FaultInLaunch, w.CloseAt, w.Flushes)
	for i, q := range w.requests {
		if i == 20 {
			fmt.Fprintf(&b, "and %d requests more", len(w.requests)-i)
			break
		}
		fmt.Fprintf(&b, "%+v\n", q)
	}
	return b.String()
}
