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

// TestDraftsKeepTheBits: a sequence that is decoded token by token and one whose tokens are verified as drafts, in runs of every length,
// have the same log probabilities to the last bit, as long as a step has no more than gemvRows tokens.
func TestDraftsKeepTheBits(t *testing.T) {
	models := backendtest.Models()
	models["mixture"] = mixtureModel(8, 2)
	for name, cfg := range models {
		t.Run(name, func(t *testing.T) {
			o := testOptions
			o.MaxVerify = 32
			b := openTest(t, cfg, weights.NewDummy(cfg), o, settings{})
			sampling := backend.Sampling{TopP: 1, RepetitionPenalty: 1, LogProbs: true, TopLogProbs: 5}
			prompt := randomPrompt(3, 70, cfg.VocabSize)
			want := play(t, b, 0, prompt, len(prompt), 120, sampling, false)
			tokens := make([]int32, len(want))
			for i, r := range want {
				tokens[i] = r.Token
			}
			var out backend.Result
			step := func(r backend.Row) backend.RowResult {
				id, err := b.Launch(&backend.Batch{Rows: []backend.Row{r}})
				require.NoError(t, err)
				require.NoError(t, b.Wait(id, &out))
				return out.Rows[0]
			}
			for run := 1; run <= backend.MaxRowDrafts; run++ {
				got := playDrafts(b.Info(), step, 1, prompt, tokens, run, sampling)
				for i := range want {
					require.Equal(t, want[i].Token, got[i].Token, "runs of %d, token %d", run, i)
					require.Equal(t, want[i].LogProb, got[i].LogProb, "runs of %d, token %d", run, i)
					require.Equal(t, want[i].Top, got[i].Top, "runs of %d, token %d", run, i)
				}
			}
		})
	}
}

// playDrafts is play with drafts, up to n a step, every third of which is wrong somewhere. step runs a batch of one row.
func playDrafts(info backend.Info, step func(backend.Row) backend.RowResult, slot int, prompt, tokens []int32, n int, sampling backend.Sampling) []backend.Sampled {
	pages := make([]int32, (len(prompt)+len(tokens)+info.PageSize-1)/info.PageSize)
	for i := range pages {
		pages[i] = int32(slot*len(pages) + i)
	}
	row := backend.Row{Slot: slot, Start: &backend.Start{Sampling: sampling}, Tokens: prompt, Pages: pages, Sample: true}
	var got []backend.Sampled
	for steps := 0; ; steps++ {
		r := step(row)
		got = append(got, backend.Sampled{Token: r.Token, LogProb: r.LogProb, Top: slices.Clone(r.Top)})
		for _, more := range r.More {
			more.Top = slices.Clone(more.Top)
			got = append(got, more)
		}
		if len(got) == len(tokens) {
			return got
		}
		row = backend.Row{Slot: slot, Position: len(prompt) + len(got) - 1, Pages: pages, Sample: true}
		row.Drafts = slices.Clone(tokens[len(got):min(len(got)+n, len(tokens)-1)])
		if k := len(row.Drafts); steps%3 == 2 && k > 0 {
			row.Drafts[steps%k] = (row.Drafts[steps%k] + 1) % int32(info.VocabSize)
		}
	}
}

// BenchmarkVerify times a step that verifies one row's drafts beside a plain decode step, and a plain step of a backend that takes no
// drafts: the price of a run.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench Verify
func BenchmarkVerify(b *testing.B) {
	for _, name := range []string{"llama-8b", "llama-1b"} {
		for _, verify := range []int{0, 48} {
			b.Run(fmt.Sprintf("model=%s/verify=%d", name, verify), func(b *testing.B) {
				cfg := benchModels()[name]
				be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 48, MaxTokens: 8192, MaxContext: 8192, MaxVerify: verify, MemFraction: 0.6}, settings{})
				for _, in := range []int{512, 4096} {
					base := time.Duration(0)
					for _, drafts := range []int{0, 1, 3, 5, 7, 11, 15} {
						if verify == 0 && drafts > 0 {
							break
						}
						took := verifyStep(b, be, in, drafts)
						if drafts == 0 {
							base = took
						}
						fmt.Printf("verify %s in=%d max-verify=%d drafts=%d: step %v = %.3f of a plain one\n", name, in, verify, drafts, took, float64(took)/float64(base))
					}
				}
			})
		}
	}
}

func verifyStep(b *testing.B, be *Backend, in, drafts int) time.Duration {
	decode, _ := staticBatch(b, be, 1, in, 1024)
	row := &decode.Rows[0]
	row.Drafts = randomPrompt(1, drafts, be.Info().VocabSize)
	var out backend.Result
	times := make([]time.Duration, 0, 25)
	for range 25 {
		began := time.Now()
		id, err := be.Launch(&decode)
		require.NoError(b, err)
		require.NoError(b, be.Wait(id, &out))
		times = append(times, time.Since(began))
		row.Position += 1 + len(out.Rows[0].More)
	}
	return median(times[5:])
}
