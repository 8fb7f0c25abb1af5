//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// mixtureModel is two layers of a Qwen3-MoE.
func mixtureModel(experts, perToken int) *model.Config {
	c := *backendtest.Models()["qwen3"]
	c.Architecture, c.Family = "Qwen3MoeForCausalLM", "qwen3_moe"
	c.NumExperts, c.NumExpertsPerToken, c.MoEIntermediateSize, c.NormTopKProb = experts, perToken, 96, true
	return &c
}

// TestMixtureAgreesWithCPU compares logits of whole models with the CPU backend's. Every token takes all experts, or experts that do not
// depend on the router: a choice between two nearly equal ones would differ now and then, and everything after it.
func TestMixtureAgreesWithCPU(t *testing.T) {
	needGPU(t)
	for name, c := range map[string]struct {
		cfg     *model.Config
		uniform bool
	}{"all experts": {mixtureModel(4, 4), false}, "uniform": {mixtureModel(16, 4), true}} {
		t.Run(name, func(t *testing.T) {
			w := weights.NewDummy(c.cfg)
			o := testOptions
			o.SimulateUniformExperts = c.uniform
			gpu := openTest(t, c.cfg, w, o, settings{})
			ref := onCPU(t, c.cfg, w, o)
			for _, n := range []int{1, 5, 16, 17, 65, 100} {
				for _, chunk := range []int{128, 7} {
					prompt := randomPrompt(uint64(n), n, c.cfg.VocabSize)
					greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1}
					want, got := play(t, ref, 0, prompt, 128, 6, greedy, true), play(t, gpu, 0, prompt, chunk, 6, greedy, true)
					for i := range want {
						compareLogits(t, fmt.Sprintf("prompt of %d in chunks of %d, token %d", n, chunk, i), want[i].Logits, got[i].Logits)
						if got[i].Token != want[i].Token {
							gap := want[i].Logits[want[i].Token] - want[i].Logits[got[i].Token]
							require.Less(t, gap, float32(0.1), "prompt of %d, token %d: %d is not near the best %d", n, i, got[i].Token, want[i].Token)
							break // another continuation from here
						}
					}
				}
			}
		})
	}
}

// TestMixtureRouterAgreesWithCPU is the same with the router's choices. Logits of experts differ by about 1 and the two backends' by about 0.01, so that
// three choices in a hundred may differ, of which the last token makes one a layer: nine prompts in ten agree as if there were none.
func TestMixtureRouterAgreesWithCPU(t *testing.T) {
	needGPU(t)
	cfg := mixtureModel(8, 2)
	w := weights.NewDummy(cfg)
	gpu := openTest(t, cfg, w, testOptions, settings{})
	ref := onCPU(t, cfg, w, testOptions)
	const prompts = 40
	agree := 0
	for i := range prompts {
		prompt := randomPrompt(uint64(i), 3+2*i, cfg.VocabSize)
		want, got := play(t, ref, 0, prompt, 128, 1, backend.Sampling{}, true)[0].Logits, play(t, gpu, 0, prompt, 128, 1, backend.Sampling{}, true)[0].Logits
		if relativeError(want, got) < 0.02 {
			agree++
		}
	}
	t.Logf("%d of %d prompts agree", agree, prompts)
	assert.GreaterOrEqual(t, agree, prompts*8/10)
}

func relativeError(want, got []float32) float64 {
	var sum, diff float64
	for i := range want {
		sum += float64(want[i]) * float64(want[i])
		diff += float64(got[i]-want[i]) * float64(got[i]-want[i])
	}
	return math.Sqrt(diff / sum)
}

// TestMixtureConformance runs the suite on a mixture whose tokens take all experts: see TestMixtureAgreesWithCPU.
func TestMixtureConformance(t *testing.T) {
	needGPU(t)
	backendtest.Run(t, backendtest.Suite{
		Open: func(cfg *model.Config, w *weights.Store, o backend.Options) (backend.Backend, error) {
			return Open(cfg, w, o)
		},
		Models: map[string]*model.Config{"qwen3-moe": mixtureModel(4, 4)}, Tolerance: bf16Tolerance,
	})
}

// TestMixtureDeterministic holds that the bits of a sequence do not depend on its batch mates.
func TestMixtureDeterministic(t *testing.T) {
	needGPU(t)
	cfg := mixtureModel(16, 4)
	b := openTest(t, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 24, MaxTokens: 1024, MaxContext: 256, NumPages: 256, Deterministic: true}, settings{})
	const steps = 12
	sampling := backend.Sampling{LogProbs: true}
	wantIDs, want := tokensAndLogProbs(play(t, b, 0, randomPrompt(77, 45, cfg.VocabSize), 256, steps, sampling, false))
	var rows []backend.RowResult
	var out backend.Result
	for s := range steps {
		var batch backend.Batch
		for slot := range 21 {
			prompt := randomPrompt(uint64(slot), 45, cfg.VocabSize)
			if slot == 10 {
				prompt = randomPrompt(77, 45, cfg.VocabSize)
			}
			r := backend.Row{Slot: slot, Position: 44 + s, Pages: []int32{int32(2 * slot), int32(2*slot + 1)}, Sample: true}
			if s == 0 {
				r.Start, r.Tokens, r.Position = &backend.Start{Sampling: sampling}, prompt, 0
			}
			batch.Rows = append(batch.Rows, r)
		}
		id, err := b.Launch(&batch)
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		rows = append(rows, out.Rows[10])
	}
	gotIDs, got := tokensAndLogProbs(rows)
	assert.Equal(t, wantIDs, gotIDs)
	assert.Equal(t, want, got)
}

// TestMixtureInfo: what a step reads of the weights grows with its rows, to all of them.
func TestMixtureInfo(t *testing.T) {
	s := mixtureShape(2048, moeShape{Experts: 128, TopK: 8, Inter: 768})
	s.Layers = 48
	i := backend.Info{WeightBytes: 100<<30 + 128*48*s.expertBytes()}
	s.MoE.info(&i, s)
	require.Equal(t, int64(100<<30), i.WeightBytes)
	require.InDelta(t, float64(100<<30+8*48*s.expertBytes()), i.StepWeightBytes(1), 1)
	require.InDelta(t, float64(100<<30+128*48*s.expertBytes()), i.StepWeightBytes(1000), 1)
	seen := map[int]bool{} // the formula against the simulation, 400 steps of 8 rows
	total := 0
	for step := range 400 {
		clear(seen)
		for slot := range 8 {
			for j := range 8 {
				seen[backend.UniformExpert(slot, step, 5, j, 128, 8)] = true
			}
		}
		total += len(seen)
	}
	require.InEpsilon(t, backend.DistinctExperts(128, 8, 8), float64(total)/400, 0.02) // 51.6; the deviation of one step's is about 6
}
