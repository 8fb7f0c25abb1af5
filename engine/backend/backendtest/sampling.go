package backendtest

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/stat/distuv"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// draw runs one step of a fresh sequence and returns its row; mask is the row's.
func (h *harness) draw(t *testing.T, q *sequence, mask []uint32) backend.RowResult {
	t.Helper()
	q.position, q.begun = q.cached, false
	r := q.next(len(q.prompt))
	r.Mask = mask
	return h.step(t, r)[0]
}

func (h *harness) step(t *testing.T, rows ...backend.Row) []backend.RowResult {
	t.Helper()
	id, err := h.b.Launch(&backend.Batch{Rows: rows})
	require.NoError(t, err)
	var out backend.Result
	require.NoError(t, h.b.Wait(id, &out))
	return out.Rows
}

// drawAll draws once in every slot from q's prompt, with the seeds from seed on. The rows have the logits that were drawn from.
func (h *harness) drawAll(t *testing.T, q *sequence, s backend.Sampling, temperature float32, seed uint64) []backend.RowResult {
	t.Helper()
	s.Temperature, s.RepetitionPenalty = temperature, 1
	var rows []backend.Row
	for slot := range maxRows {
		s.Seed = seed + uint64(slot)
		rows = append(rows, backend.Row{
			Slot: slot, Tokens: q.prompt, Pages: h.slotPages(slot, len(q.prompt)), Sample: true, Logits: true, Start: &backend.Start{Sampling: s},
		})
	}
	return h.step(t, rows...)
}

// ranked lists tokens by falling logit, the lowest id first on a tie.
func ranked(logits []float32) []int32 {
	ids := make([]int32, len(logits))
	for i := range ids {
		ids[i] = int32(i)
	}
	slices.SortFunc(ids, func(a, b int32) int { return cmp.Or(cmp.Compare(logits[b], logits[a]), cmp.Compare(a, b)) })
	return ids
}

func maskOf(vocabulary int, allowed ...int32) []uint32 {
	mask := make([]uint32, (vocabulary+31)/32)
	for _, t := range allowed {
		mask[t/32] |= 1 << (t % 32)
	}
	return mask
}

// testMask: only allowed tokens are chosen, the likeliest of them when greedy; logits and log probabilities stay plain.
func (h *harness) testMask(t *testing.T) {
	q := h.newSequence(60, 0, 14, 1)
	plain := h.draw(t, q, nil)
	order := ranked(plain.Logits)
	q.start.Sampling.LogProbs = true
	for _, allowed := range [][]int32{{order[5]}, {order[900], order[7], order[30]}, {int32(h.info.VocabSize - 1)}, {0}} {
		r := h.draw(t, q, maskOf(h.info.VocabSize, allowed...))
		best := slices.MinFunc(allowed, func(a, b int32) int { return cmp.Compare(slices.Index(order, a), slices.Index(order, b)) })
		require.Equal(t, best, r.Token)
		require.InDelta(t, logProbs(plain.Logits)[best], r.LogProb, max(h.tolerance, 1e-4))
	}
	q.start.Sampling = backend.Sampling{Temperature: 5, TopP: 1, RepetitionPenalty: 1}
	for seed := range uint64(20) {
		q.start.Sampling.Seed = seed
		require.Contains(t, order[400:402], h.draw(t, q, maskOf(h.info.VocabSize, order[400:402]...)).Token)
	}
}

func (h *harness) testBias(t *testing.T) {
	q := h.newSequence(61, 0, 14, 1)
	order := ranked(h.draw(t, q, nil).Logits)
	q.start.Sampling.Bias = []backend.TokenBias{{Token: order[0], Bias: -100}, {Token: order[1], Bias: float32(math.Inf(-1))}}
	require.Equal(t, order[2], h.draw(t, q, nil).Token)
	q.start.Sampling.Bias = []backend.TokenBias{{Token: order[77], Bias: 60}, {Token: order[78], Bias: 30}, {Token: order[78], Bias: 31.5}}
	r := h.draw(t, q, nil)
	require.Contains(t, order[77:79], r.Token)
	require.Equal(t, order[:3], ranked(r.Logits)[:3], "Logits are those before the bias")
}

// testPenalties holds each token of a greedy run against the penalties worked out on the plain logits.
func (h *harness) testPenalties(t *testing.T) {
	for name, s := range map[string]backend.Sampling{
		"repetition": {RepetitionPenalty: 1.8},
		"presence":   {RepetitionPenalty: 1, PresencePenalty: 1.5},
		"frequency":  {RepetitionPenalty: 1, FrequencyPenalty: 0.9},
		"negative":   {RepetitionPenalty: 0.8, FrequencyPenalty: -0.6},
		"all":        {RepetitionPenalty: 1.2, PresencePenalty: 0.4, FrequencyPenalty: 0.3},
	} {
		t.Run(name, func(t *testing.T) {
			q := h.newSequence(62, 0, 30, 40)
			q.start = backend.Start{Sampling: s, Prompt: q.prompt}
			h.play(t, 16, true, q)
			inOutput := map[int32]int{}
			seen := map[int32]bool{}
			for _, id := range q.prompt {
				seen[id] = true
			}
			for i, row := range q.rows {
				penalised := slices.Clone(row.Logits)
				for id := range seen {
					l := penalised[id]
					if l > 0 {
						l /= s.RepetitionPenalty
					} else {
						l *= s.RepetitionPenalty
					}
					if n := inOutput[id]; n > 0 {
						l -= s.PresencePenalty + float32(n)*s.FrequencyPenalty
					}
					penalised[id] = l
				}
				// Rounding may decide between equals, no more.
				require.InDelta(t, slices.Max(penalised), penalised[row.Token], 1e-4, "token %d", i)
				seen[row.Token] = true
				inOutput[row.Token]++
			}
		})
	}
}

// testSeeds: a draw is a function of seed and position; batch mates and slots do not matter, and seeds do.
func (h *harness) testSeeds(t *testing.T) {
	sampling := func(seed uint64) backend.Sampling {
		return backend.Sampling{Temperature: 1.5, TopP: 1, RepetitionPenalty: 1, Seed: seed}
	}
	q := h.newSequence(63, 0, 9, 20)
	q.start.Sampling = sampling(1<<40 + 3)
	want := h.alone(t, q)
	batch := []*sequence{q}
	q.slot = 3
	for i := range 3 {
		mate := h.newSequence(63, i, 9, 20)
		mate.start.Sampling = sampling(1<<40 + 3)
		if i > 0 {
			mate.start.Sampling = sampling(uint64(i))
		}
		batch = append(batch, mate)
	}
	q.pages = h.newSequence(63, 3, 9, 20).pages
	h.play(t, 5, true, batch...)
	h.same(t, want, q)
	h.same(t, want, batch[1])
	require.NotEqual(t, q.tokens(), batch[2].tokens(), "another seed, the same tokens")
	require.NotEqual(t, batch[2].tokens(), batch[3].tokens(), "another seed, the same tokens")

	q.start.Sampling.Temperature = 1000 // the noise alone decides
	distinct := map[int32]bool{}
	for _, token := range h.alone(t, q).tokens() {
		distinct[token] = true
	}
	require.Greater(t, len(distinct), 14, "20 positions, nearly the same draw")

	seen := map[int32]bool{}
	for low := range uint64(3) { // both halves of the seed count
		for high := range uint64(3) {
			q.start.Sampling = sampling(high<<32 | low)
			q.start.Sampling.Temperature = 50
			seen[h.draw(t, q, nil).Token] = true
		}
	}
	require.Greater(t, len(seen), 6)
}

// truncationRounding is what fp32 may change of a tempered logit's distance from the largest, and in proportion of a probability. Where
// that matters distances are up to 16: three roundings of one (the difference, the quotient, its reciprocal) are 3 * 2^-24 * 16, and an
// exponential to fp32 of it adds 2^-24 * 16 and 2^-22 of its own. A kept mass and the whole have these errors each, in the same direction at worst.
const truncationRounding = 2 * (4*16*0x1p-24 + 0x1p-22)

// dropped says why a sampler may not draw token from logits at the temperature, or nothing. Only what is ahead by more than rounding counts.
func dropped(logits []float32, token int32, s backend.Sampling, temperature float64) string {
	tempered := make([]float32, len(logits))
	for i, l := range logits {
		tempered[i] = float32(float64(l) / temperature)
	}
	probs := logProbs(tempered)
	own, ahead, mass := probs[token], 0, 0.0
	for _, p := range probs {
		if p > own+truncationRounding {
			ahead++
			mass += math.Exp(p)
		}
	}
	switch {
	case s.TopK > 0 && ahead >= s.TopK:
		return fmt.Sprintf("top-k %d: %d tokens are likelier", s.TopK, ahead)
	case s.TopP > 0 && s.TopP < 1 && mass >= float64(s.TopP)*(1+truncationRounding):
		return fmt.Sprintf("top-p %v: likelier tokens have %.9f of the mass", s.TopP, mass)
	case s.MinP > 0 && own < slices.Max(probs)+math.Log(float64(s.MinP))-truncationRounding:
		return fmt.Sprintf("min-p %v: its probability is %.9f of the largest", s.MinP, math.Exp(own-slices.Max(probs)))
	}
	return ""
}

// testTruncation: no token is drawn that top-k, top-p or min-p drops from the very logits of its row. Another batch's would not do: in a flat
// distribution the rounding of a product changes the ranks of several tokens.
func (h *harness) testTruncation(t *testing.T) {
	q := h.newSequence(64, 0, 9, 1)
	const temperature = 2
	for name, c := range map[string]struct {
		s   backend.Sampling
		one bool // a single token is kept
	}{
		"top-k 1":     {backend.Sampling{TopK: 1, TopP: 1}, true},
		"top-k 5":     {backend.Sampling{TopK: 5, TopP: 1}, false},
		"top-p":       {backend.Sampling{TopP: 0.3}, false},
		"tiny top-p":  {backend.Sampling{TopP: 1e-6}, true},
		"min-p":       {backend.Sampling{TopP: 1, MinP: 0.4}, false},
		"min-p 1":     {backend.Sampling{TopP: 1, MinP: 1}, true},
		"top-k first": {backend.Sampling{TopK: 20, TopP: 0.3, MinP: 0.1}, false},
		"top-p first": {backend.Sampling{TopK: 300, TopP: 0.05, MinP: 0.1}, false},
		"min-p first": {backend.Sampling{TopK: 300, TopP: 0.3, MinP: 0.5}, false},
	} {
		seen := map[int32]bool{}
		for seed := uint64(0); seed < 20*maxRows; seed += maxRows {
			for _, r := range h.drawAll(t, q, c.s, temperature, seed) {
				require.Empty(t, dropped(r.Logits, r.Token, c.s, temperature), "%s: token %d", name, r.Token)
				seen[r.Token] = true
			}
		}
		require.Equal(t, c.one, len(seen) == 1, "%s: drew %d tokens", name, len(seen))
	}
}

// testDistribution: draws over many seeds follow the tempered, truncated softmax (chi-square).
func (h *harness) testDistribution(t *testing.T) {
	q := h.newSequence(65, 0, 9, 1)
	const temperature = 0.25
	sampling := backend.Sampling{TopK: 6, TopP: 1}
	plain := h.drawAll(t, q, sampling, temperature, 0)[0] // its logits are those of every draw: the batches are alike
	order := ranked(plain.Logits)[:6]
	var weights [6]float64
	var total float64
	for i, id := range order {
		weights[i] = math.Exp(float64(plain.Logits[id]-plain.Logits[order[0]]) / temperature)
		total += weights[i]
	}
	const draws = 1000
	counts := map[int32]float64{}
	for n := 0; n < draws; n += maxRows {
		for _, r := range h.drawAll(t, q, sampling, temperature, uint64(n)) {
			counts[r.Token]++
		}
	}
	var chi float64
	for i, id := range order {
		expected := draws * weights[i] / total
		chi += (counts[id] - expected) * (counts[id] - expected) / expected
	}
	p := distuv.ChiSquared{K: 5}.Survival(chi)
	require.Greater(t, p, 1e-4, "chi-square %.1f over 6 tokens: %v", chi, counts)
}

// testLogProbs: log probabilities are those of the plain distribution, whatever the sampling.
func (h *harness) testLogProbs(t *testing.T) {
	q := h.newSequence(66, 0, 12, 1)
	for _, s := range []backend.Sampling{
		{LogProbs: true, TopLogProbs: 5},
		{LogProbs: true},
		{LogProbs: true, TopLogProbs: 3, Temperature: 2, TopK: 50, TopP: 1, RepetitionPenalty: 3, Seed: 4, Bias: []backend.TokenBias{{Token: 5, Bias: 10}}},
	} {
		q.start = backend.Start{Sampling: s, Prompt: q.prompt}
		r := h.draw(t, q, nil)
		want := logProbs(r.Logits)
		require.InDelta(t, want[r.Token], r.LogProb, 1e-4)
		require.Len(t, r.Top, s.TopLogProbs)
		for i, id := range ranked(r.Logits)[:s.TopLogProbs] {
			require.Equal(t, id, r.Top[i].Token)
			require.InDelta(t, want[id], r.Top[i].LogProb, 1e-4)
		}
	}
}

// testTargets: the log probability of a target is that of the logits at its place, also in a row that samples nothing.
func (h *harness) testTargets(t *testing.T) {
	q := h.newSequence(67, 0, 60, 1)
	var want []float64
	for i := range q.prompt {
		q.position = i
		r := q.next(1)
		r.Sample, r.Logits = false, true
		want = append(want, logProbs(h.step(t, r)[0].Logits)[q.prompt[(i+1)%60]])
	}
	q.position, q.begun = 0, false
	first := q.next(25)
	first.Targets = q.prompt[1:26]
	got := slices.Clone(h.step(t, first)[0].TargetLogProbs)
	second := q.next(35)
	second.Targets = append(slices.Clone(q.prompt[26:]), q.prompt[0])
	row := h.step(t, second)[0]
	got = append(got, row.TargetLogProbs...)
	require.Equal(t, argmax(row.Logits), row.Token)
	require.Len(t, got, 60)
	for i := range want {
		require.InDelta(t, want[i], got[i], max(h.tolerance, 1e-4), "target %d", i)
	}
}
