//go:build cuda

package cuda

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// BenchmarkDeterministic tells what equal bits cost: decode steps and a prompt of Llama-3.2-1B with and without Deterministic, beside each
// other on one device.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench Deterministic -benchtime 1x
func BenchmarkDeterministic(b *testing.B) {
	cfg := benchModels()["llama-1b"]
	var engines [2]*Backend
	for i, deterministic := range []bool{false, true} {
		o := backend.Options{MaxRows: 64, MaxTokens: 8192, MaxContext: 16384, NumPages: 2048, Deterministic: deterministic}
		engines[i] = openTest(b, cfg, weights.NewDummy(cfg), o, settings{})
	}
	for _, c := range []struct{ rows, in int }{{1, 512}, {16, 512}, {64, 512}, {1, 8192}} {
		var ms, prompt [2]float64
		for i, be := range engines {
			staticBatch(b, be, 1, c.in, 0) // whatever is done once
			decode, took := staticBatch(b, be, c.rows, c.in, 60)
			prompt[i] = took.Seconds() * 1e3 / float64(c.rows)
			var out backend.Result
			var steps []time.Duration
			for range 50 {
				began := time.Now()
				id, err := be.Launch(&decode)
				require.NoError(b, err)
				require.NoError(b, be.Wait(id, &out))
				steps = append(steps, time.Since(began))
				for r := range decode.Rows {
					decode.Rows[r].Position++
				}
			}
			slices.Sort(steps)
			ms[i] = steps[len(steps)/2].Seconds() * 1e3
		}
		figures(b, fmt.Sprintf("batch=%d/in=%d", c.rows, c.in), map[string]float64{
			"plain-ms": ms[0], "deterministic-ms": ms[1], "prompt-plain-ms": prompt[0], "prompt-deterministic-ms": prompt[1],
		})
	}
}

// TestDeterministicWhateverTheChunk holds that with Deterministic a sequence's logits are the same bits with its prompt whole and in
// chunks, and when it starts anew with what it has said as a part of its prompt, as after a preemption. Windows are the hard case.
func TestDeterministicWhateverTheChunk(t *testing.T) {
	needGPU(t)
	for name, cfg := range backendtest.Models() {
		t.Run(name, func(t *testing.T) {
			o := testOptions
			o.Deterministic = true
			b := openTest(t, cfg, weights.NewDummy(cfg), o, settings{})
			prompt := randomPrompt(11, 75, cfg.VocabSize)
			greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1, LogProbs: true}
			whole := play(t, b, 0, prompt, 128, 12, greedy, true)
			ids, want := tokensAndLogProbs(whole)
			for _, chunk := range []int{7, 64} {
				gotIDs, got := tokensAndLogProbs(play(t, b, 1, prompt, chunk, 12, greedy, true))
				require.Equal(t, ids, gotIDs, "chunks of %d", chunk)
				require.Equal(t, want, got, "chunks of %d", chunk)
			}
			_, tail := tokensAndLogProbs(whole[8:])
			_, got := tokensAndLogProbs(play(t, b, 2, slices.Concat(prompt, ids[:8]), 50, 4, greedy, true))
			require.Equal(t, tail, got, "after 8 tokens, anew")
		})
	}
}
