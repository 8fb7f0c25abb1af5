package engine

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
)

// TestABackendErrorIsFinal fails a step while requests run and wait: each gets the cause, and so does everyone after.
func TestABackendErrorIsFinal(t *testing.T) {
	fault := errors.New("an illegal memory access was encountered")
	for _, where := range []string{"launch", "wait"} {
		t.Run(where, func(t *testing.T) {
			e := openFake(t, DefaultOptions(), fakeInfo(), func(b *fakebackend.Backend) {
				fail := func(step backend.StepID) error {
					if step == 9 {
						return fault
					}
					return nil
				}
				if where == "launch" {
					b.FailLaunch = fail
				} else {
					b.FailWait = fail
				}
			})
			results := make(chan error)
			for i := range int32(8) {
				go func() {
					out, err := e.Generate(context.Background(), request([]int32{1 + i}, 100))
					if out != nil && out.Finish != FinishAbort {
						err = errors.Join(err, errors.New("finish "+string(out.Finish)))
					}
					results <- err
				}()
			}
			for range 8 {
				require.ErrorIs(t, <-results, fault)
			}
			require.ErrorIs(t, e.Err(), fault)
			require.False(t, e.Stats().Healthy)
			st := e.Stats()
			require.Zero(t, st.Running+st.Waiting+st.StepsInFlight)
			require.Zero(t, st.UsedPages+st.CachedPages, "no request holds a page any more")
			_, err := e.Generate(context.Background(), request([]int32{1}, 1))
			require.ErrorIs(t, err, fault)
			require.ErrorIs(t, e.FlushCache(), fault)
			_, err = e.StaticBatch([][]int32{{1}}, 1, 0)
			require.ErrorIs(t, err, fault)
		})
	}
}

// TestARequestOnItsWayWhenTheDeviceFails was accepted before the failure was known and reaches the loop after it.
func TestARequestOnItsWayWhenTheDeviceFails(t *testing.T) {
	fault := errors.New("an illegal memory access was encountered")
	e := openFake(t, DefaultOptions(), fakeInfo(), func(b *fakebackend.Backend) {
		b.FailWait = func(backend.StepID) error { return fault }
	})
	r := request([]int32{1}, 5)
	_, err := e.Generate(context.Background(), r)
	require.ErrorIs(t, err, fault)
	s := &stream{wake: make(chan struct{}, 1)}
	s.req = e.schedulerRequest(&r, r.InputIDs, 99)
	s.req.Owner = s
	require.True(t, e.loop.post(message{kind: addRequest, stream: s}))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var f feed
	require.NoError(t, s.take(ctx, &f, true))
	require.True(t, f.ended)
	require.ErrorIs(t, f.err, fault)
}

func TestLogitsThatAreNotFiniteEndOneRequest(t *testing.T) {
	poisoned := fakebackend.Extend(fakebackend.Extend(0, 7), 7)
	e := openFake(t, DefaultOptions(), fakeInfo(), func(b *fakebackend.Backend) {
		b.Poison = func(chain uint64) bool { return chain == poisoned }
	})
	out, err := e.Generate(context.Background(), request([]int32{7, 7}, 10))
	require.ErrorIs(t, err, ErrNonFinite)
	require.Empty(t, out.TokenIDs)
	_, err = e.Generate(context.Background(), request([]int32{7, 8}, 10))
	require.NoError(t, err)
	settled(t, e)
}

func TestAFullQueueRefuses(t *testing.T) {
	g := make(gate)
	o := DefaultOptions()
	o.MaxQueuedRequests = 2
	e := openFake(t, o, fakeInfo(), g.hold)
	results := make(chan error, 20)
	for i := range int32(20) {
		go func() {
			_, err := e.Generate(context.Background(), request([]int32{1 + i}, 3))
			results <- err
		}()
	}
	close(g)
	refused := 0
	for range 20 {
		if err := <-results; err != nil {
			require.ErrorIs(t, err, ErrQueueFull)
			refused++
		}
	}
	require.Equal(t, uint64(20-refused), e.Stats().FinishedTotal[FinishLength])

	// One by one nobody is refused.
	for range 5 {
		_, err := e.Generate(context.Background(), request([]int32{1}, 1))
		require.NoError(t, err)
	}
}

func TestABusyEngineDoesNotRunABatch(t *testing.T) {
	g := make(gate)
	e := openFake(t, DefaultOptions(), fakeInfo(), g.hold)
	done := make(chan error)
	go func() {
		_, err := e.Generate(context.Background(), request([]int32{1}, 5))
		done <- err
	}()
	g <- struct{}{}
	busy := make(chan error)
	go func() { busy <- e.FlushCache() }()
	go func() {
		_, err := e.StaticBatch([][]int32{{1}}, 1, 0)
		busy <- err
	}()
	go func() {
		for range 4 {
			g <- struct{}{}
		}
		close(g)
	}()
	first, second := <-busy, <-busy
	require.NoError(t, <-done)
	for _, err := range []error{first, second} {
		if err != nil { // it may have come after the request's last token
			require.ErrorIs(t, err, ErrBusy)
		}
	}
	require.NoError(t, e.FlushCache())
}

func TestStaticBatchOnTheFake(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	_, err := e.Generate(context.Background(), request(slices.Repeat([]int32{5}, 20), 5)) // leaves pages in the cache
	require.NoError(t, err)
	prompts := [][]int32{slices.Repeat([]int32{1}, 21), slices.Repeat([]int32{2}, 21), slices.Repeat([]int32{3}, 21)}
	for name, run := range map[string]func([][]int32, int, int) (*StaticRun, error){
		"awaited": e.StaticBatch, "overlapped": e.StaticBatchOverlapped,
	} {
		for _, chunk := range []int{0, 1, 4, 21, 100} {
			got, err := run(prompts, 12, chunk)
			require.NoError(t, err, name)
			require.Len(t, got.Decode, 11)
			require.Zero(t, got.NonFinite)
			require.Positive(t, got.Prefill)
			for row, prompt := range prompts {
				require.Equal(t, fakebackend.Continue(prompt, 12, len(pieces), nil), got.Tokens[row], "%s, chunk %d, row %d", name, chunk, row)
			}
			switch chunk {
			case 1:
				require.Equal(t, 21, got.PrefillSteps)
			case 0, 21, 100:
				require.Equal(t, 2, got.PrefillSteps, "63 tokens in steps of 32")
			}
		}
	}
	one, err := e.StaticBatch(prompts, 1, 0)
	require.NoError(t, err)
	require.Empty(t, one.Decode)
	out, err := e.Generate(context.Background(), request(slices.Repeat([]int32{5}, 20), 5))
	require.NoError(t, err, "the cache must not offer pages that the batch wrote")
	require.Zero(t, out.CachedTokens)
}

func TestStaticNeeds(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	require.NoError(t, e.StaticNeed(4, 100, 17).Err())
	for what, n := range map[string][3]int{
		"rows": {5, 4, 4}, "tokens of context": {1, 150, 51}, "KV pages": {4, 100, 22},
	} {
		err := e.StaticNeed(n[0], n[1], n[2]).Err()
		var capacity *CapacityError
		require.ErrorAs(t, err, &capacity, what)
		require.Equal(t, what, capacity.What)
		require.Greater(t, capacity.Need, capacity.Have)
		prompts := make([][]int32, n[0])
		for i := range prompts {
			prompts[i] = slices.Repeat([]int32{1}, n[1])
		}
		_, err = e.StaticBatch(prompts, n[2], 0)
		require.ErrorAs(t, err, &capacity, what)
	}
	for name, call := range map[string]func() (*StaticRun, error){
		"no prompts":      func() (*StaticRun, error) { return e.StaticBatch(nil, 1, 0) },
		"empty prompt":    func() (*StaticRun, error) { return e.StaticBatch([][]int32{{}}, 1, 0) },
		"unequal":         func() (*StaticRun, error) { return e.StaticBatch([][]int32{{1}, {1, 2}}, 1, 0) },
		"no output":       func() (*StaticRun, error) { return e.StaticBatch([][]int32{{1}}, 0, 0) },
		"negative output": func() (*StaticRun, error) { return e.StaticBatch([][]int32{{1}}, -3, 0) },
		"negative chunk":  func() (*StaticRun, error) { return e.StaticBatch([][]int32{{1}}, 1, -1) },
		"bad token":       func() (*StaticRun, error) { return e.StaticBatch([][]int32{{9999}}, 1, 0) },
	} {
		_, err := call()
		var bad *RequestError
		require.ErrorAs(t, err, &bad, name)
	}
}

func TestBadRequests(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	nan := float32(math.NaN())
	for name, c := range map[string]struct {
		field string
		spoil func(*Request)
	}{
		"no prompt":            {"prompt", func(r *Request) { r.InputIDs = nil }},
		"two prompts":          {"prompt", func(r *Request) { r.Prompt = "a" }},
		"id beyond vocabulary": {"input_ids", func(r *Request) { r.InputIDs = []int32{1, int32(len(pieces))} }},
		"negative id":          {"input_ids", func(r *Request) { r.InputIDs = []int32{-1} }},
		"negative max":         {"max_new_tokens", func(r *Request) { r.Sampling.MaxNewTokens = -1 }},
		"negative min":         {"min_new_tokens", func(r *Request) { r.Sampling.MinNewTokens = -1 }},
		"min above max":        {"min_new_tokens", func(r *Request) { r.Sampling.MinNewTokens = 6 }},
		"NaN temperature":      {"temperature", func(r *Request) { r.Sampling.Temperature = nan }},
		"negative temperature": {"temperature", func(r *Request) { r.Sampling.Temperature = -0.1 }},
		"infinite temperature": {"temperature", func(r *Request) { r.Sampling.Temperature = float32(math.Inf(1)) }},
		"top_p of 0":           {"top_p", func(r *Request) { r.Sampling.TopP = 0 }},
		"top_p above 1":        {"top_p", func(r *Request) { r.Sampling.TopP = 1.01 }},
		"NaN top_p":            {"top_p", func(r *Request) { r.Sampling.TopP = nan }},
		"negative top_k":       {"top_k", func(r *Request) { r.Sampling.TopK = -1 }},
		"min_p above 1":        {"min_p", func(r *Request) { r.Sampling.MinP = 1.5 }},
		"no penalty":           {"repetition_penalty", func(r *Request) { r.Sampling.RepetitionPenalty = 0 }},
		"presence penalty":     {"presence_penalty", func(r *Request) { r.Sampling.PresencePenalty = 2.5 }},
		"frequency penalty":    {"frequency_penalty", func(r *Request) { r.Sampling.FrequencyPenalty = nan }},
		"too many stops":       {"stop", func(r *Request) { r.Sampling.Stop = slices.Repeat([]string{"a"}, 17) }},
		"empty stop":           {"stop", func(r *Request) { r.Sampling.Stop = []string{""} }},
		"long stop":            {"stop", func(r *Request) { r.Sampling.Stop = []string{strings.Repeat("a", 600)} }},
		"broken stop":          {"stop", func(r *Request) { r.Sampling.Stop = []string{"\xff"} }},
		"stop id":              {"stop_token_ids", func(r *Request) { r.Sampling.StopTokenIDs = []int32{-4} }},
		"too many stop ids":    {"stop_token_ids", func(r *Request) { r.Sampling.StopTokenIDs = make([]int32, 65) }},
		"bias of no token":     {"logit_bias", func(r *Request) { r.Sampling.LogitBias = map[int32]float32{999: 1} }},
		"NaN bias":             {"logit_bias", func(r *Request) { r.Sampling.LogitBias = map[int32]float32{1: nan} }},
		"top logprobs":         {"top_logprobs", func(r *Request) { r.Sampling.TopLogProbs = 21 }},
		"two grammars":         {"regex", func(r *Request) { r.Sampling.Regex, r.Sampling.JSONSchema = "a", "{}" }},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			r := request([]int32{1, 2}, 5)
			c.spoil(&r)
			out, err := e.Generate(context.Background(), r)
			var bad *RequestError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, c.field, bad.Field)
			require.NotContains(t, err.Error(), "\n")
			require.Nil(t, out)
		})
	}
	long := request(slices.Repeat([]int32{1}, 200), 1)
	_, err := e.Generate(context.Background(), long)
	var context_ *ContextError
	require.ErrorAs(t, err, &context_)
	require.Equal(t, ContextError{200, 199}, *context_)
	long.InputIDs = long.InputIDs[:199]
	long.Sampling.MaxNewTokens = 50
	out, err := e.Generate(context.Background(), long)
	require.NoError(t, err)
	require.Equal(t, FinishLength, out.Finish)
	require.Len(t, out.TokenIDs, 1, "the context is full")

	e.tokenizer = nil
	for field, r := range map[string]Request{
		"prompt": {Prompt: "a", Sampling: DefaultSampling(1)},
		"stop":   {InputIDs: []int32{1}, Sampling: Sampling{MaxNewTokens: 1, TopP: 1, RepetitionPenalty: 1, Stop: []string{"a"}}},
	} {
		_, err := e.Generate(context.Background(), r)
		var bad *RequestError
		require.ErrorAs(t, err, &bad)
		require.Equal(t, field, bad.Field)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = e.Generate(ended, request([]int32{1}, 1))
	require.ErrorIs(t, err, context.Canceled)
}
