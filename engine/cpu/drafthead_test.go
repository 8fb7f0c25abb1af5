package cpu

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// openDraftHead opens the tiny Llama with its draft head.
func openDraftHead(t *testing.T, o backend.Options) *Backend {
	dir, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	head, err := tinymodel.Dir(tinymodel.DraftHead)
	require.NoError(t, err)
	cfg, w := backendtest.WithDraftHead(t, dir, head)
	b, err := Open(cfg, w, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// TestDraftHeadMatchesReference: whatever the chunks of the prompt and the drafts of the rows, the head guesses what a plain forward pass in
// PyTorch guesses, and is as sure of it.
func TestDraftHeadMatchesReference(t *testing.T) {
	goldens, err := tinymodel.DraftHeadGoldens()
	require.NoError(t, err)
	require.NotEmpty(t, goldens)
	for _, c := range []struct {
		name          string
		chunk, drafts int
		wrong         bool // one of the drafts is
	}{{"whole prompt", 1000, 0, false}, {"chunks of one", 1, 0, false}, {"chunks of 4, runs of 3", 4, 3, false}, {"chunks of 3, wrong drafts", 3, 4, true}} {
		t.Run(c.name, func(t *testing.T) {
			b := openDraftHead(t, backend.Options{Threads: 2, MaxContext: 128, PageSize: 5, MaxVerify: 16, NumPages: 30})
			for i := range goldens {
				playGuesses(t, b, &goldens[i], c.chunk, c.drafts, c.wrong)
			}
		})
	}
}

// playGuesses prefills a prompt in chunks and decodes with drafts of what is known to come.
func playGuesses(t *testing.T, b *Backend, g *tinymodel.Guesses, chunk, drafts int, wrong bool) {
	t.Helper()
	pages := []int32{3, 1, 29, 2, 0, 8, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15}
	var out backend.Result
	step := func(row backend.Row) *backend.RowResult {
		row.Pages, row.Follow = pages, true
		id, err := b.Launch(&backend.Batch{Rows: []backend.Row{row}})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		return &out.Rows[0]
	}
	most := len(g.Guesses[0])
	row := backend.Row{Start: &backend.Start{}}
	for n := len(g.Prompt); ; row = (backend.Row{Position: row.Position}) {
		if row.Tokens = g.Prompt[row.Position:min(n, row.Position+chunk)]; row.Position+len(row.Tokens) == n {
			break
		}
		step(row)
		row.Position += len(row.Tokens)
	}
	row.Sample, row.Guess = true, most
	for said := 0; ; {
		r := step(row)
		require.Equal(t, g.Output[said:said+1+len(r.More)], sampledBy(r), "behind token %d", said)
		said += 1 + len(r.More)
		require.Len(t, r.Guesses, most)
		for i, guess := range r.Guesses {
			require.Equal(t, g.Guesses[said-1][i], guess.Token, "guess %d behind token %d", i, said-1)
			// Both are float32 sums of at most 192 products in another order: 1e-5 of values of a few units, and the exponential of it.
			require.InDelta(t, g.Probs[said-1][i], guess.Prob, 2e-4, "guess %d behind token %d", i, said-1)
		}
		if said == len(g.Output) {
			return
		}
		row = backend.Row{Position: len(g.Prompt) + said - 1, Sample: true, Guess: most}
		row.Drafts = slices.Clone(g.Output[said:min(len(g.Output)-1, said+drafts)])
		if wrong && len(row.Drafts) > 1 {
			row.Drafts[len(row.Drafts)/2] ^= 1
		}
	}
}

// TestDraftHeadBehindCachedPages: a sequence that finds its first pages filled has the same guesses if the one that filled them was followed;
// if it was not, or another has written there since, the head makes do with what is behind them.
func TestDraftHeadBehindCachedPages(t *testing.T) {
	goldens, err := tinymodel.DraftHeadGoldens()
	require.NoError(t, err)
	g := &goldens[len(goldens)-1]
	b := openDraftHead(t, backend.Options{Threads: 2, MaxContext: 128, PageSize: 5, NumPages: 30})
	var out backend.Result
	// prefill computes the prompt from a position on, and returns the guesses behind it.
	prefill := func(slot, from int, pages []int32, follow bool) []backend.Guess {
		row := backend.Row{Slot: slot, Start: &backend.Start{}, Position: from, Tokens: g.Prompt[from:], Pages: pages, Sample: true, Follow: follow}
		if follow {
			row.Guess = len(g.Guesses[0])
		}
		id, err := b.Launch(&backend.Batch{Rows: []backend.Row{row}})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		require.Equal(t, g.Output[0], out.Rows[0].Token)
		return slices.Clone(out.Rows[0].Guesses)
	}
	pages := func(shared []int32, first int32) []int32 {
		for i := range int32(9 - len(shared)) {
			shared = append(shared, first+i)
		}
		return shared
	}
	want := prefill(0, 0, pages(nil, 0), true)
	require.Equal(t, g.Guesses[0][0], want[0].Token)
	shared := []int32{0, 1, 2, 3} // 20 of 32 tokens
	require.Equal(t, want, prefill(1, 20, pages(slices.Clone(shared), 10), true))
	alone := prefill(2, 20, pages(slices.Clone(shared), 20), false)
	require.Empty(t, alone)

	prefill(3, 0, pages(nil, 0), false) // the same tokens, but nobody reads them
	blind := prefill(1, 20, pages(slices.Clone(shared), 10), true)
	require.Len(t, blind, len(want))
	require.NotEqual(t, want, blind)
	prefill(0, 0, pages(nil, 0), true)
	require.Equal(t, want, prefill(1, 20, pages(slices.Clone(shared), 10), true))
}

// TestDraftHeadRefuses: rows that ask the head for what it cannot do.
func TestDraftHeadRefuses(t *testing.T) {
	b := openDraftHead(t, backend.Options{Threads: 1, MaxContext: 64, PageSize: 5, NumPages: 20})
	require.True(t, b.Info().DraftHead)
	row := func(edit func(*backend.Row)) backend.Row {
		r := backend.Row{Start: &backend.Start{}, Tokens: []int32{3, 4}, Pages: []int32{0, 1}, Sample: true, Follow: true}
		edit(&r)
		return r
	}
	for says, r := range map[string]backend.Row{
		"want 0..15":                        row(func(r *backend.Row) { r.Guess, r.Pages = 16, []int32{0, 1, 2, 3} }),
		"-1 guesses":                        row(func(r *backend.Row) { r.Guess = -1 }),
		"that is followed and samples":      row(func(r *backend.Row) { r.Guess, r.Follow = 1, false }),
		"followed and samples":              row(func(r *backend.Row) { r.Guess, r.Sample = 1, false }),
		"not from position 3":               row(func(r *backend.Row) { r.Position = 3 }),
		"holds 10 tokens, the row needs 11": row(func(r *backend.Row) { r.Guess = 10 }),
	} {
		_, err := b.Launch(&backend.Batch{Rows: []backend.Row{r}})
		require.ErrorContains(t, err, says)
	}
	launch := func(r backend.Row) error {
		id, err := b.Launch(&backend.Batch{Rows: []backend.Row{r}})
		if err == nil {
			require.NoError(t, b.Wait(id, new(backend.Result)))
		}
		return err
	}
	require.NoError(t, launch(row(func(r *backend.Row) { r.Guess = 9 })))
	next := backend.Row{Position: 2, Pages: []int32{0, 1}, Sample: true}
	require.NoError(t, launch(next))
	next.Position, next.Follow = 3, true
	require.ErrorContains(t, launch(next), "not followed from its start")
}

// sampledBy are the tokens that a row gave.
func sampledBy(r *backend.RowResult) []int32 {
	out := []int32{r.Token}
	for _, m := range r.More {
		out = append(out, m.Token)
	}
	return out
}
