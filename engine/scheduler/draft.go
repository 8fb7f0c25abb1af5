package scheduler

import (
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// Speculation. A request that guesses what it will say next has its guesses verified as drafts of its decode row. Its next guesses depend on
// what was accepted, so a step with drafts is awaited before another is planned; while nobody's guesses pay, steps are planned one
// ahead as ever.

// mustKnow tells that planning a step now, before the one in flight was awaited, would cost drafts: it has some, or some requests would
// have some once their pending tokens are known.
func (s *Scheduler) mustKnow() bool {
	if s.guesses == nil {
		return false
	}
	decoding := 0
	for i := range s.inFlight {
		st := &s.steps[(s.head+i)%backend.MaxInFlight]
		if st.drafts > 0 {
			return true
		}
		if st.asked > 0 { // what the head guesses is known then
			return true
		}
		decoding = max(decoding, len(st.rows))
	}
	tokens, expected := decoding, float64(decoding)
	for _, r := range s.running {
		if r.state == running && r.pending > 0 {
			if n := s.drafts(r, tokens, expected, r.MaxNewTokens-r.numOutput()-1); n > 0 {
				tokens, expected = tokens+n, expected+s.guesses.Gain(r.Guesses, n)
			}
		}
	}
	return s.guesses.Pays(decoding, float64(decoding), tokens, expected)
}

// planDrafts gives drafts to the decode rows planned so far, as many as pay.
func (s *Scheduler) planDrafts(b *backend.Batch, st *step) {
	tokens, expected := s.plan.Tokens, float64(len(st.rows))
	for i := range st.rows {
		p := &st.rows[i]
		if p.r.pending > 1 || b.Rows[i].Mask != nil { // its last token is not known, or what is allowed after it
			continue
		}
		if p.drafts = s.drafts(p.r, tokens, expected, p.r.MaxNewTokens-p.r.numOutput()); p.drafts > 0 {
			tokens, expected = tokens+p.drafts, expected+s.guesses.Gain(p.r.Guesses, p.drafts)
		}
	}
	pays := s.guesses.Pays(s.plan.Tokens, float64(len(st.rows)), tokens, expected)
	for i := range st.rows {
		p, row := &st.rows[i], &b.Rows[i]
		r, n := p.r, 0
		if pays {
			n = s.coverDrafts(r, p.drafts)
		}
		if p.drafts = n; n == 0 {
			continue
		}
		r.drafts = r.Guesses.Propose(r.tokens, n, r.drafts[:0])
		row.Drafts, row.Pages = r.drafts, r.pages
		p.n += n
		r.computed += n
		st.drafts += n
		s.plan.Tokens += n
		s.plan.Drafts += n
		s.counts.DraftRows++
		s.counts.DraftTokens += uint64(n)
	}
}

// drafts is how many drafts of r are worth their price in a step of tokens, from which expected are to come; at most most.
func (s *Scheduler) drafts(r *Request, tokens int, expected float64, most int) int {
	if r.Guesses == nil {
		return 0
	}
	return s.guesses.Drafts(r.Guesses, tokens, expected, min(most, s.cfg.MaxVerify-tokens, s.cfg.MaxTokens-tokens))
}

// coverDrafts gives r pages for n tokens beyond its row, as far as there are any without taking them from somebody, and returns for how
// many.
func (s *Scheduler) coverDrafts(r *Request, n int) int {
	for len(r.pages)*s.cfg.PageSize < r.computed+n {
		page, ok := s.cache.Alloc()
		if !ok {
			break
		}
		r.pages = append(r.pages, page)
	}
	return min(n, len(r.pages)*s.cfg.PageSize-r.computed)
}

// draftsFrom is the fewest tokens of a request that can be guessed: the first is sampled behind its prompt, and the last needs no drafts.
const draftsFrom = 3

// planGuesses has the draft head read the rows of requests that use it, and guess behind those that sample where that pays. Guesses are
// drafts of the next step; the head writes to their pages already.
func (s *Scheduler) planGuesses(b *backend.Batch, st *step) {
	for i := range st.rows {
		r, row := st.rows[i].r, &b.Rows[i]
		if r.head == nil || r.MaxNewTokens < draftsFrom {
			continue
		}
		if row.Follow = s.guesses.Follow(r.head); !row.Follow || !row.Sample {
			continue
		}
		if ask := s.guesses.Ask(r.head, s.plan.Sampled, float64(s.plan.Sampled), r.MaxNewTokens-r.numOutput()-1); ask > 0 {
			row.Guess = 1 + s.coverDrafts(r, min(ask-1, s.cfg.MaxContext-r.computed))
			row.Pages = r.pages
			st.asked++
		}
	}
}

// Took says how long the oldest planned step, of decode rows alone and tokens in all, kept others waiting, and how much of that was the
// draft head's: what drafts cost is measured, not assumed.
func (s *Scheduler) Took(tokens int, d, head time.Duration) {
	if s.guesses == nil {
		return
	}
	s.guesses.Took(tokens, d-head)
	if asked := s.steps[s.head].asked; asked > 0 {
		s.guesses.HeadTook(asked, head)
	}
}
