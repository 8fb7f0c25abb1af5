//go:build cuda

package engine

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestSpeculationOnTheGPU: a request alone gets the same tokens and the same bits of log probabilities with guesses as without; among others,
// and against an engine that takes no drafts, the same up to a near-tie.
func TestSpeculationOnTheGPU(t *testing.T) {
	requireGPU(t)
	for name, overrides := range gpuModels {
		t.Run("model="+name, func(t *testing.T) { testSpeculationOnTheGPU(t, overrides) })
	}
}

func testSpeculationOnTheGPU(t *testing.T, overrides string) {
	open := func(set func(*Options)) *Engine {
		return openTinyOnGPU(t, func(o *Options) { o.JSONModelOverrides = overrides; set(o) })
	}
	requests := guessers()
	for i := range requests {
		requests[i].Sampling.TopLogProbs = 5
	}
	run := func(e *Engine, r Request) *Output {
		out, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		return out
	}
	// Of these a near-tie shows in the log probabilities.
	ties := func(r *Request) bool { return r.Sampling.Temperature == 0 && r.Sampling.LogitBias == nil }
	speculate := func(o *Options) {
		o.SpeculativeAlgorithm, o.SpeculativeEager = "NGRAM", true
	}
	plain := open(func(*Options) {})
	silent := open(func(o *Options) { // takes drafts and never has any
		speculate(o)
		o.SpeculativeNgramMin, o.SpeculativeNgramMax = 1000, 1000
	})
	e := open(speculate)
	var alone []*Output
	for i, r := range requests {
		want, got := run(silent, r), run(e, r)
		require.Equal(t, want.TokenIDs, got.TokenIDs, "request %d", i)
		require.Equal(t, want.LogProbs, got.LogProbs, "request %d", i)
		alone = append(alone, got)
		if ties(&r) {
			_, _, err := sameUpToATie(&r, run(plain, r), got)
			require.NoError(t, err, "request %d", i)
		}
	}
	require.Zero(t, silent.Stats().DraftTokensTotal)
	s := e.Stats()
	require.Positive(t, s.AcceptedTotal)
	require.Less(t, s.AcceptedTotal, s.DraftTokensTotal)
	length, _ := s.AcceptLength()
	t.Logf("accept length %.2f, %d of %d drafts", length, s.AcceptedTotal, s.DraftTokensTotal)

	var wg sync.WaitGroup
	for i, r := range requests {
		if !ties(&r) {
			continue
		}
		wg.Go(func() {
			out, err := e.Generate(context.Background(), r)
			if err == nil {
				_, _, err = sameUpToATie(&r, alone[i], out)
			}
			if err != nil {
				t.Errorf("request %d: %v\nalone %v\nhere  %v", i, err, alone[i].TokenIDs, out.TokenIDs)
			}
		})
	}
	wg.Wait()

	exact := open(func(o *Options) { speculate(o); o.Deterministic = true })
	base := open(func(o *Options) { o.Deterministic = true })
	for i, r := range requests {
		want, got := run(base, r), run(exact, r)
		require.Equal(t, want.TokenIDs, got.TokenIDs, "deterministic, request %d", i)
		require.Equal(t, fmt.Sprint(want.LogProbs), fmt.Sprint(got.LogProbs), "deterministic, request %d", i)
	}
	require.Positive(t, exact.Stats().AcceptedTotal)
	require.False(t, slices.ContainsFunc(alone, func(o *Output) bool { return len(o.TokenIDs) == 0 }))
}

// TestDraftHeadOnTheGPU: a request alone gets the same tokens and the same bits of log probabilities with a draft head as without, and some of
// what the head guesses is right.
func TestDraftHeadOnTheGPU(t *testing.T) {
	requireGPU(t)
	headsOnGPU = true
	defer func() { headsOnGPU = false }()
	o := DefaultOptions()
	o.Device, o.MaxRunningRequests, o.PageSize, o.ContextLength, o.MaxTotalTokens = "cuda", 8, 16, 128, 4096
	silent := o // takes drafts and never has any
	silent.SpeculativeAlgorithm, silent.SpeculativeNgramMin, silent.SpeculativeNgramMax = "NGRAM", 1000, 1000
	plain := openWithHead(t, silent)
	for _, graphs := range []bool{true, false} {
		o.SpeculativeAlgorithm, o.SpeculativeEager, o.SpeculativeNumSteps, o.DisableCUDAGraph = eagle3, true, 4, !graphs
		e := openWithHead(t, o)
		for i, r := range headRequests(t) {
			want, err := plain.Generate(context.Background(), r)
			require.NoError(t, err)
			got, err := e.Generate(context.Background(), r)
			require.NoError(t, err)
			require.Equal(t, want.TokenIDs, got.TokenIDs, "request %d", i)
			require.Equal(t, want.LogProbs, got.LogProbs, "request %d", i)
			require.Equal(t, want.Finish, got.Finish, "request %d", i)
		}
		s := e.Stats()
		length, _ := s.AcceptLength()
		t.Logf("graphs %t: accept length %.2f, %d of %d drafts", graphs, length, s.AcceptedTotal, s.DraftTokensTotal)
		require.Greater(t, length, 1.2)
	}
}
