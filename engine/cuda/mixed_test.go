//go:build cuda

package cuda

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// TestMixedGraphs: steps of decode rows and pieces of prompts have the bits of a backend without graphs, and one graph serves several
// numbers of either.
func TestMixedGraphs(t *testing.T) {
	needGPU(t)
	cfg := backendtest.Models()["mistral"]
	w := weights.NewDummy(cfg)
	o := testOptions
	o.MixedTokens = 64
	graphs := openTest(t, cfg, w, o, settings{})
	o.DisableGraph = true
	eager := openTest(t, cfg, w, o, settings{})
	sampling := backend.Sampling{TopP: 1, RepetitionPenalty: 1, LogProbs: true}
	const decoding, per = 6, 4 // sequences, pages of each
	pages := func(slot int) []int32 {
		p := make([]int32, per)
		for i := range p {
			p[i] = int32(slot*per + i)
		}
		return p
	}
	both := func(rows ...backend.Row) {
		t.Helper()
		var out [2]backend.Result
		for i, b := range []*Backend{eager, graphs} {
			id, err := b.Launch(&backend.Batch{Rows: rows})
			require.NoError(t, err)
			require.NoError(t, b.Wait(id, &out[i]))
		}
		wantIDs, want := tokensAndLogProbs(out[0].Rows)
		gotIDs, got := tokensAndLogProbs(out[1].Rows)
		require.Equal(t, wantIDs, gotIDs)
		require.Equal(t, want, got)
	}
	var decode []backend.Row
	for slot := range decoding {
		prompt := randomPrompt(uint64(slot), 20+5*slot, cfg.VocabSize)
		both(backend.Row{Slot: slot, Start: &backend.Start{Sampling: sampling}, Tokens: prompt, Pages: pages(slot), Sample: true})
		decode = append(decode, backend.Row{Slot: slot, Position: len(prompt), Pages: pages(slot), Sample: true})
	}
	before := len(graphs.graphs)
	for i := range 8 {
		rows := decode[:decoding-i%2] // 5 or 6: one bucket
		piece := randomPrompt(uint64(100+i), 48-i, cfg.VocabSize)
		prompt := func(slot int, tokens []int32) backend.Row {
			return backend.Row{Slot: slot, Start: &backend.Start{Sampling: sampling}, Tokens: tokens, Pages: pages(slot), Sample: true}
		}
		both(append(rows[:len(rows):len(rows)], prompt(decoding, piece[:30-i]), prompt(decoding+1, piece[30-i:]))...)
		for j := range rows {
			rows[j].Position++
		}
	}
	assert.Equal(t, 1, len(graphs.graphs)-before, "graphs of steps with 5 or 6 decode rows and two pieces of up to 64 tokens together")
}

// TestManyRows: what a sequence says does not depend on a thousand others in its step, but for the order of sums.
func TestManyRows(t *testing.T) {
	needGPU(t)
	cfg := backendtest.Models()["llama"]
	w := weights.NewDummy(cfg)
	const rows, steps = 1000, 3
	o := backend.Options{MaxRows: rows, MaxTokens: 2048, MaxContext: 64, NumPages: rows, PageSize: 16}
	many := openTest(t, cfg, w, o, settings{})
	require.Equal(t, 1024, many.shape.MaxRows)
	o.MaxRows = 1
	alone := openTest(t, cfg, w, o, settings{})
	watched := []int{0, 511, 512, 770, rows - 1}
	start := &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}}
	prompt := func(slot int) backend.Row {
		return backend.Row{Start: start, Tokens: randomPrompt(uint64(slot), 2, cfg.VocabSize), Pages: []int32{int32(slot)}, Sample: true, Logits: slices.Contains(watched, slot)}
	}
	step := func(b *Backend, rows []backend.Row) []backend.RowResult {
		id, err := b.Launch(&backend.Batch{Rows: rows})
		require.NoError(t, err)
		var out backend.Result
		require.NoError(t, b.Wait(id, &out))
		return out.Rows
	}
	batch := make([]backend.Row, rows)
	for slot := range batch {
		batch[slot] = prompt(slot)
		batch[slot].Slot = slot
	}
	var got [1 + steps][]backend.RowResult
	for i := range got {
		got[i] = step(many, batch)
		for slot := range batch {
			r := &batch[slot]
			r.Position, r.Tokens, r.Start = 2+i, nil, nil
			// The last steps are as others are: a graph.
			r.Logits = r.Logits && i < steps-1
		}
	}
	for _, slot := range watched {
		r := prompt(slot)
		for i := range got {
			want := step(alone, []backend.Row{r})[0]
			require.False(t, got[i][slot].NonFinite)
			if len(got[i][slot].Logits) > 0 {
				compareLogits(t, fmt.Sprintf("sequence %d, step %d", slot, i), want.Logits, got[i][slot].Logits)
			}
			if got[i][slot].Token != want.Token {
				gap := want.Logits[want.Token] - want.Logits[got[i][slot].Token]
				assert.Less(t, gap, float32(0.1), "sequence %d, step %d: another token, and no tie", slot, i)
				break
			}
			r.Position, r.Tokens, r.Start = 2+i, nil, nil
		}
	}
}

// BenchmarkMixed times a step of decode rows and a piece of a prompt together, over the tokens of both: what a piece costs those who wait
// for their next token. The launch is timed apart: it is the host's.
func BenchmarkMixed(b *testing.B) {
	for _, name := range []string{"llama-8b", "llama-1b"} {
		b.Run("model="+name, func(b *testing.B) { mixed(b, openBench(b, name)) })
	}
}

func mixed(b *testing.B, be *Backend) {
	const ctx, most, repeats = 1100, 1024, 8
	be.mixedGraphs = true
	decode, _ := staticBatch(b, be, 32, ctx, 64)
	pages := make([]int32, (most+64)/be.Info().PageSize)
	for i := range pages {
		pages[i] = int32(be.Info().NumPages - 1 - i)
	}
	var out backend.Result
	for _, rows := range []int{0, 32} {
		for total := rows; total <= most; total += 64 - total%64 {
			batch := backend.Batch{Rows: slices.Clone(decode.Rows[:rows])}
			if total > rows {
				batch.Rows = append(batch.Rows, backend.Row{Slot: 63, Start: &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}},
					Tokens: randomPrompt(uint64(total), total-rows, be.Info().VocabSize), Pages: pages, Sample: true})
			}
			if len(batch.Rows) == 0 {
				continue
			}
			fmt.Printf("mixed decode=%d tokens=%d:", rows, total)
			for _, be.noGraph = range []bool{true, false} { // the graph is captured at the second step of its kind
				var steps, launches []time.Duration
				for range repeats {
					began := time.Now()
					id, err := be.Launch(&batch)
					launches = append(launches, time.Since(began))
					require.NoError(b, err)
					require.NoError(b, be.Wait(id, &out))
					steps = append(steps, time.Since(began))
				}
				how := "graph"
				if be.noGraph {
					how = "eager"
				}
				fmt.Printf(" %s %v, launch %v;", how, median(steps[2:]), median(launches[2:]))
			}
			fmt.Println()
		}
	}
}
