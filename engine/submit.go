package engine

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/kvcache"
	"github.com/tokamak-engine/tokamak/engine/scheduler"
	"github.com/tokamak-engine/tokamak/engine/speculate"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// submit checks r, tokenises it and hands it to the loop, all in the caller's goroutine.
func (e *Engine) submit(ctx context.Context, r *Request, each bool) (*stream, error) {
	arrived := e.loop.now()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err := e.Err(); err != nil {
		return nil, err
	}
	if err := e.check(r); err != nil {
		return nil, err
	}
	prompt, err := e.promptTokens(r)
	if err != nil {
		return nil, err
	}
	s := &stream{
		number: e.requests.Add(1), id: r.ID, arrived: arrived, each: each, wake: make(chan struct{}, 1),
	}
	s.req = e.schedulerRequest(r, prompt, s.number)
	s.req.Owner = s
	if s.constraint, err = e.newConstraint(r, s.req.MinMask); err != nil {
		return nil, err
	}
	s.req.Constrained = s.constraint != nil
	if e.options.speculates() && !s.req.Constrained && !s.req.HasPenalty() {
		s.req.Guesses = e.newGuesser(prompt)
	}
	if s.id == "" {
		s.id = fmt.Sprintf("request-%d", s.number)
	}
	e.mu.Lock()
	if e.live[s.id] != nil {
		e.mu.Unlock()
		return nil, &RequestError{"id", fmt.Sprintf("%q is running already: want another, or none", s.id)}
	}
	e.live[s.id] = s
	// Under the lock: an Abort that finds the request must reach the loop after it.
	posted := e.loop.post(message{kind: addRequest, stream: s})
	e.mu.Unlock()
	if !posted {
		e.forget(s, ErrClosed)
		return nil, ErrClosed
	}
	return s, nil
}

// newGuesser is what guesses how a request goes on.
func (e *Engine) newGuesser(prompt []int32) speculate.Guesser {
	if e.options.SpeculativeAlgorithm == eagle3 {
		return speculate.NewHead(len(prompt))
	}
	return speculate.NewSequence(speculate.Match{Min: e.options.SpeculativeNgramMin, Max: e.options.SpeculativeNgramMax}, prompt)
}

// promptTokens returns r's prompt as tokens that the model knows and has room for.
func (e *Engine) promptTokens(r *Request) ([]int32, error) {
	field, prompt := "input_ids", slices.Clone(r.InputIDs)
	if len(prompt) == 0 {
		mark := trace.Begin("tokenize", trace.Request)
		field, prompt = "prompt", e.tokenizer.Encode(r.Prompt, true)
		mark.End()
	}
	if len(prompt) == 0 {
		return nil, &RequestError{field, "has no tokens: want at least one"}
	}
	limit := e.limit
	if r.Sampling.MaxNewTokens > 0 {
		limit-- // one must be left to sample
	}
	if len(prompt) > limit {
		return nil, &ContextError{PromptTokens: len(prompt), Limit: limit}
	}
	if i := slices.IndexFunc(prompt, func(t int32) bool { return t < 0 || int(t) >= e.info.VocabSize }); i >= 0 {
		return nil, &RequestError{field, fmt.Sprintf("token %d at index %d is outside the vocabulary: want 0..%d", prompt[i], i, e.info.VocabSize-1)}
	}
	return prompt, nil
}

func (e *Engine) schedulerRequest(r *Request, prompt []int32, number uint64) scheduler.Request {
	p := &r.Sampling
	stop := slices.Clone(p.StopTokenIDs)
	if !p.IgnoreEOS {
		stop = append(stop, e.eos...)
	}
	q := scheduler.Request{
		Prompt: prompt,
		Sampling: backend.Sampling{
			Temperature: p.Temperature, TopK: p.TopK, TopP: p.TopP, MinP: p.MinP,
			RepetitionPenalty: p.RepetitionPenalty, PresencePenalty: p.PresencePenalty, FrequencyPenalty: p.FrequencyPenalty,
			Seed: e.seed(p.Seed, number), LogProbs: p.LogProbs || p.TopLogProbs > 0, TopLogProbs: p.TopLogProbs,
		},
		MaxNewTokens: min(p.MaxNewTokens, e.limit-len(prompt)), MinNewTokens: p.MinNewTokens,
		StopTokens: stop, Salt: saltOf(r.CacheSalt), PromptLogProbs: r.PromptLogProbs,
	}
	for _, token := range slices.Sorted(maps.Keys(p.LogitBias)) {
		q.Sampling.Bias = append(q.Sampling.Bias, backend.TokenBias{Token: token, Bias: p.LogitBias[token]})
	}
	if p.MinNewTokens > 0 && len(stop) > 0 {
		q.MinMask = maskWithout(e.info.VocabSize, stop)
	}
	return q
}

// seed is the request's own, or one drawn from the engine's by the request's number.
func (e *Engine) seed(own *uint64, number uint64) uint64 {
	if own != nil {
		return *own
	}
	h := uint64(e.options.RandomSeed) + number*0x9E3779B97F4A7C15
	h = (h ^ h>>30) * 0xBF58476D1CE4E5B9
	h = (h ^ h>>27) * 0x94D049BB133111EB
	return h ^ h>>31
}

// saltOf condenses a salt; two salts collide as seldom as half a SHA-256.
func saltOf(salt string) kvcache.Salt {
	if salt == "" {
		return kvcache.Salt{}
	}
	h := sha256.Sum256([]byte(salt))
	return kvcache.Salt{binary.LittleEndian.Uint64(h[:]), binary.LittleEndian.Uint64(h[8:])}
}

// maskWithout allows all tokens but these.
func maskWithout(vocab int, tokens []int32) []uint32 {
	mask := make([]uint32, (vocab+31)/32)
	for i := range mask {
		mask[i] = ^uint32(0)
	}
	for _, t := range tokens {
		if int(t) < vocab {
			mask[t/32] &^= 1 << (t % 32)
		}
	}
	return mask
}
