package cpu

import (
	"math"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// TestFamiliesMatchTransformers: every family's tiny checkpoint, plain and quantised, against transformers' logits at every
// position of its prompts (within 1e-3 of each) and its greedy continuations.
func TestFamiliesMatchTransformers(t *testing.T) {
	for _, family := range append(append([]string{}, tinymodel.Families...), tinymodel.Quantised...) {
		t.Run(family, func(t *testing.T) {
			dir, err := tinymodel.Dir(family)
			require.NoError(t, err)
			cfg, err := model.Load(dir, "")
			require.NoError(t, err)
			w, err := weights.Open(dir, cfg)
			require.NoError(t, err)
			defer func() { require.NoError(t, w.Close()) }()
			b, err := Open(cfg, w, backend.Options{Threads: 2, MaxContext: 64, PageSize: 16})
			require.NoError(t, err)
			defer func() { require.NoError(t, b.Close()) }()
			golden, err := tinymodel.Goldens(family)
			require.NoError(t, err)
			for _, g := range golden {
				checkGolden(t, b, &g)
			}
		})
	}
}

func checkGolden(t *testing.T, b *Backend, g *tinymodel.Golden) {
	t.Helper()
	pages := []int32{3, 1, 2, 0}
	var out backend.Result
	step := func(row backend.Row) *backend.RowResult {
		row.Pages = pages
		id, err := b.Launch(&backend.Batch{Rows: []backend.Row{row}})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		return &out.Rows[0]
	}
	var got []int32
	for i, token := range g.Prompt {
		row := backend.Row{Tokens: []int32{token}, Position: i, Logits: true, Sample: i == len(g.Prompt)-1}
		if i == 0 {
			row.Start = &backend.Start{}
		}
		r := step(row)
		var spread float64
		for _, l := range g.Logits[i] {
			spread = max(spread, math.Abs(float64(l)))
		}
		for id, want := range g.Logits[i] {
			// Relative to the logit; one near 0 is the difference of larger numbers, so not below a hundredth of the largest.
			require.InDelta(t, want, r.Logits[id], 1e-3*max(math.Abs(float64(want)), spread/100), "position %d token %d", i, id)
		}
		if row.Sample {
			got = append(got, r.Token)
		}
	}
	for len(got) < len(g.Output) {
		got = append(got, step(backend.Row{Position: len(g.Prompt) + len(got) - 1, Sample: true}).Token)
	}
	require.Equal(t, g.Output, got)

	whole := step(backend.Row{Tokens: g.Prompt, Start: &backend.Start{}, Sample: true})
	require.Equal(t, g.Output[0], whole.Token, "prompt in one chunk")
}
