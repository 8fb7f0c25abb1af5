package scheduler

import (
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// Next plans the next step into b and describes it; a plan of no rows means that nothing can be launched before a Commit, an
// Add or a SetMask. b refers to memory of the requests and is valid until the next call of the scheduler.
func (s *Scheduler) Next(b *backend.Batch) *Plan {
	s.plan = Plan{Admitted: s.plan.Admitted[:0]}
	b.Rows = b.Rows[:0]
	if s.inFlight == backend.MaxInFlight || s.inFlight > 0 && s.mustKnow() {
		return &s.plan
	}
	st := &s.steps[(s.head+s.inFlight)%backend.MaxInFlight]
	st.rows, st.drafts, st.asked = st.rows[:0], 0, 0

	s.planDecode(b, st)
	if s.guesses != nil {
		s.planDrafts(b, st)
	}
	s.bound = s.cfg.MaxTokens
	if s.cfg.MixedTokens > 0 && s.plan.DecodeRows > 0 {
		s.bound = min(s.bound, wholeTiles(s.plan.Tokens, s.plan.Tokens+max(s.cfg.MixedTokens, s.backlog()/backlogPart)))
	}
	s.planPrefill(b, st)
	s.admit(b, st)

	if s.plan.Rows == 0 {
		return &s.plan
	}
	if s.guesses != nil {
		s.planGuesses(b, st)
	}
	if s.cfg.PrefixCache {
		// Steps run in the order of their launch, so what this one computes can be read by the next. Not by this one: hence after
		// the admissions.
		for i := range st.rows {
			s.share(st.rows[i].r)
		}
	}
	s.inFlight++
	s.counts.Steps++
	s.growth = max(growthAtLeast, s.growth-growthDecay)
	s.audit()
	return &s.plan
}

// share puts r's newly filled pages into the prefix tree. Each page is tried once: if its twin is there, it will mostly stay.
func (s *Scheduler) share(r *Request) {
	known := min(r.computed, len(r.tokens))
	if full := known / s.cfg.PageSize; full > r.tried {
		r.tried = full
		r.shared = s.cache.Share(r.Salt, r.tokens[:known], r.pages, r.shared)
	}
}

// budget is what the step can still take.
func (s *Scheduler) budget() int {
	if s.plan.Drafts > 0 && s.plan.Rows+s.plan.Drafts >= s.cfg.MaxVerify {
		return 0
	}
	return s.bound - s.plan.Tokens
}

// tile is what large products take tokens in: a step that ends inside one pays for all of it (8B on an H200, 32 rows and a prompt: 256 tokens
// took 8.1 ms, 320 took 12.0, 512 took 13.2, 576 took 17.9).
const tile = 256

// wholeTiles is bound less what lies past its last whole tile, if that leaves more than planned.
func wholeTiles(planned, bound int) int {
	if whole := bound - bound%tile; whole > planned {
		return whole
	}
	return bound
}

// backlogPart: a queue is served within about as many steps, however long it is.
const backlogPart = 4

// backlog is about how many prompt tokens wait to be computed. Of a long queue it looks at the first and takes the others to be like them.
func (s *Scheduler) backlog() int {
	begun, first := 0, 0
	for _, r := range s.running {
		if r.state == running && !r.sampled {
			begun += r.remaining()
		}
	}
	window := min(len(s.waiting), policyWindow)
	for _, r := range s.waiting[:window] {
		first += r.remaining()
	}
	return begun + first*len(s.waiting)/max(1, window)
}

// planDecode gives every request that has its prompt behind it one row. Decode rows come first: they are one token each, and
// someone is waiting for each.
func (s *Scheduler) planDecode(b *backend.Batch, st *step) {
	for i := 0; i < len(s.running); i++ {
		r := s.running[i]
		if r.state != running || !r.sampled || !r.wantsToken() || r.Constrained && !r.maskReady {
			continue
		}
		// r.computed is the position of the last token, known or not. Making room may preempt r or those after it.
		if s.cover(r, r.computed+1) && r.state == running {
			s.addRow(b, st, r, 0, true)
		}
	}
}

// planPrefill goes on with prompts that were begun.
func (s *Scheduler) planPrefill(b *backend.Batch, st *step) {
	for i := 0; i < len(s.running) && s.budget() > 0; i++ {
		if r := s.running[i]; r.state == running && !r.sampled && r.remaining() > 0 {
			s.prefill(b, st, r)
		}
	}
}

// prefill adds a row with as much of r's known tokens as fits.
func (s *Scheduler) prefill(b *backend.Batch, st *step, r *Request) {
	n := min(r.remaining(), s.budget())
	if s.cfg.ChunkSize > 0 {
		n = min(n, s.cfg.ChunkSize)
	} else if s.waitsForRoom(r) {
		return
	}
	sample := n == r.remaining() && r.wantsToken()
	if sample && r.Constrained && !r.maskReady {
		n, sample = n-1, false
	}
	if !s.cover(r, r.computed+n) {
		n, sample = min(n, len(r.pages)*s.cfg.PageSize-r.computed), false
	}
	if n > 0 && r.state == running {
		s.addRow(b, st, r, n, sample)
	}
}

// waitsForRoom tells that r's prompt must not be cut and is too long for this step, though not for any.
func (s *Scheduler) waitsForRoom(r *Request) bool {
	return s.cfg.ChunkSize == 0 && r.remaining() > s.budget() && r.remaining() <= s.cfg.MaxTokens
}

// addRow puts n of r's known tokens, or the one in its slot if n is 0, into the step.
func (s *Scheduler) addRow(b *backend.Batch, st *step, r *Request, n int, sample bool) {
	row := backend.Row{Slot: r.slot, Position: r.computed, Pages: r.pages, Sample: sample}
	planned := plannedRow{r: r, from: r.computed, n: max(1, n), sample: sample}
	if n == 0 {
		s.plan.DecodeRows++
	} else {
		row.Tokens = r.tokens[r.computed : r.computed+n]
		s.counts.PrefillTokens += uint64(n)
		if r.PromptLogProbs && r.targets < len(r.Prompt)-1 {
			r.tokens = slices.Grow(r.tokens, 1) // what follows the last known token has no target: any id does
			row.Targets = r.tokens[r.computed+1 : r.computed+n+1]
			planned.targets = true
		}
		planned.last = r.MaxNewTokens == 0 && n == r.remaining()
	}
	if !r.started {
		r.start = backend.Start{Sampling: r.Sampling}
		if r.HasPenalty() {
			r.start.Prompt, r.start.Output = r.tokens[:len(r.Prompt)], r.tokens[len(r.Prompt):]
		}
		row.Start = &r.start
		r.started = true
	}
	if sample {
		if r.Constrained {
			row.Mask, r.maskReady = r.mask, false
		} else if r.numOutput() < r.MinNewTokens {
			row.Mask = r.MinMask
		}
		r.pending++
		r.sampled = true
		s.plan.Sampled++
	}
	r.computed += planned.n
	r.inFlight++
	s.plan.Tokens += planned.n
	s.plan.Rows++
	b.Rows = append(b.Rows, row)
	st.rows = append(st.rows, planned)
}

// cover gives r pages for its first n tokens, taking them from the request that came last if there is no other way. It returns
// false if r must wait for pages of requests that are in planned steps, or was itself preempted; pages that it got it keeps.
func (s *Scheduler) cover(r *Request, n int) bool {
	for len(r.pages)*s.cfg.PageSize < n {
		if page, ok := s.cache.Alloc(); ok {
			r.pages = append(r.pages, page)
			continue
		}
		if s.leaving > 0 {
			return false
		}
		victim := s.lastRunning()
		s.preempt(victim)
		if victim == r {
			return false
		}
	}
	return true
}

func (s *Scheduler) lastRunning() *Request {
	for i := len(s.running) - 1; i >= 0; i-- {
		if s.running[i].state == running {
			return s.running[i]
		}
	}
	panic("scheduler: out of pages with nobody running")
}

// preempt sends r back to the queue. Its whole pages stay in the prefix tree as long as nobody needs them.
func (s *Scheduler) preempt(r *Request) {
	s.counts.Preemptions++
	s.growth = min(1000, s.growth+growthOnPreempt)
	r.state = preempted
	if r.inFlight > 0 {
		s.leaving++
		return
	}
	s.release(r)
	s.requeue(r)
}
