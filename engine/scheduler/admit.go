package scheduler

import "github.com/tokamak-engine/tokamak/engine/backend"

// Admission keeps pages free for what running requests may still ask for, or they would soon preempt each other. How much
// of it they really use nobody knows: the share falls slowly while all goes well and rises with each preemption. The figures
// are permille of the tokens left to MaxNewTokens.
const (
	growthAtStart   = 500
	growthAtLeast   = 100
	growthDecay     = 1 // a step
	growthOnPreempt = 200
	// growthClip bounds the tokens that one request is reckoned with: a client that asks for 100,000 seldom gets them.
	growthClip = 4096
)

const (
	// maxPassed is how often the policy may let later requests go before a request.
	maxPassed = 32
	// policyWindow is how many waiting requests the policy looks at.
	policyWindow = 64
	// blockedSteps is how long a request that did not fit is left alone if nothing was released.
	blockedSteps = 16
)

// admit gives slots to waiting requests and plans the beginnings of their prompts. It stops at the first that does not fit, so
// that a large request is not passed by small ones for ever.
func (s *Scheduler) admit(b *backend.Batch, st *step) {
	if s.blocked != nil {
		if s.blockedIn--; s.blockedIn > 0 {
			return
		}
		s.unblock()
	}
	if len(s.waiting) == 0 || len(s.slots) == 0 || s.budget() == 0 {
		return
	}
	if s.cfg.Policy == LPM {
		s.measurePrefixes()
	}
	reserved := 0
	for _, r := range s.running {
		if r.state == running {
			reserved += s.futurePages(r)
		}
	}
	for len(s.waiting) > 0 && len(s.slots) > 0 && s.budget() > 0 {
		i := s.pick()
		if i < 0 {
			return
		}
		r := s.waiting[i]
		if s.prefixInStep(r, st) {
			r.deferred = s.counts.Steps + 1
			continue
		}
		if !s.place(r, reserved) {
			return
		}
		copy(s.waiting[i:], s.waiting[i+1:])
		s.waiting = s.waiting[:len(s.waiting)-1]
		s.prefill(b, st, r)
		reserved += s.futurePages(r)
	}
}

// place makes r running if its prompt fits beside what is reserved.
func (s *Scheduler) place(r *Request, reserved int) bool {
	r.pages = r.pages[:0]
	if !r.PromptLogProbs || r.targets >= len(r.Prompt)-1 {
		// The last token is computed in any case: its logits are wanted.
		r.pages = s.cache.Match(r.Salt, r.tokens[:len(r.tokens)-1], r.pages)
	}
	found := len(r.pages) * s.cfg.PageSize
	r.shared, r.tried, r.computed = len(r.pages), len(r.pages), found
	fits := len(s.running) == 0 || s.futurePages(r)+reserved <= s.cache.Available()
	if !fits || s.waitsForRoom(r) {
		s.cache.Release(r.Salt, r.tokens[:found], r.pages)
		r.pages, r.shared, r.computed = r.pages[:0], 0, 0
		if !fits {
			s.blocked, s.blockedIn = r, blockedSteps
		}
		return false
	}
	if len(r.tokens) == len(r.Prompt) {
		r.cached = found
	}
	s.counts.PromptTokens += uint64(len(r.tokens))
	s.counts.CachedTokens += uint64(found)
	r.state = running
	r.slot = s.slots[len(s.slots)-1]
	s.slots = s.slots[:len(s.slots)-1]
	s.insertRunning(r)
	s.plan.Admitted = append(s.plan.Admitted, r)
	return true
}

// insertRunning keeps running in the order of arrival; new ones mostly go to the end.
func (s *Scheduler) insertRunning(r *Request) {
	s.running = append(s.running, r)
	for i := len(s.running) - 1; i > 0 && s.running[i-1].arrival > r.arrival; i-- {
		s.running[i-1], s.running[i] = s.running[i], s.running[i-1]
	}
}

// futurePages is the number of pages that r will need beyond those it has: all of its prompt's, and a share of its output's.
func (s *Scheduler) futurePages(r *Request) int {
	output := min(r.MaxNewTokens-r.numOutput(), growthClip) * s.growth / 1000
	pages := (len(r.tokens) + r.pending + output + s.cfg.PageSize - 1) / s.cfg.PageSize
	return max(0, pages-len(r.pages))
}

// measurePrefixes notes how much of each waiting request is cached.
func (s *Scheduler) measurePrefixes() {
	for _, r := range s.waiting[:min(len(s.waiting), policyWindow)] {
		r.matchLen = s.cache.MatchLen(r.Salt, r.tokens[:len(r.tokens)-1])
	}
}

// pick returns the index in waiting of the request to admit next, or -1 if all wait for this step.
func (s *Scheduler) pick() int {
	oldest, best := -1, -1
	for i, r := range s.waiting[:min(len(s.waiting), policyWindow)] {
		if r.deferred == s.counts.Steps+1 {
			continue
		}
		if oldest < 0 {
			oldest, best = i, i
			if s.cfg.Policy == FCFS || r.passed >= maxPassed {
				return i
			}
		}
		if r.matchLen > s.waiting[best].matchLen {
			best = i
		}
	}
	if best != oldest {
		s.waiting[oldest].passed++
	}
	return best
}

// prefixInStep tells that the step being planned computes more of r's prompt than the cache has: in the next step r can share
// it.
func (s *Scheduler) prefixInStep(r *Request, st *step) bool {
	if !s.cfg.PrefixCache || r.PromptLogProbs {
		return false
	}
	longest := 0
	for i := range st.rows {
		if q := st.rows[i].r; st.rows[i].n > 1 && q.Salt == r.Salt {
			longest = max(longest, commonPrefix(r.tokens[:len(r.tokens)-1], q.tokens[:min(q.computed, len(q.tokens))]))
		}
	}
	longest -= longest % s.cfg.PageSize
	return longest > 0 && longest > s.cache.MatchLen(r.Salt, r.tokens[:longest])
}

func commonPrefix(a, b []int32) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}
