package engine

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// openWithHead opens the tiny Llama, with its draft head if o asks for one.
func openWithHead(t *testing.T, o Options) *Engine {
	dir, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	o.LoadFormat, o.SkipTokenizerInit, o.Threads = "auto", true, 1
	if o.SpeculativeAlgorithm == eagle3 {
		o.SpeculativeDraftModel, err = tinymodel.Dir(tinymodel.DraftHead)
		require.NoError(t, err)
	}
	e, err := Open(context.Background(), dir, WithOptions(o))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// headRequests are prompts that the head knows by heart and some that it does not, chosen from in every way, with ends in the middle of a run.
func headRequests(t *testing.T) []Request {
	goldens, err := tinymodel.DraftHeadGoldens()
	require.NoError(t, err)
	var rs []Request
	for i := range 16 {
		g := &goldens[i%len(goldens)]
		r := Request{InputIDs: slices.Clone(g.Prompt), Sampling: DefaultSampling(len(g.Output) - i)}
		r.Sampling.IgnoreEOS = true
		r.Sampling.TopLogProbs = i % 3
		switch i / len(goldens) {
		case 1:
			seed := uint64(i)
			r.Sampling.Temperature, r.Sampling.Seed = 0.4, &seed
		case 2:
			r.Sampling.StopTokenIDs = []int32{g.Output[7]}
		case 3:
			r.InputIDs = append(g.Prompt[:len(g.Prompt):len(g.Prompt)], g.Output[:5]...) // pages that another request has filled
		}
		rs = append(rs, r)
	}
	return rs
}

// TestDraftHeadChangesNothing: with a draft head, requests get the same tokens, log probabilities and ends as without, alone and together, and
// some of what it guesses is right.
func TestDraftHeadChangesNothing(t *testing.T) {
	requests := headRequests(t)
	o := DefaultOptions()
	o.Device = "cpu"
	plain := openWithHead(t, o)
	alone := make([]*Output, len(requests))
	for i, r := range requests {
		var err error
		alone[i], err = plain.Generate(context.Background(), r)
		require.NoError(t, err)
	}
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 4))
		o := o
		o.SpeculativeAlgorithm, o.SpeculativeEager = eagle3, seed != 5
		o.SpeculativeNumSteps = 1 + rng.IntN(6)
		o.PageSize, o.MaxTotalTokens = 1+rng.IntN(9), 150+rng.IntN(300)
		o.MaxRunningRequests, o.ContextLength = 1+rng.IntN(16), 64
		o.ChunkedPrefillSize = []int{-1, 0, 1 + rng.IntN(10)}[rng.IntN(3)]
		o.DisableOverlap, o.DisableRadixCache = rng.IntN(3) == 0, rng.IntN(3) == 0
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			e := openWithHead(t, o)
			var wg sync.WaitGroup
			for i, r := range requests {
				wg.Go(func() {
					out, err := e.Generate(context.Background(), r)
					if err != nil {
						t.Errorf("request %d: %v", i, err)
						return
					}
					want := alone[i]
					if !slices.Equal(want.TokenIDs, out.TokenIDs) || want.Finish != out.Finish || fmt.Sprint(want.LogProbs) != fmt.Sprint(out.LogProbs) {
						t.Errorf("request %d: alone %v %s %v\nhere  %v %s %v", i, want.TokenIDs, want.Finish, want.LogProbs, out.TokenIDs, out.Finish, out.LogProbs)
					}
				})
			}
			wg.Wait()
			settled(t, e)
			s := e.Stats()
			if o.SpeculativeEager {
				length, ok := s.AcceptLength()
				t.Logf("%d steps, accept length %.2f, %d of %d drafts", o.SpeculativeNumSteps, length, s.AcceptedTotal, s.DraftTokensTotal)
				require.True(t, ok)
				require.Greater(t, length, 1.2)
				require.Less(t, s.AcceptedTotal, s.DraftTokensTotal)
			}
			if t.Failed() {
				t.Logf("%+v", o)
			}
		})
	}
}

// TestWrongHeadIsLeftAlone: a head of made-up weights is nearly always wrong. The output is what it would be without, and soon nothing is verified.
func TestWrongHeadIsLeftAlone(t *testing.T) {
	target, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	o := DefaultOptions()
	o.LoadFormat, o.SkipTokenizerInit, o.Device, o.Threads, o.DisableRadixCache = "dummy", true, "cpu", 1, true
	open := func(o Options) *Engine {
		e, err := Open(context.Background(), target, WithOptions(o))
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, e.Close()) })
		return e
	}
	plain := open(o)
	o.SpeculativeAlgorithm = eagle3
	o.SpeculativeDraftModel, err = tinymodel.Dir(tinymodel.DraftHead)
	require.NoError(t, err)
	e := open(o)
	const requests, tokens = 12, 200
	said := map[int]int{}
	for i := range requests {
		r := Request{InputIDs: []int32{int32(3 + i), int32(40 + i), 7}, Sampling: DefaultSampling(tokens)}
		r.Sampling.IgnoreEOS = true
		want, err := plain.Generate(context.Background(), r)
		require.NoError(t, err)
		got, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		require.Equal(t, want.TokenIDs, got.TokenIDs, "request %d", i)
		said[i/(requests/2)] = int(e.Stats().DraftTokensTotal)
	}
	early, late := said[0], said[1]-said[0]
	t.Logf("%d drafts in the first half of %d tokens, %d in the second", early, requests*tokens, late)
	require.Less(t, late, requests*tokens/2/20)
}
