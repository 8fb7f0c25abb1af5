package backendtest

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// verifyTokens is what a step of these tests may verify: two rows of the most drafts, and some.
const verifyTokens = 2*backend.MaxRowDrafts + 8

// testDrafts holds rows with drafts against decode rows: right, wrong and half right guesses of every length never change a token or
// its log probability.
func (s *Suite) testDrafts(t *testing.T, cfg *model.Config, pageSize int) {
	d := *s
	d.Options.MaxVerify = verifyTokens
	h := d.open(t, cfg, weights.NewDummy(cfg), pageSize)
	require.Equal(t, verifyTokens, h.info.MaxVerify)
	t.Run("guesses", h.testGuesses)
	t.Run("batch mates", h.testDraftsAmongOthers)
	t.Run("malformed", h.testMalformedDrafts)
}

// draftSamplings are the ways to choose that drafts must not change.
func draftSamplings() map[string]backend.Sampling {
	return map[string]backend.Sampling{
		"greedy":   {LogProbs: true, TopLogProbs: 3},
		"plain":    {},
		"seeded":   {Temperature: 0.9, Seed: 5, TopP: 1, RepetitionPenalty: 1, LogProbs: true, TopLogProbs: 3},
		"cut":      {Temperature: 1.2, Seed: 6, TopP: 0.9, TopK: 40, MinP: 0.01, LogProbs: true},
		"seeded 2": {Temperature: 0.7, Seed: 7},
		"biased":   {Bias: []backend.TokenBias{{Token: 7, Bias: 2}, {Token: 11, Bias: -3}}, LogProbs: true},
	}
}

// speculator plays a sequence with drafts made from what it is known to say.
type speculator struct {
	*sequence
	want []backend.RowResult // of the same sequence decoded token by token
	rng  *rand.Rand
	got  []backend.Sampled
	runs [][2]int // drafted, accepted
	lost bool     // its tokens have left want's
}

// draft guesses up to n tokens, and makes one of them wrong now and then.
func (q *speculator) draft(n, vocabulary int) []int32 {
	var drafts []int32
	for _, r := range q.want[min(len(q.got), len(q.want)):] {
		if len(drafts) == n {
			break
		}
		drafts = append(drafts, r.Token)
	}
	if len(drafts) > 0 && q.rng.IntN(2) == 0 {
		at := q.rng.IntN(len(drafts))
		drafts[at] = (drafts[at] + 1 + q.rng.Int32N(int32(vocabulary)-1)) % int32(vocabulary)
	}
	return drafts
}

// row is the sequence's next row: its prompt, or a decode row with up to n drafts.
func (q *speculator) row(n, vocabulary int) backend.Row {
	if len(q.got) == 0 {
		r := q.next(len(q.prompt))
		r.Logits = false
		return r
	}
	q.position = len(q.prompt) + len(q.got) - 1
	r := backend.Row{Slot: q.slot, Position: q.position, Pages: q.pages, Sample: true}
	r.Drafts = q.draft(min(n, q.generate-len(q.got)-1), vocabulary)
	return r
}

// took checks a row's result and takes its tokens.
func (q *speculator) took(t *testing.T, h *harness, drafts []int32, r *backend.RowResult) {
	t.Helper()
	require.False(t, r.NonFinite)
	run := append([]backend.Sampled{{Token: r.Token, LogProb: r.LogProb, Top: r.Top}}, r.More...)
	require.LessOrEqual(t, len(run), 1+len(drafts))
	for i := range run[1:] {
		require.Equal(t, drafts[i], run[i].Token, "draft %d was accepted", i)
	}
	if n := len(run); n <= len(drafts) {
		require.NotEqual(t, drafts[n-1], run[n-1].Token, "draft %d was right and not accepted", n-1)
	}
	q.runs = append(q.runs, [2]int{len(drafts), len(run) - 1})
	for i := range run {
		got := run[i]
		got.Top = slices.Clone(got.Top)
		if at := len(q.got); !q.lost {
			want := &q.want[at]
			if want.Token != got.Token {
				require.NotZero(t, h.tolerance, "token %d is %d, want %d; drafts %v, run %v", at, got.Token, want.Token, drafts, run)
				q.lost = true // two tokens were as good: another text from here
			} else {
				require.InDelta(t, want.LogProb, got.LogProb, h.tolerance, "log probability of token %d", at)
				require.Len(t, got.Top, len(want.Top))
				for k := range want.Top {
					require.InDelta(t, want.Top[k].LogProb, got.Top[k].LogProb, h.tolerance, "token %d, likeliest %d", at, k)
				}
			}
		}
		q.got = append(q.got, got)
	}
}

// pagesFrom is a table for so many tokens that begins at page *first, which it moves.
func (h *harness) pagesFrom(first *int, tokens int) []int32 {
	pages := make([]int32, h.numPages(tokens))
	for i := range pages {
		pages[i] = int32((*first + i) % h.info.NumPages)
	}
	*first += len(pages)
	return pages
}

func (h *harness) newSpeculator(t *testing.T, seed uint64, slot, firstPage, n, generate int, s backend.Sampling) *speculator {
	q := h.newSequence(seed, slot, n, generate)
	q.pages = h.pagesFrom(&firstPage, n+generate)
	q.start = backend.Start{Sampling: s, Prompt: q.prompt}
	return &speculator{sequence: q, want: h.alone(t, q).rows, rng: rand.New(rand.NewPCG(seed, 11))}
}

// testGuesses plays one sequence at a time.
func (h *harness) testGuesses(t *testing.T) {
	lost, played := 0, 0
	for name, sampling := range draftSamplings() {
		for _, most := range []int{1, 2, 3, 7, backend.MaxRowDrafts} {
			t.Run(fmt.Sprintf("%s/drafts=%d", name, most), func(t *testing.T) {
				q := h.newSpeculator(t, uint64(70+most), most%maxRows, most, 30+most, 60, sampling)
				for len(q.got) < q.generate {
					r := q.row(most, h.info.VocabSize)
					q.took(t, h, r.Drafts, &h.step(t, r)[0])
				}
				accepted := 0
				for _, r := range q.runs {
					accepted += r[1]
				}
				require.Positive(t, accepted, "%v", q.runs)
				played++
				if q.lost {
					lost++
				}
			})
		}
	}
	require.LessOrEqual(t, lost, played/4, "sequences whose text changed: more than near-ties explain")
}

// testDraftsAmongOthers: rows with drafts beside rows without, prompts, and steps launched ahead when nobody drafts.
func (h *harness) testDraftsAmongOthers(t *testing.T) {
	var all []*speculator
	firstPage := 0
	for i, name := range []string{"greedy", "seeded", "plain", "cut"} {
		q := h.newSpeculator(t, uint64(90+i), i, firstPage, 9+7*i, 40, draftSamplings()[name])
		firstPage += len(q.pages)
		all = append(all, q)
	}
	mate := h.newSequence(95, 5, 60, 8)
	mate.pages = h.pagesFrom(&firstPage, 68)
	wantMate := h.alone(t, mate)
	mate.rows, mate.position, mate.begun = nil, 0, false
	var out backend.Result
	for step := 0; ; step++ {
		var batch backend.Batch
		var rows []*speculator
		for i, q := range all {
			if len(q.got) < q.generate && step >= 2*i {
				batch.Rows = append(batch.Rows, q.row([]int{0, 3, 9, 1}[(step+i)%4], h.info.VocabSize))
				rows = append(rows, q)
			}
		}
		if len(mate.rows) < mate.generate && step > 4 {
			r := mate.next(20)
			batch.Rows = append(batch.Rows, r)
		}
		if len(batch.Rows) == 0 && step > 6 {
			break
		}
		if len(batch.Rows) == 0 {
			continue
		}
		id, err := h.b.Launch(&batch)
		require.NoError(t, err)
		require.NoError(t, h.b.Wait(id, &out))
		for i, q := range rows {
			q.took(t, h, batch.Rows[i].Drafts, &out.Rows[i])
		}
		if n := len(rows); n < len(batch.Rows) && batch.Rows[n].Sample {
			r := out.Rows[n]
			r.Logits = slices.Clone(r.Logits)
			mate.rows = append(mate.rows, r)
		}
	}
	h.same(t, wantMate, mate)

	// Behind a row with drafts, decode rows are launched ahead again: the slot holds the last token of the run.
	q := h.newSpeculator(t, 97, 6, firstPage, 12, 24, backend.Sampling{LogProbs: true})
	for len(q.got) < 12 {
		r := q.row(5, h.info.VocabSize)
		q.took(t, h, r.Drafts, &h.step(t, r)[0])
	}
	var ids []backend.StepID
	for position := len(q.prompt) + len(q.got) - 1; len(q.got) < q.generate; position++ {
		if position < len(q.prompt)+q.generate-1 {
			id, err := h.b.Launch(&backend.Batch{Rows: []backend.Row{{Slot: q.slot, Position: position, Pages: q.pages, Sample: true}}})
			require.NoError(t, err)
			ids = append(ids, id)
		}
		if len(ids) == backend.MaxInFlight || position >= len(q.prompt)+q.generate-1 {
			require.NoError(t, h.b.Wait(ids[0], &out))
			ids = ids[1:]
			q.took(t, h, nil, &out.Rows[0])
		}
	}
}

// testMalformedDrafts: drafts that cannot be verified are refused and change nothing.
func (h *harness) testMalformedDrafts(t *testing.T) {
	q := h.newSpeculator(t, 99, 0, 100, 10, 20, backend.Sampling{LogProbs: true})
	step := func() {
		r := q.row(3, h.info.VocabSize)
		q.took(t, h, r.Drafts, &h.step(t, r)[0])
	}
	step()
	step()
	penal := h.newSequence(98, 1, 10, 4)
	penal.pages = h.pagesFrom(new(int), 14)
	penal.start = backend.Start{Prompt: penal.prompt, Sampling: backend.Sampling{FrequencyPenalty: 1}}
	h.alone(t, penal)
	good := func(change func(r *backend.Row)) []backend.Row {
		r := q.row(0, h.info.VocabSize)
		r.Drafts = []int32{1, 2}
		change(&r)
		return []backend.Row{r}
	}
	var many []backend.Row
	for slot := 2; slot < 5; slot++ {
		m := h.newSequence(98, slot, 4, 20)
		h.step(t, m.next(4))
		many = append(many, backend.Row{Slot: slot, Position: 4, Pages: m.pages, Sample: true, Drafts: make([]int32, backend.MaxRowDrafts)})
	}
	for name, rows := range map[string][]backend.Row{
		"too many of a row":  good(func(r *backend.Row) { r.Drafts = make([]int32, backend.MaxRowDrafts+1) }),
		"too many of a step": many,
		"token too high":     good(func(r *backend.Row) { r.Drafts[1] = int32(h.info.VocabSize) }),
		"token below 0":      good(func(r *backend.Row) { r.Drafts[0] = -1 }),
		"behind a prompt":    good(func(r *backend.Row) { r.Tokens = []int32{1, 2, 3} }),
		"no sample":          good(func(r *backend.Row) { r.Sample = false }),
		"mask":               good(func(r *backend.Row) { r.Mask = slices.Repeat([]uint32{^uint32(0)}, (h.info.VocabSize+31)/32) }),
		"logits":             good(func(r *backend.Row) { r.Logits = true }),
		"penalties":          {{Slot: 1, Position: 13, Pages: penal.pages, Sample: true, Drafts: []int32{1}}},
		"page table too short": good(func(r *backend.Row) {
			r.Drafts, r.Pages = make([]int32, 15), r.Pages[:1]
			r.Position = h.info.PageSize - 1
		}),
		"beyond the context": good(func(r *backend.Row) {
			r.Position, r.Pages = h.info.MaxContext-2, make([]int32, h.numPages(h.info.MaxContext))
		}),
	} {
		_, err := h.b.Launch(&backend.Batch{Rows: rows})
		require.Error(t, err, name)
		require.NotContains(t, err.Error(), "\n", name)
	}
	// Where the sequence ends is not known before the step was awaited.
	r := q.row(3, h.info.VocabSize)
	id, err := h.b.Launch(&backend.Batch{Rows: []backend.Row{r}})
	require.NoError(t, err)
	_, err = h.b.Launch(&backend.Batch{Rows: []backend.Row{{Slot: 0, Position: r.Position + 1, Pages: q.pages, Sample: true}}})
	require.Error(t, err, "behind a step with drafts")
	var out backend.Result
	require.NoError(t, h.b.Wait(id, &out))
	q.took(t, h, r.Drafts, &out.Rows[0])
	for len(q.got) < q.generate {
		step()
	}
}
