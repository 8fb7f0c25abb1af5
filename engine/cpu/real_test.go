package cpu

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/goldens"
)

// openReal opens the real fixture model, or skips if it was not fetched.
func openReal(tb testing.TB, o backend.Options) *Backend {
	tb.Helper()
	path := filepath.Join("..", "..", "fixtures", "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		tb.Skipf("%s is not there: run `make fixtures`", path)
	}
	g, err := weights.OpenGGUF(path)
	require.NoError(tb, err)
	cfg, err := model.FromGGUF(g.Meta, "")
	require.NoError(tb, err)
	w, err := g.Store(cfg)
	require.NoError(tb, err)
	b, err := Open(cfg, w, o)
	require.NoError(tb, err)
	tb.Cleanup(func() {
		require.NoError(tb, b.Close())
		require.NoError(tb, w.Close())
		require.NoError(tb, g.Close())
	})
	return b
}

// TestRealModelMatchesGoldens: 96 greedy tokens, and the first logits within 1e-3, on each level with vector instructions (the
// portable one takes long, and is tested so under the tag purego).
func TestRealModelMatchesGoldens(t *testing.T) {
	for i, ks := range levels {
		if ks == &portable && i > 0 {
			continue
		}
		t.Run("level="+ks.name, func(t *testing.T) {
			if i > 0 {
				defer disableLevel(levels[i-1].name)()
			}
			checkRealModel(t)
		})
	}
}

func checkRealModel(t *testing.T) {
	b := openReal(t, backend.Options{MaxContext: 256, MaxRows: 3})
	cases, err := goldens.SmolLM2()
	require.NoError(t, err)
	require.Len(t, cases, 3)
	var rows []backend.Row
	for i, c := range cases {
		pages := make([]int32, 16)
		for j := range pages {
			pages[j] = int32(16*i + j)
		}
		rows = append(rows, backend.Row{Slot: i, Start: &backend.Start{}, Tokens: c.PromptIDs, Pages: pages, Sample: true, Logits: true})
	}
	got := make([][]int32, len(rows))
	var out backend.Result
	for step := range len(cases[0].GreedyIDs) {
		id, err := b.Launch(&backend.Batch{Rows: rows})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		for i, r := range out.Rows {
			got[i] = append(got[i], r.Token)
			if step == 0 {
				c := cases[i]
				var sum float64
				for _, l := range r.Logits {
					sum += float64(l)
				}
				require.InEpsilon(t, c.LogitSum, sum, 1e-3)
				for _, top := range c.Top5 {
					require.InEpsilon(t, float64(top.Logit), float64(r.Logits[top.ID]), 1e-3)
				}
			}
			rows[i] = backend.Row{Slot: i, Position: rows[i].Position + rows[i].NumTokens(), Pages: rows[i].Pages, Sample: true}
		}
	}
	for i, c := range cases {
		require.Equal(t, c.GreedyIDs, got[i], c.Prompt)
	}
}
