//go:build cuda

package engine

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
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

// gpuCrowd are the greedy ones of the crowd, whose penalties are such that what they do to a log probability can be told: they are
// subtracted.
func gpuCrowd() []Request {
	var requests []Request
	for _, r := range crowd() {
		if r.Sampling.Temperature > 0 {
			continue // a draw may land on either side of any border
		}
		r.Sampling.RepetitionPenalty, r.Sampling.PresencePenalty, r.Sampling.FrequencyPenalty = 1, 0.5, 0.4
		r.Sampling.TopLogProbs = 20
		requests = append(requests, r)
	}
	return requests
}

// gpuModels are what is merged into the tiny model's config. Where outputs are compared within a tolerance, a token of the mixture takes all
// experts: a choice between two nearly equal ones would fall the other way now and then, and change everything behind it.
var gpuModels = map[string]string{"llama": "{}", "mixture": tinyMixture(4, 4)}

func tinyMixture(experts, perToken int) string {
	return fmt.Sprintf(`{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 64, "moe_intermediate_size": 96, "norm_topk_prob": true,
		"num_experts": %d, "num_experts_per_tok": %d}`, experts, perToken)
}

// aloneOnGPU gives what each request gets with the engine to itself.
func aloneOnGPU(t *testing.T, requests []Request, set func(*Options)) []*Output {
	e := openTinyOnGPU(t, func(o *Options) { o.DisableOverlap, o.DisableRadixCache = true, true; set(o) })
	alone := make([]*Output, len(requests))
	varied := map[int32]bool{}
	for i, r := range requests {
		var err error
		alone[i], err = e.Generate(context.Background(), r)
		require.NoError(t, err)
		for _, token := range alone[i].TokenIDs {
			varied[token] = true
		}
	}
	require.Greater(t, len(varied), 40, "a model that says one word proves nothing")
	return alone
}

// crowded runs the requests all at once and compares each with what it gets alone. It returns how many tokens were compared, and how many
// requests left the comparison at a tie.
func crowded(t *testing.T, e *Engine, requests []Request, alone []*Output, same func(r *Request, a, b *Output) (tokens int, tie bool, err error)) (tokens, ties int) {
	t.Helper()
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range requests {
		wg.Go(func() {
			out, err := e.Generate(context.Background(), requests[i])
			if err != nil {
				t.Errorf("request %d: %v", i, err)
				return
			}
			n, tie, err := same(&requests[i], alone[i], out)
			if err != nil {
				t.Errorf("request %d: %v\nalone %v\nhere  %v", i, err, alone[i].TokenIDs, out.TokenIDs)
			}
			mu.Lock()
			defer mu.Unlock()
			tokens += n
			if tie {
				ties++
			}
		})
	}
	wg.Wait()
	return tokens, ties
}

// TestOptionsOnTheGPU runs the crowd under several option sets, and under random ones, and compares each request with itself alone: log
// probabilities within the tolerance, and tokens equal up to the first near-tie, behind which the two outputs are different texts.
//
//	go test -tags cuda ./engine -run TestOptionsOnTheGPU -v -options.seed 17
func TestOptionsOnTheGPU(t *testing.T) {
	requireGPU(t)
	for name, overrides := range gpuModels {
		t.Run("model="+name, func(t *testing.T) { testOptionsOnTheGPU(t, overrides) })
	}
}

func testOptionsOnTheGPU(t *testing.T, overrides string) {
	requests := gpuCrowd()
	alone := aloneOnGPU(t, requests, func(o *Options) { o.JSONModelOverrides = overrides })
	all := 0
	for _, out := range alone {
		all += len(out.TokenIDs)
	}
	compare := func(t *testing.T, set func(*Options), preemption bool) {
		e := openTinyOnGPU(t, func(o *Options) { o.JSONModelOverrides = overrides; set(o) })
		tokens, ties, rounds := 0, 0, 3
		for round := 0; round < rounds; round++ {
			n, k := crowded(t, e, requests, alone, sameUpToATie)
			tokens, ties = tokens+n, ties+k
			// Whether pages run out depends on who happens to run beside whom: try until they do.
			if round == rounds-1 && preemption && e.Stats().PreemptionsTotal == 0 && rounds < 30 {
				rounds++
			}
		}
		settled(t, e)
		s := e.Stats()
		t.Logf("%d of %d tokens compared, %d of %d requests left at a tie; %d preemptions, %d cached tokens", tokens, rounds*all, ties, rounds*len(requests), s.PreemptionsTotal, s.CachedTokensTotal)
		require.Greater(t, tokens, rounds*all/2, "too many ties to say anything")
		require.True(t, !preemption || s.PreemptionsTotal > 0, "nothing was preempted")
		if t.Failed() {
			t.Logf("%+v", e.Options())
		}
	}
	for name, c := range map[string]struct {
		set        func(*Options)
		preemption bool
	}{
		"defaults":    {set: func(*Options) {}},
		"no overlap":  {set: func(o *Options) { o.DisableOverlap = true }},
		"no cache":    {set: func(o *Options) { o.DisableRadixCache = true }},
		"no graph":    {set: func(o *Options) { o.DisableCUDAGraph = true }},
		"chunks of 1": {set: func(o *Options) { o.ChunkedPrefillSize = 1 }},
		"chunks of 7": {set: func(o *Options) { o.ChunkedPrefillSize = 7 }},
		"two rows":    {set: func(o *Options) { o.MaxRunningRequests = 2 }},
		"pages of 64": {set: func(o *Options) { o.PageSize = 64 }},
		"few pages":   {set: func(o *Options) { o.MaxTotalTokens = 176 }, preemption: true},
	} {
		t.Run(name, func(t *testing.T) { compare(t, c.set, c.preemption) })
	}
	first, sets := *optionsSeed, uint64(8)
	if first == 0 {
		first = 1 + rand.Uint64N(1_000_000)
	}
	for seed := first; seed < first+sets; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			compare(t, func(o *Options) { randomGPUOptions(o, seed) }, false)
		})
	}
}

func randomGPUOptions(o *Options, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	o.PageSize = 16 << rng.IntN(3)
	o.MaxTotalTokens = 192 + rng.IntN(600)
	o.MaxRunningRequests = 1 + rng.IntN(24)
	o.ChunkedPrefillSize = []int{-1, 0, 1 + rng.IntN(40)}[rng.IntN(3)]
	o.MaxPrefillTokens = []int{0, o.MaxRunningRequests + rng.IntN(50)}[rng.IntN(2)]
	o.SchedulePolicy = []string{"fcfs", "lpm"}[rng.IntN(2)]
	o.DisableOverlap, o.DisableRadixCache, o.DisableCUDAGraph, o.Deterministic = rng.IntN(3) == 0, rng.IntN(3) == 0, rng.IntN(3) == 0, rng.IntN(4) == 0
}

// TestDeterministicOnTheGPU: with --deterministic a request's tokens and log probabilities are the same bits alone, among others, in
// chunks, behind a cached prefix and after a preemption.
func TestDeterministicOnTheGPU(t *testing.T) {
	requireGPU(t)
	for name, overrides := range map[string]string{"llama": "{}", "mixture": tinyMixture(8, 2)} {
		t.Run("model="+name, func(t *testing.T) { testDeterministicOnTheGPU(t, overrides) })
	}
}

func testDeterministicOnTheGPU(t *testing.T, overrides string) {
	deterministic := func(o *Options) { o.Deterministic, o.JSONModelOverrides = true, overrides }
	requests := crowd() // draws included
	for i := range requests {
		requests[i].Sampling.TopLogProbs = 3
	}
	alone := aloneOnGPU(t, requests, deterministic)
	equal := func(_ *Request, a, b *Output) (int, bool, error) {
		switch {
		case !slices.Equal(a.TokenIDs, b.TokenIDs):
			return 0, false, errors.New("other tokens")
		case !reflect.DeepEqual(a.LogProbs, b.LogProbs):
			return 0, false, errors.New("the same tokens with other log probabilities")
		}
		return len(b.TokenIDs), false, nil
	}
	for name, c := range map[string]struct {
		set        func(*Options)
		preemption bool
	}{
		"defaults":    {set: func(*Options) {}},
		"chunks of 7": {set: func(o *Options) { o.ChunkedPrefillSize = 7 }},
		"no graph":    {set: func(o *Options) { o.DisableCUDAGraph = true }},
		"few pages":   {set: func(o *Options) { o.MaxTotalTokens = 176 }, preemption: true},
	} {
		t.Run(name, func(t *testing.T) {
			e := openTinyOnGPU(t, func(o *Options) { deterministic(o); c.set(o) })
			for round := 0; round < 3 || c.preemption && e.Stats().PreemptionsTotal == 0 && round < 30; round++ {
				crowded(t, e, requests, alone, equal)
			}
			require.True(t, !c.preemption || e.Stats().PreemptionsTotal > 0, "nothing was preempted")
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

// sameUpToATie compares two outputs of r: log probabilities within the tolerance, and tokens up to the first that differs. There, what is
// greater in one is less in the other, so in either the two lie within what both may have moved.
func sameUpToATie(r *Request, a, b *Output) (tokens int, tie bool, err error) {
	times := map[int32]int{}
	score := func(p TokenLogProb) float64 { // what the sampler chose by, less a constant
		v := float64(p.LogProb) - float64(r.Sampling.FrequencyPenalty)*float64(times[p.Token])
		if times[p.Token] > 0 {
			v -= float64(r.Sampling.PresencePenalty)
		}
		return v
	}
	for i := range min(len(a.TokenIDs), len(b.TokenIDs)) {
		if a.TokenIDs[i] == b.TokenIDs[i] {
			if d := math.Abs(float64(a.LogProbs[i].LogProb - b.LogProbs[i].LogProb)); d > gpuTolerance {
				return i, false, fmt.Errorf("the log probability of token %d moved by %.3f", i, d)
			}
			times[a.TokenIDs[i]]++
			continue
		}
		top := a.LogProbs[i].Top
		at := slices.IndexFunc(top, func(p TokenLogProb) bool { return p.Token == b.TokenIDs[i] })
		if at < 0 {
			return i, false, fmt.Errorf("token %d is another, and not among the likeliest", i)
		}
		if gap := score(a.LogProbs[i]) - score(top[at]); gap > 2*gpuTolerance {
			return i, false, fmt.Errorf("token %d is another, by %.3f less likely", i, gap)
		}
		return i, true, nil
	}
	if len(a.TokenIDs) != len(b.TokenIDs) {
		return 0, false, errors.New("another length")
	}
	return len(a.TokenIDs), false, nil
}
