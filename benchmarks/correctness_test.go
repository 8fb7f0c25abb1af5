package benchmarks

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/tokamak-engine/tokamak/engine"
)

// correctnessPrompts are SGLang's.
var correctnessPrompts = []string{
	"The capital of France is", "The capital of the United Kingdom is", "Today is a sunny day and I like",
}

// tieMargin is the difference of log probabilities below which two tokens count as equally likely on a backend whose order of
// summation depends on the batch: a bfloat16 has 8 bits, so logits near 16 are known to 1/16.
const tieMargin = 1.0 / 16

// checkCorrectness holds that what must not change a greedy token does not: a prompt cut into chunks, batch mates, tokens from
// the prefix cache. It prints each answer, and no row.
func checkCorrectness(b *testing.B) {
	e, err := model.open(openOptions(func(o *engine.Options) { o.DisableRadixCache = false }))
	if err != nil {
		b.Fatal(err)
	}
	for i, prompt := range correctnessInputs(e) {
		out := set.outputLen.values[0]
		if err := e.StaticNeed(len(correctnessPrompts), len(prompt), out).Err(); err != nil {
			b.Fatal(err)
		}
		if err := compareRuns(e, prompt, out, min(set.cutLen, len(prompt))); err != nil {
			b.Errorf("prompt %d: %v", i, err)
		}
	}
}

// correctnessInputs are the prompts as ids, each repeated to fill pages; random ids if there is no tokenizer.
func correctnessInputs(e *engine.Engine) [][]int32 {
	if e.Tokenizer() == nil {
		return makePrompts(nil, len(correctnessPrompts), 4*e.Info().PageSize+3, e.Info().VocabSize, uint64(set.datasetSeed))
	}
	var prompts [][]int32
	for _, text := range correctnessPrompts {
		ids := e.Tokenizer().Encode(text, true)
		// Long enough to fill two KV pages, so that there is a prefix to be cached, if the context allows.
		times := min(2*e.Info().PageSize, e.Info().MaxContext/2)/len(ids) + 1
		long := slices.Repeat(ids, times)
		prompts = append(prompts, long)
	}
	return prompts
}

// compareRuns generates out tokens of prompt in each way and compares them with the plain one: alone, uncached, one chunk.
func compareRuns(e *engine.Engine, prompt []int32, out, cut int) error {
	plain, err := e.StaticBatch([][]int32{prompt}, out, 0)
	if err != nil {
		return err
	}
	if plain.NonFinite > 0 {
		return fmt.Errorf("%d logits are not finite", plain.NonFinite)
	}
	want := plain.Tokens[0]
	static := func(batch, chunk int, run staticBatch) func() ([]int32, error) {
		return func() ([]int32, error) {
			prompts := makePrompts(nil, batch, len(prompt), e.Info().VocabSize, 7)
			prompts[batch-1] = prompt
			r, err := run(prompts, out, chunk)
			if err != nil {
				return nil, err
			}
			return r.Tokens[batch-1], nil
		}
	}
	generate := func(wantCached bool) func() ([]int32, error) {
		return func() ([]int32, error) {
			r := engine.Request{InputIDs: prompt, Sampling: engine.DefaultSampling(out)}
			r.Sampling.IgnoreEOS = true
			o, err := e.Generate(context.Background(), r)
			if err != nil {
				return nil, err
			}
			if cached := o.CachedTokens > 0; cached != wantCached {
				return nil, fmt.Errorf("%d tokens came from the prefix cache", o.CachedTokens)
			}
			return o.TokenIDs, nil
		}
	}
	if err := e.FlushCache(); err != nil {
		return err
	}
	mayHit := len(prompt) > e.Info().PageSize
	for _, way := range []struct {
		name string
		run  func() ([]int32, error)
	}{
		{fmt.Sprintf("chunks of %d tokens", cut), static(1, cut, e.StaticBatch)},
		{"with two batch mates", static(len(correctnessPrompts), 0, e.StaticBatch)},
		{"with steps launched ahead", static(1, 0, e.StaticBatchOverlapped)},
		{"through the scheduler, nothing cached", generate(false)},
		{"through the scheduler, prefix cached", generate(mayHit)},
	} {
		got, err := way.run()
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		if err := sameTokens(e, prompt, want, got); err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
	}
	if t := e.Tokenizer(); t != nil {
		term.note("the same in 5 ways: %q", t.Decode(want, false))
	} else {
		term.note("the same in 5 ways: %v", want)
	}
	return nil
}

// sameTokens compares greedy tokens. On the CPU they are the same, full stop; elsewhere the first difference is excused if the
// model finds the two tokens equally likely.
func sameTokens(e *engine.Engine, prompt, want, got []int32) error {
	if slices.Equal(want, got) {
		return nil
	}
	if len(want) != len(got) {
		return fmt.Errorf("%d tokens, want %d", len(got), len(want))
	}
	at := 0
	for want[at] == got[at] {
		at++
	}
	different := fmt.Errorf("token %d is %d, want %d (%v, want %v)", at, got[at], want[at], got, want)
	if e.Info().Name == "cpu" || e.Options().Deterministic {
		return different
	}
	r := engine.Request{InputIDs: slices.Concat(prompt, want[:at]), Sampling: engine.DefaultSampling(1)}
	r.Sampling.LogProbs, r.Sampling.TopLogProbs, r.Sampling.IgnoreEOS = true, 5, true
	o, err := e.Generate(context.Background(), r)
	if err != nil {
		return err
	}
	logProb := map[int32]float32{}
	for _, t := range o.LogProbs[0].Top {
		logProb[t.Token] = t.LogProb
	}
	a, hasA := logProb[want[at]]
	g, hasG := logProb[got[at]]
	if !hasA || !hasG || max(a-g, g-a) > tieMargin {
		return different
	}
	term.note("token %d: %d and %d are equally likely (%.4f, %.4f)", at, want[at], got[at], a, g)
	return nil
}
