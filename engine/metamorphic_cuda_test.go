//go:build cuda

package engine

import (
	"context"
	"errors"
	"math"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// gpuTolerance is how far a token's log probability may move with batch mates, chunks and cached prefixes: weights and
// activations are bfloat16 (8 bits of mantissa, a relative error of 2^-9 each rounding), and the order of additions follows the
// shape of the batch. Where two tokens are closer than this, either may be chosen.
const gpuTolerance = 0.06

// TestOptionsOnTheGPU runs the crowd under several option sets and compares each request with itself alone: log probabilities
// within the tolerance, and tokens equal up to the first near-tie, behind which the two outputs are different texts.
//
//	go test -tags cuda ./engine -run TestOptionsOnTheGPU -v
func TestOptionsOnTheGPU(t *testing.T) {
	requireGPU(t)
	var requests []Request
	for _, r := range crowd() {
		if r.Sampling.Temperature > 0 {
			continue // a draw may land on either side of any border
		}
		r.Sampling.TopLogProbs = 5
		requests = append(requests, r)
	}
	alone := make([]*Output, len(requests))
	e := openTinyOnGPU(t, func(o *Options) { o.DisableOverlap, o.DisableRadixCache = true, true })
	var err error
	for i, r := range requests {
		alone[i], err = e.Generate(context.Background(), r)
		require.NoError(t, err)
	}
	for name, c := range map[string]struct {
		set        func(*Options)
		preemption bool
	}{
		"defaults":   {set: func(*Options) {}},
		"no overlap": {set: func(o *Options) { o.DisableOverlap = true }},
		"no graph":   {set: func(o *Options) { o.DisableCUDAGraph = true }},
		"chunks of 7": {set: func(o *Options) {
			o.ChunkedPrefillSize = 7
		}},
		"pages of 64": {set: func(o *Options) { o.PageSize = 64 }},
		"few pages":   {set: func(o *Options) { o.MaxTotalTokens = 176 }, preemption: true},
	} {
		t.Run(name, func(t *testing.T) {
			e := openTinyOnGPU(t, c.set)
			for round := range 3 {
				var wg sync.WaitGroup
				for i, r := range requests {
					wg.Go(func() {
						out, err := e.Generate(context.Background(), r)
						if err == nil {
							err = sameUpToATie(alone[i], out)
						}
						if err != nil {
							t.Errorf("round %d, request %d: %v\nalone %v\nhere  %v", round, i, err, alone[i].TokenIDs, out.TokenIDs)
						}
					})
				}
				wg.Wait()
			}
			s := e.Stats()
			require.Equal(t, c.preemption, s.PreemptionsTotal > 0, "%d preemptions", s.PreemptionsTotal)
			require.NotZero(t, s.CachedTokensTotal)
		})
	}
}

// TestDeterministicOnTheGPU: with --deterministic a request's tokens and log probabilities are the same bits alone, among others, in
// chunks, behind a cached prefix and after a preemption.
func TestDeterministicOnTheGPU(t *testing.T) {
	requireGPU(t)
	requests := crowd() // draws included
	for i := range requests {
		requests[i].Sampling.TopLogProbs = 3
	}
	e := openTinyOnGPU(t, func(o *Options) { o.Deterministic, o.DisableOverlap, o.DisableRadixCache = true, true, true })
	alone := make([]*Output, len(requests))
	for i, r := range requests {
		var err error
		alone[i], err = e.Generate(context.Background(), r)
		require.NoError(t, err)
	}
	for name, set := range map[string]func(*Options){
		"defaults":    func(*Options) {},
		"chunks of 7": func(o *Options) { o.ChunkedPrefillSize = 7 },
		"few pages":   func(o *Options) { o.MaxTotalTokens = 176 },
	} {
		t.Run(name, func(t *testing.T) {
			e := openTinyOnGPU(t, func(o *Options) { o.Deterministic = true; set(o) })
			for round := range 2 {
				var wg sync.WaitGroup
				for i, r := range requests {
					wg.Go(func() {
						out, err := e.Generate(context.Background(), r)
						switch {
						case err != nil:
							t.Errorf("round %d, request %d: %v", round, i, err)
						case !slices.Equal(alone[i].TokenIDs, out.TokenIDs):
							t.Errorf("round %d, request %d: alone %v, here %v", round, i, alone[i].TokenIDs, out.TokenIDs)
						case !reflect.DeepEqual(alone[i].LogProbs, out.LogProbs):
							t.Errorf("round %d, request %d: the same tokens with other log probabilities", round, i)
						}
					})
				}
				wg.Wait()
			}
		})
	}
}

func requireGPU(t *testing.T) {
	err := cudaAvailable()
	if err == nil {
		return
	}
	if os.Getenv("TOKAMAK_REQUIRE_GPU") == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
}

func openTinyOnGPU(t *testing.T, set func(*Options)) *Engine {
	o := tinyOptions()
	o.Device, o.MaxRunningRequests, o.PageSize = "cuda", 16, 16
	set(&o)
	return openTiny(t, o)
}

func sameUpToATie(a, b *Output) error {
	for i := range min(len(a.TokenIDs), len(b.TokenIDs)) {
		if a.TokenIDs[i] == b.TokenIDs[i] {
			if d := math.Abs(float64(a.LogProbs[i].LogProb - b.LogProbs[i].LogProb)); d > gpuTolerance {
				return errors.New("the log probability of one token moved too far")
			}
			continue
		}
		// Penalties are applied after log probabilities are taken, so a near-tie is one of both outputs' top tokens.
		top := a.LogProbs[i].Top
		if !slices.ContainsFunc(top, func(p TokenLogProb) bool { return p.Token == b.TokenIDs[i] }) {
			return errors.New("another token, and not one of the likeliest")
		}
		return nil
	}
	if len(a.TokenIDs) != len(b.TokenIDs) {
		return errors.New("another length")
	}
	return nil
}
