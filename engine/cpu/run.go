package cpu

import (
	"math"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// headRows is how many tokens' logits are held at once: 32 rows of a 128,256-token vocabulary are 16 MB.
const headRows = 32

// run is one step: forward, log probabilities of targets, then sampling.
func (s *stepper) run(step *step) {
	s.rows = step.rows
	for i, q := range step.starts {
		if q != nil {
			s.sequences[step.rows[i].Slot] = q
		}
	}
	s.forward()

	var first []int // each row's first token in the step
	s.places = s.places[:0]
	n := 0
	for i := range s.rows {
		r := &s.rows[i]
		first = append(first, n)
		n += r.NumTokens()
		if r.Targets != nil {
			s.score(&step.results[i], r, first[i])
		}
		if r.Sample || r.Logits {
			for behind := len(r.Drafts); behind >= 0; behind-- {
				s.places = append(s.places, samplePlace{row: i, token: n - 1 - behind, position: r.Position + r.NumTokens() - behind})
			}
		}
	}
	vocabulary := s.cfg.VocabSize
	for group := range slices.Chunk(s.places, headRows) {
		logits := s.head(len(group), func(i int) int { return group[i].token })
		s.pool.run(len(group), func(worker, i int) {
			s.finish(worker, step, &group[i], logits[i*vocabulary:(i+1)*vocabulary])
		})
	}
	for at := 0; at < len(s.places); {
		p := &s.places[at]
		drafts := s.rows[p.row].Drafts
		s.settle(&step.results[p.row], s.rows[p.row].Slot, drafts, s.places[at:at+1+len(drafts)])
		at += 1 + len(drafts)
	}
	s.notes.note("sample", -1, len(step.rows))
	if s.draft != nil {
		s.draft.follow(step, first)
		s.notes.note("draft head", -1, n)
	}
	s.rows = nil
}

// head norms n tokens of the residual stream and returns their logits, [n, tokens of the network's head].
func (s *stepper) head(n int, token func(i int) int) []float32 {
	hidden := s.cfg.HiddenSize
	h := grow(&s.hidden, n*hidden)
	for i := range n {
		t := token(i)
		RMSNorm(h[i*hidden:(i+1)*hidden], s.x[t*hidden:(t+1)*hidden], s.net.norm, s.cfg.RMSNormEps)
	}
	logits := grow(&s.logits, n*s.net.head.n)
	s.multiply(h, n, product{s.net.head, logits})
	s.notes.note("head", -1, n, s.net.head)
	return logits
}

// score fills in the log probabilities of a row's targets; its tokens begin at first.
func (s *stepper) score(out *backend.RowResult, r *backend.Row, first int) {
	vocabulary := s.cfg.VocabSize
	out.TargetLogProbs = make([]float32, len(r.Targets))
	bad := make([]bool, len(r.Targets))
	for begin := 0; begin < len(r.Targets); begin += headRows {
		n := min(headRows, len(r.Targets)-begin)
		logits := s.head(n, func(i int) int { return first + begin + i })
		s.pool.run(n, func(_, i int) {
			l := logits[i*vocabulary : (i+1)*vocabulary]
			t := begin + i
			bad[t] = !isFinite(l)
			out.TargetLogProbs[t] = float32(float64(l[r.Targets[t]]) - LogSumExp(l))
		})
	}
	out.NonFinite = slices.Contains(bad, true)
}

// samplePlace is a token of the step whose logits are wanted, and what was chosen by them.
type samplePlace struct {
	row, token, position int // token of the step; position of the token to choose
	chosen               backend.Sampled
	nonFinite            bool
}

// finish hands out the logits of one place and samples from them.
func (s *stepper) finish(worker int, step *step, p *samplePlace, logits []float32) {
	r := &s.rows[p.row]
	if r.Logits {
		step.results[p.row].Logits = slices.Clone(logits)
	}
	switch {
	case !isFinite(logits):
		p.nonFinite, p.chosen = true, backend.Sampled{LogProb: float32(math.NaN())}
	case r.Sample:
		p.chosen = s.sequences[r.Slot].choose(logits, grow(&s.scratch[worker].logits, len(logits)), r.Mask, p.position)
	}
}

// settle makes a row's result of its places, those of its drafts behind the first, and notes what the sequence must know of it.
func (s *stepper) settle(out *backend.RowResult, slot int, drafts []int32, places []samplePlace) {
	accepted := backend.Accepted(drafts, func(i int) int32 { return places[i].chosen.Token })
	q := s.sequences[slot]
	for i := range places[:accepted+1] {
		p := &places[i]
		if out.NonFinite = out.NonFinite || p.nonFinite; out.NonFinite {
			// A row launched behind this one still needs a token; its result is meaningless too.
			out.LogProb, q.lastToken = p.chosen.LogProb, 0
			return
		}
		if i == 0 {
			out.Token, out.LogProb, out.Top = p.chosen.Token, p.chosen.LogProb, p.chosen.Top
		} else {
			out.More = append(out.More, p.chosen)
		}
		if s.rows[p.row].Sample {
			q.took(p.chosen.Token)
		}
	}
}
