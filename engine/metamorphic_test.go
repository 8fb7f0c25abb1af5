package engine

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// tinyOptions runs the built-in model of two layers, weights from a seed, on the CPU.
func tinyOptions() Options {
	o := DefaultOptions()
	o.LoadFormat, o.Device, o.Threads = "dummy", "cpu", 1
	o.ContextLength, o.MaxTotalTokens = 256, 8192
	return o
}

func openTiny(t testing.TB, o Options) *Engine {
	dir, err := configs.Dir("tiny")
	require.NoError(t, err)
	e, err := Open(context.Background(), dir, WithOptions(o))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, e.Close()) })
	return e
}

// crowd is a set of requests that meet each other in every way: shared prefixes, short and long, greedy and drawn, with
// penalties that make even a tiny model's text varied.
func crowd() []Request {
	var rs []Request
	system := make([]int32, 40)
	for i := range system {
		system[i] = int32(100 + i*37%1500)
	}
	for i := range 14 {
		prompt := slices.Clone(system[:i*3])
		for k := range 1 + i*5%23 {
			prompt = append(prompt, int32(5+(i*31+k*17)%1900))
		}
		r := Request{InputIDs: prompt, Sampling: DefaultSampling(6 + i*7%30)}
		r.Sampling.IgnoreEOS = true
		r.Sampling.RepetitionPenalty = 1.3
		switch i % 4 {
		case 1:
			r.Sampling.FrequencyPenalty, r.Sampling.PresencePenalty = 0.7, 0.3
		case 2:
			seed := uint64(i)
			r.Sampling.Temperature, r.Sampling.TopK, r.Sampling.Seed = 1.1, 50, &seed
		case 3:
			r.Sampling.MinNewTokens, r.Sampling.StopTokenIDs = 4, []int32{7, 8, 9}
		}
		rs = append(rs, r)
	}
	return rs
}

// aloneOn returns what each request gets with the engine to itself.
func aloneOn(t *testing.T, requests []Request) [][]int32 {
	o := tinyOptions()
	o.DisableOverlap, o.DisableRadixCache = true, true
	e := openTiny(t, o)
	alone := make([][]int32, len(requests))
	varied := map[int32]bool{}
	for i, r := range requests {
		out, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		alone[i] = out.TokenIDs
		for _, token := range out.TokenIDs {
			varied[token] = true
		}
	}
	require.Greater(t, len(varied), 40, "a model that says one word proves nothing")
	return alone
}

// together runs the requests all at once, twice: the second time finds their prompts cached.
func together(t *testing.T, e *Engine, requests []Request, alone [][]int32) {
	for round := range 2 {
		var wg sync.WaitGroup
		for i, r := range requests {
			wg.Go(func() {
				out, err := e.Generate(context.Background(), r)
				if err != nil || !slices.Equal(alone[i], out.TokenIDs) {
					t.Errorf("round %d, request %d: %v\nalone %v\nhere  %+v", round, i, err, alone[i], out)
				}
			})
		}
		wg.Wait()
	}
}

// TestNothingChangesTheTokens runs the same requests under many option sets, all at once, and compares each with the tokens it
// gets alone. The CPU's arithmetic does not depend on batch mates, so they must be equal.
func TestNothingChangesTheTokens(t *testing.T) {
	requests := crowd()
	alone := aloneOn(t, requests)
	for name, c := range map[string]struct {
		set        func(*Options)
		preemption bool
		cached     bool
	}{
		"defaults":           {set: func(*Options) {}, cached: true},
		"no overlap":         {set: func(o *Options) { o.DisableOverlap = true }, cached: true},
		"no cache":           {set: func(o *Options) { o.DisableRadixCache = true }},
		"chunks of 1":        {set: func(o *Options) { o.ChunkedPrefillSize = 1 }, cached: true},
		"chunks of 7":        {set: func(o *Options) { o.ChunkedPrefillSize = 7 }, cached: true},
		"no chunks":          {set: func(o *Options) { o.ChunkedPrefillSize = -1 }, cached: true},
		"two rows":           {set: func(o *Options) { o.MaxRunningRequests = 2 }, cached: true},
		"steps of 16 tokens": {set: func(o *Options) { o.MaxRunningRequests, o.MaxPrefillTokens = 16, 16 }, cached: true},
		"pages of 1":         {set: func(o *Options) { o.PageSize = 1 }, cached: true},
		"longest prefix":     {set: func(o *Options) { o.SchedulePolicy = "lpm" }, cached: true},
		"few pages":          {set: func(o *Options) { o.PageSize, o.MaxTotalTokens = 4, 150 }, preemption: true, cached: true},
		"few pages, chunks, no overlap": {set: func(o *Options) {
			o.PageSize, o.MaxTotalTokens, o.ChunkedPrefillSize, o.DisableOverlap = 2, 130, 5, true
		}, preemption: true, cached: true},
		"few pages, no cache": {set: func(o *Options) {
			o.PageSize, o.MaxTotalTokens, o.DisableRadixCache = 1, 112, true
		}, preemption: true},
	} {
		t.Run(name, func(t *testing.T) {
			o := tinyOptions()
			c.set(&o)
			e := openTiny(t, o)
			together(t, e, requests, alone)
			// Whether pages run out depends on who happens to run beside whom: try until they do.
			for tries := 0; c.preemption && e.Stats().PreemptionsTotal == 0 && tries < 30; tries++ {
				together(t, e, requests, alone)
			}
			s := e.Stats()
			require.Equal(t, c.preemption, s.PreemptionsTotal > 0, "%d preemptions", s.PreemptionsTotal)
			require.Equal(t, c.cached, s.CachedTokensTotal > 0, "%d cached tokens", s.CachedTokensTotal)
		})
	}
}

// TestPromptLogProbsDoNotDependOnChunks compares prompt log probabilities of a prompt in one piece and in chunks.
func TestPromptLogProbsDoNotDependOnChunks(t *testing.T) {
	r := crowd()[13]
	r.PromptLogProbs = true
	r.Sampling.TopLogProbs = 2
	var first *Output
	for _, chunk := range []int{-1, 1, 6} {
		o := tinyOptions()
		o.ChunkedPrefillSize = chunk
		e := openTiny(t, o)
		for range 2 {
			out, err := e.Generate(context.Background(), r)
			require.NoError(t, err)
			require.Len(t, out.PromptLogProbs, len(r.InputIDs)-1)
			require.Len(t, out.LogProbs, len(out.TokenIDs))
			for _, p := range append(slices.Clone(out.PromptLogProbs), out.LogProbs...) {
				require.Less(t, p.LogProb, float32(0))
				require.Greater(t, p.LogProb, float32(-40))
			}
			if first == nil {
				first = out
			}
			require.Equal(t, first.PromptLogProbs, out.PromptLogProbs)
			require.Equal(t, first.LogProbs, out.LogProbs)
		}
	}
}

// TestStaticBatchGivesTheSameTokens compares OneBatch's way with the scheduler's.
func TestStaticBatchGivesTheSameTokens(t *testing.T) {
	e := openTiny(t, tinyOptions())
	prompts := make([][]int32, 5)
	want := make([][]int32, len(prompts))
	for i := range prompts {
		for k := range 33 {
			prompts[i] = append(prompts[i], int32((i*977+k*131)%2048))
		}
		r := Request{InputIDs: prompts[i], Sampling: DefaultSampling(9)}
		r.Sampling.IgnoreEOS = true
		out, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		want[i] = out.TokenIDs
	}
	for _, chunk := range []int{0, 5, 33} {
		run, err := e.StaticBatch(prompts, 9, chunk)
		require.NoError(t, err)
		require.Equal(t, want, run.Tokens, fmt.Sprintf("chunk %d", chunk))
		run, err = e.StaticBatchOverlapped(prompts, 9, chunk)
		require.NoError(t, err)
		require.Equal(t, want, run.Tokens, fmt.Sprintf("chunk %d, overlapped", chunk))
	}
}

// TestSeeds: requests without a seed differ from each other and repeat with the engine's; a seed of their own decides alone.
func TestSeeds(t *testing.T) {
	r := Request{InputIDs: []int32{5, 6, 7}, Sampling: DefaultSampling(12)}
	r.Sampling.IgnoreEOS, r.Sampling.Temperature = true, 1.5
	var runs [2][3][]int32
	for i := range runs {
		e := openTiny(t, tinyOptions())
		for k := range runs[i] {
			out, err := e.Generate(context.Background(), r)
			require.NoError(t, err)
			runs[i][k] = out.TokenIDs
		}
	}
	require.Equal(t, runs[0], runs[1])
	require.NotEqual(t, runs[0][0], runs[0][1])
	require.NotEqual(t, runs[0][1], runs[0][2])

	o := tinyOptions()
	o.RandomSeed = 7
	e := openTiny(t, o)
	out, err := e.Generate(context.Background(), r)
	require.NoError(t, err)
	require.NotEqual(t, runs[0][0], out.TokenIDs)
	seed := uint64(99)
	r.Sampling.Seed = &seed
	first, err := e.Generate(context.Background(), r)
	require.NoError(t, err)
	second, err := openTiny(t, tinyOptions()).Generate(context.Background(), r)
	require.NoError(t, err)
	require.Equal(t, first.TokenIDs, second.TokenIDs)
}

var optionsSeed = flag.Uint64("options.seed", 0, "first seed of TestRandomOptionSets; 0 draws one")

// TestRandomOptionSets is TestNothingChangesTheTokens with options that nobody thought of.
//
//	go test ./engine -run TestRandomOptionSets -options.seed 17
func TestRandomOptionSets(t *testing.T) {
	requests := crowd()
	alone := aloneOn(t, requests)
	first := *optionsSeed
	if first == 0 {
		first = 1 + rand.Uint64N(1_000_000)
	}
	sets := uint64(6)
	if testing.Short() {
		sets = 2
	}
	for seed := first; seed < first+sets; seed++ {
		rng := rand.New(rand.NewPCG(seed, 0))
		o := tinyOptions()
		o.PageSize = 1 + rng.IntN(20)
		o.MaxTotalTokens = 112 + rng.IntN(600)
		o.MaxRunningRequests = 1 + rng.IntN(16)
		o.ChunkedPrefillSize = []int{-1, 0, 1 + rng.IntN(40)}[rng.IntN(3)]
		if o.ChunkedPrefillSize >= 0 {
			o.MaxMixedTokens = []int{0, 1, 5, 20}[rng.IntN(4)]
		}
		o.MaxPrefillTokens = []int{0, o.MaxRunningRequests + rng.IntN(50)}[rng.IntN(2)]
		o.SchedulePolicy = []string{"fcfs", "lpm"}[rng.IntN(2)]
		o.DisableOverlap, o.DisableRadixCache, o.Deterministic = rng.IntN(3) == 0, rng.IntN(3) == 0, rng.IntN(2) == 0
		o.Threads = 1 + rng.IntN(2)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			e := openTiny(t, o)
			together(t, e, requests, alone)
			if t.Failed() {
				t.Logf("%+v", o)
			}
		})
	}
}
