package backendtest

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// sequence is one request to a backend and what came of it.
type sequence struct {
	slot     int
	start    backend.Start
	prompt   []int32 // all of it, the cached part too
	cached   int     // tokens of prompt that pages hold already
	pages    []int32
	generate int // tokens
	join     int // step at which it starts

	rows []backend.RowResult // one for each token sampled

	position, launched int
	begun              bool
}

// next returns the sequence's row in the next step; chunk is the most tokens to prefill.
func (q *sequence) next(chunk int) backend.Row {
	r := backend.Row{Slot: q.slot, Position: q.position, Pages: q.pages, Logits: true}
	if !q.begun {
		q.begun = true
		start := q.start
		r.Start = &start
	}
	if rest := q.prompt[min(q.position, len(q.prompt)):]; len(rest) > 0 {
		r.Tokens = rest[:min(chunk, len(rest))]
	}
	q.position += r.NumTokens()
	r.Sample = q.position >= len(q.prompt)
	r.Logits = r.Sample
	return r
}

func (q *sequence) tokens() []int32 {
	var ids []int32
	for _, r := range q.rows {
		ids = append(ids, r.Token)
	}
	return ids
}

// play runs the sequences together: in each step every one that has joined and is not done has a row, its prompt cut into
// chunks. With ahead, a step is launched before the one in front of it is awaited.
func (h *harness) play(t *testing.T, chunk int, ahead bool, sequences ...*sequence) {
	t.Helper()
	for _, q := range sequences {
		q.rows, q.position, q.launched, q.begun = nil, q.cached, 0, false
	}
	type flying struct {
		id   backend.StepID
		rows []*sequence // nil where the row does not sample
	}
	var inFlight []flying
	var result backend.Result
	wait := func() {
		f := inFlight[0]
		inFlight = inFlight[1:]
		require.NoError(t, h.b.Wait(f.id, &result))
		require.Len(t, result.Rows, len(f.rows))
		for i, q := range f.rows {
			if q != nil {
				r := result.Rows[i]
				require.False(t, r.NonFinite)
				require.Len(t, r.Logits, h.info.VocabSize)
				r.Logits, r.Top, r.TargetLogProbs = slices.Clone(r.Logits), slices.Clone(r.Top), slices.Clone(r.TargetLogProbs)
				q.rows = append(q.rows, r)
			}
		}
	}
	for step := 0; ; step++ {
		var batch backend.Batch
		var f flying
		waiting := false
		for _, q := range sequences {
			if q.launched == q.generate {
				continue
			}
			if waiting = true; q.join > step {
				continue
			}
			r := q.next(chunk)
			batch.Rows = append(batch.Rows, r)
			if r.Sample {
				q.launched++
				f.rows = append(f.rows, q)
			} else {
				f.rows = append(f.rows, nil)
			}
		}
		if !waiting {
			break
		}
		if len(batch.Rows) == 0 {
			continue
		}
		id, err := h.b.Launch(&batch)
		require.NoError(t, err)
		f.id = id
		inFlight = append(inFlight, f)
		if !ahead || len(inFlight) == backend.MaxInFlight {
			wait()
		}
	}
	for len(inFlight) > 0 {
		wait()
	}
}

// newSequence returns a greedy sequence with a random prompt of n tokens and pages of its own for the output too.
func (h *harness) newSequence(seed uint64, slot, n, generate int) *sequence {
	r := rand.New(rand.NewPCG(seed, 7))
	q := &sequence{slot: slot, generate: generate, prompt: make([]int32, n)}
	for i := range q.prompt {
		q.prompt[i] = r.Int32N(int32(h.info.VocabSize))
	}
	q.pages = h.slotPages(slot, n+generate)
	return q
}

// slotPages is a table for so many tokens that shares no page with another slot's.
func (h *harness) slotPages(slot, tokens int) []int32 {
	pages := make([]int32, h.numPages(tokens))
	for i := range pages {
		pages[i] = int32(slot*h.info.NumPages/h.info.MaxRows + i)
	}
	return pages
}

func (h *harness) numPages(tokens int) int { return (tokens + h.info.PageSize - 1) / h.info.PageSize }

// alone plays a copy of q by itself with its prompt in one chunk, and returns it.
func (h *harness) alone(t *testing.T, q *sequence) *sequence {
	t.Helper()
	c := *q
	c.join = 0
	h.play(t, h.info.MaxTokens, false, &c)
	return &c
}

// same demands that got went as want did, within the tolerance.
func (h *harness) same(t *testing.T, want, got *sequence) {
	t.Helper()
	require.Equal(t, len(want.rows), len(got.rows))
	for i := range want.rows {
		w, g := &want.rows[i], &got.rows[i]
		if h.tolerance == 0 {
			require.Equal(t, w.Token, g.Token, "token %d", i)
			require.Equal(t, w.Logits, g.Logits, "logits of token %d", i)
			continue
		}
		wp, gp := logProbs(w.Logits), logProbs(g.Logits)
		for token := range wp {
			require.InDelta(t, wp[token], gp[token], h.tolerance, "token %d: log probability of %d", i, token)
		}
		if w.Token != g.Token && want.start.Sampling.Temperature > 0 {
			// Noise decides, which is not known here: a tie cannot be told from another draw. But another draw would rarely begin alike.
			require.Positive(t, i, "the first token is %d, want %d", g.Token, w.Token)
			return
		}
		if w.Token != g.Token {
			require.InDelta(t, wp[w.Token], wp[g.Token], 2*h.tolerance, "token %d is %d, want %d", i, g.Token, w.Token)
			return
		}
	}
}

func logProbs(logits []float32) []float64 {
	largest := float64(slices.Max(logits))
	var sum float64
	for _, l := range logits {
		sum += math.Exp(float64(l) - largest)
	}
	out := make([]float64, len(logits))
	for i, l := range logits {
		out[i] = float64(l) - largest - math.Log(sum)
	}
	return out
}

func argmax(logits []float32) int32 {
	best := 0
	for i, l := range logits {
		if l > logits[best] {
			best = i
		}
	}
	return int32(best)
}
