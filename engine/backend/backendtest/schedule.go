package backendtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// testDecodeEqualsPrefill: the logits after n decode steps are those of prefilling the same tokens at once.
func (h *harness) testDecodeEqualsPrefill(t *testing.T) {
	q := h.newSequence(1, 2, 19, 40)
	h.play(t, h.info.MaxTokens, false, q)
	require.Greater(t, len(slices.Compact(slices.Sorted(slices.Values(q.tokens())))), 1, "every token is the same: the model is too flat to test with")
	for _, row := range q.rows {
		require.Equal(t, argmax(row.Logits), row.Token, "greedy")
	}
	whole := *q
	whole.prompt = append(slices.Clone(q.prompt), q.tokens()[:39]...)
	whole.generate = 1
	h.play(t, h.info.MaxTokens, false, &whole)
	h.same(t, &sequence{rows: q.rows[39:]}, &whole)
}

// testChunks: cutting a prompt anywhere changes nothing.
func (h *harness) testChunks(t *testing.T) {
	q := h.newSequence(2, 0, 90, 6)
	whole := h.alone(t, q)
	for _, chunk := range []int{1, 3, 7, 16, 17, 64, 89} {
		h.play(t, chunk, false, q)
		h.same(t, whole, q)
	}
}

// testBatches: batch mates change nothing, whatever their length and phase.
func (h *harness) testBatches(t *testing.T) {
	var together []*sequence
	for i, n := range []int{1, 5, 40, 16, 31, 2, 17, 64} {
		q := h.newSequence(uint64(10+i), i, n, 12)
		q.join = []int{0, 0, 2, 1, 0, 9, 4, 5}[i]
		together = append(together, q)
	}
	var alone []*sequence
	for _, q := range together {
		alone = append(alone, h.alone(t, q))
	}
	for _, chunk := range []int{9, 4} {
		h.play(t, chunk, true, together...)
		for i := range together {
			h.same(t, alone[i], together[i])
		}
	}
	// A row's place in the batch and its slot do not matter either.
	slices.Reverse(together)
	for i, q := range together {
		q.slot = i
	}
	h.play(t, 9, true, together...)
	for i := range together {
		h.same(t, alone[len(alone)-1-i], together[i])
	}
}

// testPages: which pages hold a sequence, and what they held before, changes nothing.
func (h *harness) testPages(t *testing.T) {
	q := h.newSequence(3, 1, 50, 10)
	want := h.alone(t, q)
	r := rand.New(rand.NewPCG(4, 4))
	for range 3 {
		for i, p := range r.Perm(h.info.NumPages)[:len(q.pages)] {
			q.pages[i] = int32(p)
		}
		h.play(t, 23, false, q)
		h.same(t, want, q)
	}
}

// testSharedPages: two sequences whose tables share the pages of a common prefix go as they would alone.
func (h *harness) testSharedPages(t *testing.T) {
	prefix := 2 * h.info.PageSize
	if prefix+20 > h.info.MaxTokens {
		prefix = h.info.PageSize
	}
	a := h.newSequence(5, 0, prefix+9, 10)
	b := h.newSequence(6, 1, prefix+3, 10)
	copy(b.prompt, a.prompt[:prefix])
	wantA, wantB := h.alone(t, a), h.alone(t, b)

	copy(b.pages, a.pages[:prefix/h.info.PageSize])
	b.cached = prefix
	b.join = 1 // a's first step writes the prefix
	h.play(t, h.info.MaxTokens-maxRows, true, a, b)
	h.same(t, wantA, a)
	h.same(t, wantB, b)
}

// testLaunchAhead: a decode step launched before the one in front of it was awaited reads that one's token.
func (h *harness) testLaunchAhead(t *testing.T) {
	q := h.newSequence(7, 3, 21, 24)
	want := h.alone(t, q)
	h.play(t, 8, true, q)
	h.same(t, want, q)
}

// testInFlight: steps have ascending ids, are awaited in order, and no more than two fly.
func (h *harness) testInFlight(t *testing.T) {
	q := h.newSequence(8, 0, 4, 8)
	launch := func() backend.StepID {
		id, err := h.b.Launch(&backend.Batch{Rows: []backend.Row{q.next(4)}})
		require.NoError(t, err)
		return id
	}
	var out backend.Result
	first, second := launch(), launch()
	require.Equal(t, first+1, second)
	_, err := h.b.Launch(&backend.Batch{Rows: []backend.Row{{Slot: 0, Position: q.position, Pages: q.pages, Sample: true}}})
	require.ErrorIs(t, err, backend.ErrTooManySteps)
	require.Error(t, h.b.Wait(second, &out), "awaited out of order")
	require.Error(t, h.b.Wait(second+1, &out), "awaited before it was launched")
	require.NoError(t, h.b.Wait(first, &out))
	require.Error(t, h.b.Wait(first, &out), "awaited twice")
	third := launch()
	require.Equal(t, second+1, third)
	require.NoError(t, h.b.Wait(second, &out))
	require.NoError(t, h.b.Wait(third, &out))
	require.Error(t, h.b.Wait(third+1, &out), "awaited with none in flight")
}

// testBatchIsCopied: the caller may reuse everything in a batch once Launch has returned, also while a step in front of it runs.
func (h *harness) testBatchIsCopied(t *testing.T) {
	q := h.newSequence(9, 0, 31, 1)
	want := h.alone(t, q)
	want.rows[0].Token = 17 // the bias sees to that, in spite of the penalty
	row := q.next(40)
	row.Targets = slices.Clone(row.Tokens)
	scored := h.step(t, row)[0].TargetLogProbs
	row.Tokens, row.Pages = slices.Clone(row.Tokens), slices.Clone(row.Pages)
	row.Start = &backend.Start{Prompt: slices.Clone(q.prompt), Output: []int32{17}, Sampling: backend.Sampling{
		RepetitionPenalty: 1, FrequencyPenalty: 1, Bias: []backend.TokenBias{{Token: 17, Bias: 1000}},
	}}
	row.Mask = slices.Repeat([]uint32{^uint32(0)}, (h.info.VocabSize+31)/32)
	batch := backend.Batch{Rows: []backend.Row{row}}

	front, err := h.b.Launch(&backend.Batch{Rows: []backend.Row{h.newSequence(8, 1, h.info.MaxTokens, 1).next(h.info.MaxTokens)}})
	require.NoError(t, err)
	id, err := h.b.Launch(&batch)
	require.NoError(t, err)
	clear(row.Tokens)
	clear(row.Targets)
	clear(row.Mask)
	for i := range row.Pages {
		row.Pages[i] = int32(h.info.NumPages - 1) // all the same: what is written there is soon overwritten
	}
	row.Start.Sampling.Bias[0].Token = 3
	clear(row.Start.Prompt)
	*row.Start = backend.Start{}
	batch.Rows[0] = backend.Row{}

	var out backend.Result
	require.NoError(t, h.b.Wait(front, &out))
	require.NoError(t, h.b.Wait(id, &out))
	require.Len(t, out.Rows[0].TargetLogProbs, 31)
	for i, p := range scored {
		require.InDelta(t, p, out.Rows[0].TargetLogProbs[i], h.tolerance, "target %d", i)
	}
	require.Equal(t, int32(17), out.Rows[0].Token)
	h.same(t, want, &sequence{rows: out.Rows})
}

// testResultIsReused: a Result may be filled again with a step of another shape, and keeps nothing of the one before.
func (h *harness) testResultIsReused(t *testing.T) {
	var out backend.Result
	step := func(rows ...backend.Row) {
		id, err := h.b.Launch(&backend.Batch{Rows: rows})
		require.NoError(t, err)
		require.NoError(t, h.b.Wait(id, &out))
		require.Len(t, out.Rows, len(rows))
	}
	row := func(slot int) backend.Row { return h.newSequence(1, slot, 3, 1).next(3) }
	rich := row(0)
	rich.Start.Sampling.TopLogProbs, rich.Targets = 4, rich.Tokens
	step(rich, row(1))
	require.Len(t, out.Rows[0].Top, 4)
	require.Len(t, out.Rows[0].TargetLogProbs, 3)
	require.Empty(t, out.Rows[1].Top)
	plain := row(2)
	plain.Logits = false
	step(plain)
	require.Empty(t, out.Rows[0].Top)
	require.Empty(t, out.Rows[0].TargetLogProbs)
	require.Empty(t, out.Rows[0].Logits)
	step(row(0), row(1), row(2), row(3))
}

// testSlotReuse: Start gives a slot to another sequence and nothing of the one before stays.
func (h *harness) testSlotReuse(t *testing.T) {
	q := h.newSequence(20, 4, 12, 8)
	want := h.alone(t, q)
	other := h.newSequence(21, 4, 30, 8)
	other.start = backend.Start{Prompt: other.prompt, Sampling: backend.Sampling{
		Temperature: 3, Seed: 5, RepetitionPenalty: 2, FrequencyPenalty: 1, TopLogProbs: 3, Bias: []backend.TokenBias{{Token: want.rows[0].Token, Bias: -100}},
	}}
	h.play(t, 7, true, other)
	h.play(t, 7, true, q)
	h.same(t, want, q)
	require.Empty(t, q.rows[0].Top)
}

// testResume: a sequence that lost its slot and pages goes on as if it had not, sampler state included.
func (h *harness) testResume(t *testing.T) {
	for name, s := range map[string]backend.Sampling{
		"greedy":    {},
		"seeded":    {Temperature: 1, Seed: 11, TopP: 1, RepetitionPenalty: 1},
		"penalties": {Temperature: 0.7, Seed: 12, TopP: 1, RepetitionPenalty: 1.3, FrequencyPenalty: 0.5, PresencePenalty: 0.2},
	} {
		t.Run(name, func(t *testing.T) {
			q := h.newSequence(22, 5, 20, 16)
			q.start = backend.Start{Sampling: s, Prompt: q.prompt}
			want := h.alone(t, q)
			rest := h.newSequence(22, 6, 20+7, 9)
			rest.prompt = append(slices.Clone(q.prompt), want.tokens()[:7]...)
			rest.start = backend.Start{Sampling: s, Prompt: q.prompt, Output: want.tokens()[:7]}
			h.play(t, 10, true, rest)
			h.same(t, &sequence{rows: want.rows[7:]}, rest)
		})
	}
}

// testMalformed: a batch that cannot be run is refused with a reason, runs nothing and leaves the backend usable.
func (h *harness) testMalformed(t *testing.T) {
	q := h.newSequence(30, 0, 10, 20)
	want := h.alone(t, q)
	var live backend.Result
	c := *q
	c.rows, c.position, c.launched, c.begun = nil, 0, 0, false
	step := func() {
		id, err := h.b.Launch(&backend.Batch{Rows: []backend.Row{c.next(10)}})
		require.NoError(t, err)
		require.NoError(t, h.b.Wait(id, &live))
		r := live.Rows[0]
		r.Logits = slices.Clone(r.Logits)
		c.rows = append(c.rows, r)
	}
	step()
	vocabulary := int32(h.info.VocabSize)
	good := func() backend.Row { return h.newSequence(31, 1, 10, 5).next(10) }
	rows := func(change func(r *backend.Row)) []backend.Row {
		r := good()
		change(&r)
		return []backend.Row{r}
	}
	for name, batch := range map[string][]backend.Row{
		"no rows":               nil,
		"slot below 0":          rows(func(r *backend.Row) { r.Slot = -1 }),
		"slot too high":         rows(func(r *backend.Row) { r.Slot = h.info.MaxRows }),
		"slot twice":            {good(), good()},
		"slot without sequence": rows(func(r *backend.Row) { r.Slot, r.Start = 7, nil }),
		"nothing to decode":     rows(func(r *backend.Row) { r.Tokens = nil }),
		"too many tokens": rows(func(r *backend.Row) {
			*r = h.newSequence(31, 1, h.info.MaxTokens+1, 1).next(h.info.MaxTokens + 1)
		}),
		"too many tokens together": {
			h.newSequence(31, 1, h.info.MaxTokens/2+1, 1).next(h.info.MaxTokens),
			h.newSequence(31, 2, h.info.MaxTokens/2, 1).next(h.info.MaxTokens),
		},
		"token too high":   rows(func(r *backend.Row) { r.Tokens = []int32{1, vocabulary} }),
		"token below 0":    rows(func(r *backend.Row) { r.Tokens = []int32{-1} }),
		"position below 0": rows(func(r *backend.Row) { r.Position = -1 }),
		"beyond the context": rows(func(r *backend.Row) {
			r.Position, r.Pages = h.info.MaxContext-9, make([]int32, h.numPages(h.info.MaxContext))
		}),
		"page table too short":  rows(func(r *backend.Row) { r.Pages = nil }),
		"page table just short": rows(func(r *backend.Row) { r.Position, r.Pages = h.info.PageSize-9, r.Pages[:1] }),
		"page too high":         rows(func(r *backend.Row) { r.Pages[0] = int32(h.info.NumPages) }),
		"page below 0":          rows(func(r *backend.Row) { r.Pages[0] = -1 }),
		"mask too short":        rows(func(r *backend.Row) { r.Mask = make([]uint32, 1) }),
		"mask allows none":      rows(func(r *backend.Row) { r.Mask = make([]uint32, (h.info.VocabSize+31)/32) }),
		"targets too few":       rows(func(r *backend.Row) { r.Targets = []int32{1} }),
		"target too high":       rows(func(r *backend.Row) { r.Targets = slices.Repeat([]int32{vocabulary}, len(r.Tokens)) }),
		"bias token too high":   rows(func(r *backend.Row) { r.Start.Sampling.Bias = []backend.TokenBias{{Token: vocabulary}} }),
		"second row is bad":     append(rows(func(*backend.Row) {}), backend.Row{Slot: 99}),
	} {
		_, err := h.b.Launch(&backend.Batch{Rows: batch})
		require.Error(t, err, name)
		require.NotErrorIs(t, err, backend.ErrTooManySteps, name)
		require.NotContains(t, err.Error(), "\n", name)
	}
	// The slot of a refused Start was not taken either.
	_, err := h.b.Launch(&backend.Batch{Rows: []backend.Row{{Slot: 0, Position: 3, Pages: c.pages, Start: &backend.Start{}}}})
	require.Error(t, err, "decode row with Start")
	// A sequence that has sampled nothing yet has nothing to decode from, whatever its slot's last one had.
	other := h.newSequence(32, 3, 4, 2)
	h.alone(t, other)
	chunk := other.next(4)
	chunk.Sample, chunk.Logits = false, false
	h.step(t, chunk)
	_, err = h.b.Launch(&backend.Batch{Rows: []backend.Row{{Slot: 3, Position: 4, Pages: other.pages, Sample: true}}})
	require.Error(t, err, "decode row before a token was sampled")
	for range 19 {
		step()
	}
	h.same(t, want, &c)
}

// testNonFinite: a row whose logits hold a NaN or an infinity says so; its batch mates and later sequences are not touched.
func (s *Suite) testNonFinite(t *testing.T) {
	cfg := *Models()["qwen2"] // with a head of its own
	w, bad := newPoisoned(t, &cfg)
	h := s.open(t, &cfg, w, 0)
	q := h.newSequence(40, 0, 12, 6)
	for i := range q.prompt {
		q.prompt[i] = (q.prompt[i] + 1) % bad
	}
	want := h.alone(t, q)
	sick := h.newSequence(41, 1, 5, 1)
	sick.prompt[2] = bad
	rows := []backend.Row{sick.next(5), {}}
	q.rows = nil
	var out backend.Result
	for range q.generate {
		rows[1] = q.next(12)
		id, err := h.b.Launch(&backend.Batch{Rows: rows})
		require.NoError(t, err)
		require.NoError(t, h.b.Wait(id, &out))
		require.True(t, out.Rows[0].NonFinite, fmt.Sprintf("%+v", out.Rows[0]))
		require.False(t, out.Rows[1].NonFinite)
		r := out.Rows[1]
		r.Logits = slices.Clone(r.Logits)
		q.rows = append(q.rows, r)
		rows[0] = backend.Row{Slot: 1, Position: sick.position, Pages: sick.pages, Sample: true}
	}
	h.same(t, want, q)
	q.slot, q.pages = 1, sick.pages // the poisoned slot and pages serve another
	q.pages = append(q.pages, int32(numPages-1))
	h.play(t, 12, false, q)
	h.same(t, want, q)
}

// testClose: Close waits for what flies, may be called twice, and every other call then says that the backend is closed.
func (s *Suite) testClose(t *testing.T) {
	cfg := Models()["llama"]
	h := s.open(t, cfg, weights.NewDummy(cfg), 0)
	q := h.newSequence(50, 0, 8, 3)
	id, err := h.b.Launch(&backend.Batch{Rows: []backend.Row{q.next(8)}})
	require.NoError(t, err)
	_, err = h.b.Launch(&backend.Batch{Rows: []backend.Row{q.next(8)}})
	require.NoError(t, err)
	require.NoError(t, h.b.Close())
	require.NoError(t, h.b.Close())
	_, err = h.b.Launch(&backend.Batch{Rows: []backend.Row{q.next(8)}})
	require.ErrorIs(t, err, backend.ErrClosed)
	require.ErrorIs(t, h.b.Wait(id, &backend.Result{}), backend.ErrClosed)
	require.Equal(t, cfg.VocabSize, h.b.Info().VocabSize)
}
