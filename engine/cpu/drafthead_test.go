package cpu

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// openDraftHead opens the tiny Llama with its draft head.
func openDraftHead(t *testing.T, o backend.Options) *Backend {
	dir, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	cfg, err := model.Load(dir, "")
	require.NoError(t, err)
	w, err := weights.Open(dir, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	dir, err = tinymodel.Dir(tinymodel.DraftHead)
	require.NoError(t, err)
	cfg.DraftHead, err = model.LoadDraftHead(dir, cfg)
	require.NoError(t, err)
	require.NoError(t, w.AddDraftHead(dir, cfg.DraftHead))
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
		require.Equal(t, g.Output[said:said+1+len(r.More)], said1(r), "behind token %d", said)
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

// said1 are the tokens that a row gave.
func said1(r *backend.RowResult) []int32 {
	out := []int32{r.Token}
	for _, m := range r.More {
		out = append(out, m.Token)
	}
	return out
}
