package scheduler

import "github.com/tokamak-engine/tokamak/engine/backend"

// Commit takes the result of the oldest planned step and returns what it means. Requests that have ended meanwhile get
// nothing.
func (s *Scheduler) Commit(res *backend.Result) []Outcome {
	st := &s.steps[s.head]
	s.head = (s.head + 1) % backend.MaxInFlight
	s.inFlight--
	s.outcomes = s.outcomes[:0]
	for i := range st.rows {
		s.commitRow(&st.rows[i], &res.Rows[i])
		st.rows[i].r = nil
	}
	s.audit()
	return s.outcomes
}

func (s *Scheduler) commitRow(p *plannedRow, result *backend.RowResult) {
	r := p.r
	r.inFlight--
	if p.sample {
		r.pending--
	}
	r.computed -= p.drafts - len(result.More)
	s.counts.AcceptedTokens += uint64(len(result.More))
	if r.state == ended {
		if p.sample {
			s.counts.SurplusTokens += uint64(1 + len(result.More))
		}
		if r.inFlight == 0 {
			s.leaving--
			s.release(r)
		}
		return
	}
	o := Outcome{Request: r, Result: result}
	if to := min(p.from+p.n, len(r.Prompt)-1); p.targets && to > r.targets {
		// A request that resumes computes its prompt again: what was delivered before is not again.
		o.PromptLogProbs = result.TargetLogProbs[r.targets-p.from : to-p.from]
		r.targets = to
	}
	switch {
	case p.sample && result.NonFinite:
		o.Finish = NonFinite
	case p.sample:
		o.Sampled, o.Finish = s.take(r, result)
	case p.last:
		o.Finish = Length
	}
	if o.Sampled > 0 || o.Finish != Running || len(o.PromptLogProbs) > 0 {
		s.outcomes = append(s.outcomes, o)
	}
	switch {
	case o.Finish != Running && r.state == running:
		s.end(r)
	case r.state == preempted && (o.Finish != Running || r.inFlight == 0):
		// A preempted request was counted as leaving already, whether it ends or waits again.
		if o.Finish != Running {
			r.state = ended
		}
		if r.inFlight == 0 {
			s.leaving--
			s.release(r)
			if r.state == preempted {
				s.requeue(r)
			}
		}
	}
}

// take appends the tokens that a row gave, up to one that ends the request.
func (s *Scheduler) take(r *Request, result *backend.RowResult) (n int, finish Finish) {
	r.tokens = append(r.tokens, result.Token)
	finish = r.finishAfter(result.Token)
	for n = 1; finish == Running && n <= len(result.More); n++ {
		token := result.More[n-1].Token
		r.tokens = append(r.tokens, token)
		finish = r.finishAfter(token)
	}
	s.counts.OutputTokens += uint64(n)
	s.counts.SurplusTokens += uint64(1 + len(result.More) - n)
	if r.Guesses != nil && s.guesses != nil {
		r.Guesses.Extend(r.tokens, s.guesses)
	}
	if r.head != nil && len(result.Guesses) > 0 {
		r.head.Guessed()
		for _, g := range result.Guesses {
			r.head.Add(g.Token, g.Prob)
		}
	}
	return n, finish
}
