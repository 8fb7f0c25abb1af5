package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// guessers are requests whose outputs can be guessed, now and then, with every way to end in the middle of a run: by length, by a
// token, by a minimum before it.
func guessers() []Request {
	var rs []Request
	for i := range 16 {
		prompt := make([]int32, 0, 80)
		for k := range 10 + i*3 {
			prompt = append(prompt, int32(5+(i*31+k%7*17)%1900)) // a period of seven
		}
		r := Request{InputIDs: prompt, Sampling: DefaultSampling(20 + i*11%60)}
		r.Sampling.IgnoreEOS = true
		r.Sampling.TopLogProbs = i % 3
		switch i % 4 {
		case 1:
			seed := uint64(i)
			r.Sampling.Temperature, r.Sampling.TopK, r.Sampling.Seed = 0.3, 4, &seed
		case 2:
			r.Sampling.MinNewTokens = 5
		case 3:
			r.Sampling.LogitBias = map[int32]float32{prompt[0]: 1.5}
		}
		rs = append(rs, r)
	}
	return rs
}

// stopAt makes every third request stop at a token that it says in the middle of its output.
func stopAt(requests []Request, alone []*Output) {
	for i := 0; i < len(requests); i += 3 {
		ids := alone[i].TokenIDs
		requests[i].Sampling.StopTokenIDs = []int32{ids[len(ids)*2/3]}
	}
}

// TestSpeculationChangesNothing: with guesses, requests get the same tokens, log probabilities and ends as without, alone and together, in
// whatever steps.
func TestSpeculationChangesNothing(t *testing.T) {
	requests := guessers()
	o := tinyOptions()
	o.DisableOverlap, o.DisableRadixCache = true, true
	e := openTiny(t, o)
	run := func(r Request) *Output {
		out, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		return out
	}
	alone := make([]*Output, len(requests))
	for i, r := range requests {
		alone[i] = run(r)
	}
	stopAt(requests, alone)
	stopped := 0
	for i, r := range requests {
		if alone[i] = run(r); alone[i].Finish == FinishStop {
			stopped++
		}
	}
	require.Greater(t, stopped, 2)
	require.Zero(t, e.Stats().DraftTokensTotal)

	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 3))
		o := tinyOptions()
		o.SpeculativeAlgorithm, o.SpeculativeEager = "NGRAM", seed%4 != 3
		o.SpeculativeNumTokens, o.SpeculativeNgramMin, o.SpeculativeNgramMax = 1+rng.IntN(15), 1+rng.IntN(3), 4+rng.IntN(12)
		if seed > 0 {
			o.PageSize, o.MaxTotalTokens = 1+rng.IntN(20), 150+rng.IntN(600)
			o.MaxRunningRequests = 1 + rng.IntN(16)
			o.ChunkedPrefillSize = []int{-1, 0, 1 + rng.IntN(40)}[rng.IntN(3)]
			o.DisableOverlap, o.DisableRadixCache = rng.IntN(3) == 0, rng.IntN(3) == 0
		}
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			e := openTiny(t, o)
			var wg sync.WaitGroup
			for i, r := range requests {
				wg.Go(func() {
					var streamed []int32
					var out *Output
					for ev, err := range e.Stream(context.Background(), r) {
						if err != nil {
							t.Errorf("request %d: %v", i, err)
							return
						}
						streamed, out = append(streamed, ev.TokenIDs...), ev.Done
					}
					want := alone[i]
					if !slices.Equal(want.TokenIDs, out.TokenIDs) || !slices.Equal(streamed, out.TokenIDs) || want.Finish != out.Finish {
						t.Errorf("request %d: alone %v %s\nhere  %v %s\nstreamed %v", i, want.TokenIDs, want.Finish, out.TokenIDs, out.Finish, streamed)
						return
					}
					if fmt.Sprint(want.LogProbs) != fmt.Sprint(out.LogProbs) {
						t.Errorf("request %d: other log probabilities: %v, alone %v", i, out.LogProbs, want.LogProbs)
					}
				})
			}
			wg.Wait()
			settled(t, e)
			s := e.Stats()
			if o.SpeculativeEager {
				require.Positive(t, s.AcceptedTotal, "%+v", s)
				require.Less(t, s.AcceptedTotal, s.DraftTokensTotal)
				length, ok := s.AcceptLength()
				require.True(t, ok)
				require.Greater(t, length, 1.0)
			}
			if t.Failed() {
				t.Logf("%+v", o)
			}
		})
	}
}
