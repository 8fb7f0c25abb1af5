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

	var sampled, first []int // rows that need their last logits, and each row's first token in the step
	n := 0
	for i := range s.rows {
		r := &s.rows[i]
		first = append(first, n)
		n += r.NumTokens()
		if r.Targets != nil {
			s.score(&step.results[i], r, first[i])
		}
		if r.Sample || r.Logits {
			sampled = append(sampled, i)
		}
	}
	vocabulary := s.cfg.VocabSize
	for group := range slices.Chunk(sampled, headRows) {
		logits := s.head(len(group), func(i int) int {
			return first[group[i]] + s.rows[group[i]].NumTokens() - 1
		})
		s.pool.run(len(group), func(worker, i int) {
			s.finish(worker, step, group[i], logits[i*vocabulary:(i+1)*vocabulary])
		})
	}
	s.rows = nil
}

// head norms n tokens of the residual stream and returns their logits, [n, vocabulary].
func (s *stepper) head(n int, token func(i int) int) []float32 {
	hidden := s.cfg.HiddenSize
	h := grow(&s.hidden, n*hidden)
	for i := range n {
		t := token(i)
		RMSNorm(h[i*hidden:(i+1)*hidden], s.x[t*hidden:(t+1)*hidden], s.net.norm, s.cfg.RMSNormEps)
	}
	logits := grow(&s.logits, n*s.cfg.VocabSize)
	s.multiply(h, n, product{s.net.head, logits})
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

// finish hands out one row's logits and samples from them.
func (s *stepper) finish(worker int, step *step, row int, logits []float32) {
	r, out := &s.rows[row], &step.results[row]
	if r.Logits {
		out.Logits = slices.Clone(logits)
	}
	q := s.sequences[r.Slot]
	if !isFinite(logits) {
		out.NonFinite = true
		q.lastToken = 0 // a row launched behind this one still needs a token; its result is meaningless too
		out.LogProb = float32(math.NaN())
		return
	}
	if r.Sample {
		q.sample(out, logits, grow(&s.scratch[worker].logits, len(logits)), r.Mask, r.Position+r.NumTokens())
	}
}
