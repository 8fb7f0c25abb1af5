package load

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/tidwall/gjson"

	"github.com/tokamak-engine/tokamak/benchmarks/load/stub"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

func startStub(t testing.TB, script func(int, *stub.Request) stub.Reply) *stub.Server {
	s, err := stub.Start("", true, script)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func client(t testing.TB, kind, url string) *Client {
	c := &Client{
		Kind: FindKind(kind), BaseURL: url, Sampling: Sampling{Model: "stub", TopP: 1, IgnoreEOS: true, Stream: true},
		Decode: func(ids []int32) string { return strings.TrimSpace(strings.Repeat("w ", len(ids))) },
	}
	t.Cleanup(c.Close)
	return c
}

// samples makes n prompts of in ids with out tokens to generate.
func samples(n, in, out int) []datasets.Sample {
	all := make([]datasets.Sample, n)
	for i := range all {
		all[i] = datasets.Sample{IDs: make([]int32, in), OutputLen: out}
	}
	return all
}

func atOnce() Arrivals { return Arrivals{Rate: math.Inf(1), Burstiness: 1} }

func run(t testing.TB, cfg Config, s []datasets.Sample) *Report {
	report, err := Run(context.Background(), cfg, s)
	require.NoError(t, err)
	return report
}

// TestKinds holds, for each kind of server, the route, the body that is sent and what is made of the answer.
func TestKinds(t *testing.T) {
	ids := `[0,0,0]`
	chat := `[{"role":"user","content":"w w w"}]`
	usage := `"stream":true,"stream_options":{"continuous_usage_stats":true,"include_usage":true},"temperature":0`
	strict := `"stream":true,"stream_options":{"include_usage":true},"temperature":0`
	native := `{"input_ids":` + ids + `,"sampling_params":{"ignore_eos":true,"max_new_tokens":6,"temperature":0},"stream":true}`
	delta := strings.Replace(native, `"stream":true`, `"stream":true,"stream_mode":"delta"`, 1)
	oai := `{"ignore_eos":true,"max_tokens":6,"model":"stub","prompt":` + ids + `,` + usage + `}`
	oaiChat := `{"ignore_eos":true,"max_completion_tokens":6,"messages":` + chat + `,"model":"stub",` + usage + `}`
	for _, test := range []struct {
		kind, path, body string
		cached           bool // tells cached tokens
	}{
		{"tokamak", "/generate", delta, true},
		{"tokamak-chat", "/v1/chat/completions", oaiChat, true},
		{"sglang", "/generate", native, true},
		{"sglang-oai", "/v1/completions", oai, true},
		{"sglang-oai-chat", "/v1/chat/completions", oaiChat, true},
		{"vllm", "/v1/completions", oai, true},
		{"vllm-chat", "/v1/chat/completions", oaiChat, true},
		{"openai", "/v1/completions", `{"max_tokens":6,"model":"stub","prompt":` + ids + `,` + strict + `}`, true},
		{"openai-chat", "/v1/chat/completions", `{"max_completion_tokens":6,"messages":` + chat + `,"model":"stub",` + strict + `}`, true},
		{"llama.cpp", "/completion", `{"cache_prompt":true,"ignore_eos":true,"n_predict":6,"prompt":` + ids + `,"return_tokens":true,"stream":true,"temperature":0,"top_p":1}`, true},
		{"ollama", "/api/generate", `{"model":"stub","options":{"num_predict":6,"temperature":0,"top_p":1},"prompt":"w w w","raw":true,"stream":true}`, false},
		{"trt", "/v2/models/ensemble/generate_stream", `{"accumulate_tokens":false,"max_tokens":6,"min_length":6,"stream":true,"temperature":0,"text_input":"w w w","top_p":1}`, false},
	} {
		for _, stream := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/stream=%v", test.kind, stream), func(t *testing.T) {
				s := startStub(t, func(_ int, r *stub.Request) stub.Reply {
					return stub.Reply{Tokens: r.MaxTokens, CachedTokens: 2}
				})
				c := client(t, test.kind, s.URL)
				c.Sampling.Stream = stream
				report := run(t, Config{Client: c, Arrivals: atOnce(), KeepText: true}, samples(1, 3, 6))
				require.Len(t, report.Results, 1)
				r := report.Results[0]
				require.Nil(t, r.Failure)
				seen := s.Requests()[0]
				assert.Equal(t, test.path, seen.Path)
				if stream {
					assert.Equal(t, test.body, string(seen.Body))
					require.Len(t, r.Chunks, 6)
					for _, chunk := range r.Chunks {
						assert.Equal(t, 1, chunk.Tokens)
					}
				} else {
					assert.False(t, gjson.GetBytes(seen.Body, "stream").Bool())
					assert.Empty(t, r.Chunks)
					_, has := r.TTFT()
					assert.False(t, has, "no stream, no first token")
				}
				assert.Equal(t, 6, r.OutputTokens.N)
				assert.Equal(t, "t t t t t t ", r.Text)
				if test.kind != "trt" {
					assert.Equal(t, Count{3, true}, r.PromptTokens)
				}
				if test.cached {
					assert.Equal(t, Count{2, true}, r.CachedTokens)
				} else {
					assert.False(t, r.CachedTokens.Known)
				}
			})
		}
	}
	assert.Len(t, Kinds(), 12)
}

func TestExtraBodyAndHeaders(t *testing.T) {
	s := startStub(t, nil)
	c := client(t, "tokamak", s.URL)
	c.Header = http.Header{"Authorization": {"Bearer key"}}
	c.Sampling.Extra = map[string]json.RawMessage{"lora_path": json.RawMessage(`"x"`), "sampling_params": json.RawMessage(`{"top_k": 5}`)}
	report := run(t, Config{Client: c, Arrivals: atOnce()}, samples(1, 3, 6))
	require.Nil(t, report.Results[0].Failure)
	seen := s.Requests()[0]
	assert.Equal(t, "Bearer key", seen.Header.Get("Authorization"))
	assert.JSONEq(t, `{"input_ids":[0,0,0],"lora_path":"x","sampling_params":{"ignore_eos":true,"max_new_tokens":6,"temperature":0,"top_k":5},"stream":true,"stream_mode":"delta"}`, string(seen.Body))
}

// TestFailuresByReason: each way to go wrong is named, and none passes as a success.
func TestFailuresByReason(t *testing.T) {
	ok := func(change func(*stub.Reply)) func(int, *stub.Request) stub.Reply {
		return func(_ int, r *stub.Request) stub.Reply {
			reply := stub.Reply{Tokens: r.MaxTokens}
			change(&reply)
			return reply
		}
	}
	for name, test := range map[string]struct {
		script func(int, *stub.Request) stub.Reply
		want   string
	}{
		"busy":             {ok(func(r *stub.Reply) { r.Status = 429 }), "http-429"},
		"broken":           {ok(func(r *stub.Reply) { r.Status = 500 }), "http-500"},
		"error in stream":  {ok(func(r *stub.Reply) { r.Error = "out of memory" }), FailServer},
		"cut":              {ok(func(r *stub.Reply) { r.CutAfter = 2 }), FailTruncated},
		"no end mark":      {ok(func(r *stub.Reply) { r.NoEndMark = true }), FailTruncated},
		"too few tokens":   {ok(func(r *stub.Reply) { r.Tokens-- }), FailOutput},
		"too many tokens":  {ok(func(r *stub.Reply) { r.Tokens++ }), FailOutput},
		"stopped early":    {ok(func(r *stub.Reply) { r.Finish = "stop" }), FailFinish},
		"aborted":          {ok(func(r *stub.Reply) { r.Finish = "abort" }), FailFinish},
		"other prompt":     {ok(func(r *stub.Reply) { r.PromptBias = 1 }), FailPrompt},
		"no answer":        {ok(func(r *stub.Reply) { r.TTFT = time.Minute }), FailTimeout},
		"no first token":   {ok(func(r *stub.Reply) { r.Tokens = 0 }), FailFinish},
		"nothing is wrong": {ok(func(*stub.Reply) {}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startStub(t, test.script)
			c := client(t, "tokamak", s.URL)
			c.Timeout = 2 * time.Second
			report := run(t, Config{Client: c, Arrivals: atOnce()}, samples(2, 3, 6))
			got := Summarize(report, nil)
			if test.want == "" {
				assert.Empty(t, got.Failures)
				return
			}
			assert.Equal(t, map[string]int{test.want: 2}, got.Failures, "%v", report.Results[0].Failure)
			assert.Zero(t, got.Completed)
		})
	}
	report := run(t, Config{Client: client(t, "tokamak", "http://127.0.0.1:1"), Arrivals: atOnce()}, samples(1, 1, 1))
	assert.Equal(t, FailConnect, report.Results[0].Failure.Reason)
}

// TestLatenciesAgreeWithTheScript compares what the client measured with the times at which the server wrote, which the server
// took itself, and with what the script said.
func TestLatenciesAgreeWithTheScript(t *testing.T) {
	const ttft, itl, tokens = 120 * time.Millisecond, 15 * time.Millisecond, 20
	// Against the script the quickest tenth counts: what a busy machine adds to the others is on both sides of the wire.
	const fast = 0.1
	attempt := func() (problems []string) {
		s := startStub(t, func(int, *stub.Request) stub.Reply {
			return stub.Reply{Tokens: tokens, TTFT: ttft, ITL: itl, Precise: true}
		})
		report := run(t, Config{Client: client(t, "tokamak", s.URL), Arrivals: Arrivals{Rate: 40, Burstiness: math.Inf(1)}}, samples(20, 8, tokens))
		got := Summarize(report, nil)
		require.Empty(t, got.Failures)
		require.Equal(t, 20*(tokens-1), got.ITL.N)
		var first, last, gaps []time.Duration // by the server's own clock, from the schedule, which both know
		for i, r := range s.Requests() {
			scheduled := report.Started.Add(report.Results[i].Scheduled)
			first = append(first, r.Sent[0].Sub(scheduled))
			last = append(last, r.Sent[tokens-1].Sub(scheduled))
			gaps = append(gaps, r.Sent[tokens-1].Sub(r.Sent[0])/(tokens-1))
		}
		for _, c := range []struct {
			what      string
			want, got time.Duration
		}{
			{"TTFT, server's clock", median(first), got.TTFT.P50},
			{"E2E, server's clock", median(last), got.E2E.P50},
			{"TPOT, server's clock", median(gaps), got.TPOT.P50},
			{"TTFT, script", ttft, got.TTFT.Quantile(fast)},
			{"TPOT, script", itl, got.TPOT.P50},
			{"ITL, script", itl, got.ITL.P50},
			{"E2E, script", ttft + (tokens-1)*itl, got.E2E.Quantile(fast)},
		} {
			if diff := (c.got - c.want).Abs(); diff > max(time.Millisecond, c.want/100) {
				problems = append(problems, fmt.Sprintf("%s: want %v, measured %v", c.what, c.want, c.got))
			}
		}
		return problems
	}
	// A machine that is busy with other things delays both sides: then the next attempt counts. A client that measures
	// wrongly does so each time.
	var problems []string
	for range 5 {
		if problems = attempt(); problems == nil {
			return
		}
	}
	assert.Empty(t, problems)
}

func median(d []time.Duration) time.Duration { x := NewDist(d); return x.P50 }

// TestChunksOfSeveralTokens: ITL is per token whatever the chunks, the gap between chunks stands apart.
func TestChunksOfSeveralTokens(t *testing.T) {
	for _, kind := range []string{"tokamak", "vllm", "openai", "llama.cpp", "ollama"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			s := startStub(t, func(_ int, r *stub.Request) stub.Reply {
				return stub.Reply{Tokens: r.MaxTokens, PerChunk: 4, ITL: 5 * time.Millisecond}
			})
			report := run(t, Config{Client: client(t, kind, s.URL), Arrivals: atOnce()}, samples(1, 2, 40))
			got := Summarize(report, nil)
			require.Empty(t, got.Failures)
			assert.Equal(t, 36, got.ITL.N, "all but the first chunk's tokens")
			// A machine with other work stretches gaps; a gap taken for one token's would be four times as long.
			assert.InDelta(t, 5*time.Millisecond, got.ITL.P50, float64(4*time.Millisecond))
			assert.InDelta(t, 20*time.Millisecond, got.ChunkGap.P50, float64(12*time.Millisecond))
			assert.InDelta(t, 5*time.Millisecond, got.TPOT.P50, float64(4*time.Millisecond))
		})
	}
}

// TestStallShowsForAllScheduledDuringIt: a server that stands still for a second delays every request that was due in that
// second, and a client that waits for answers before it sends would hide most of them.
func TestStallShowsForAllScheduledDuringIt(t *testing.T) {
	const from, to = 500 * time.Millisecond, 1500 * time.Millisecond
	for _, limit := range []int{0, 8} {
		var started time.Time
		s := startStub(t, func(n int, r *stub.Request) stub.Reply {
			if n == 0 {
				started = r.At
			}
			reply := stub.Reply{Tokens: 1}
			if at := r.At.Sub(started); at >= from && at < to {
				reply.TTFT = to - at
			}
			return reply
		})
		report := run(t, Config{
			Client: client(t, "tokamak", s.URL), Arrivals: Arrivals{Rate: 100, Burstiness: math.Inf(1)}, MaxConcurrency: limit,
		}, samples(200, 2, 1))
		got := Summarize(report, nil)
		require.Empty(t, got.Failures)
		assert.Greater(t, got.TTFT.P99, 950*time.Millisecond, "limit %d", limit)
		if limit > 0 {
			assert.Greater(t, got.Queued.P99, 800*time.Millisecond, "most of it is the wait for a place")
		}
		hit := 0
		for _, r := range report.Results {
			if r.Scheduled < from+10*time.Millisecond || r.Scheduled > to-20*time.Millisecond {
				continue
			}
			hit++
			latency, _ := r.TTFT()
			assert.Greater(t, latency, to-r.Scheduled-30*time.Millisecond, "scheduled at %v, limit %d", r.Scheduled, limit)
		}
		assert.Greater(t, hit, 90)
	}
}

func TestClosedLoop(t *testing.T) {
	s := startStub(t, func(int, *stub.Request) stub.Reply { return stub.Reply{Tokens: 1, TTFT: 100 * time.Millisecond} })
	report := run(t, Config{Client: client(t, "tokamak", s.URL), Arrivals: atOnce(), MaxConcurrency: 3}, samples(12, 2, 1))
	got := Summarize(report, nil)
	require.Empty(t, got.Failures)
	assert.Equal(t, 3, got.PeakConcurrency)
	assert.InDelta(t, 3, got.Concurrency, 0.5)
	assert.Less(t, got.TTFT.P50, 200*time.Millisecond, "a user's request is scheduled for when the last one ended")
	assert.GreaterOrEqual(t, got.Duration, 400*time.Millisecond)
}

func TestDurationEndsArrivals(t *testing.T) {
	s := startStub(t, nil)
	for _, a := range []Arrivals{{Rate: 100, Burstiness: math.Inf(1)}, atOnce()} {
		cfg := Config{Client: client(t, "tokamak", s.URL), Arrivals: a, Duration: 200 * time.Millisecond}
		if math.IsInf(a.Rate, 1) {
			cfg.MaxConcurrency = 1
		}
		report := run(t, cfg, samples(100000, 2, 1))
		assert.Greater(t, len(report.Results), 10)
		assert.Less(t, report.Duration, 2*time.Second)
		if cfg.MaxConcurrency == 0 {
			assert.Len(t, report.Results, 20)
		}
	}
}

func TestCancel(t *testing.T) {
	s := startStub(t, func(int, *stub.Request) stub.Reply { return stub.Reply{Tokens: 1, TTFT: time.Minute} })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	report, err := Run(ctx, Config{Client: client(t, "tokamak", s.URL), Arrivals: Arrivals{Rate: 50, Burstiness: 1}}, samples(1000, 2, 1))
	require.NoError(t, err)
	for _, r := range report.Results {
		require.NotNil(t, r.Failure)
	}
	assert.Less(t, report.Duration, time.Second)
}

func TestTurns(t *testing.T) {
	conversation := []datasets.Sample{{
		IDs: []int32{1, 2, 3}, OutputLen: 2,
		Turns: []datasets.Turn{{IDs: []int32{4}, Text: "more", OutputLen: 3}, {IDs: []int32{5, 6}, Text: "yet more", OutputLen: 1}},
	}}
	s := startStub(t, nil)
	report := run(t, Config{Client: client(t, "tokamak", s.URL), Arrivals: atOnce()}, conversation)
	require.Len(t, report.Results, 3)
	for i, want := range []struct{ prompt, output int }{{3, 2}, {3 + 2 + 1, 3}, {6 + 3 + 2, 1}} {
		r := report.Results[i]
		require.Nil(t, r.Failure)
		assert.Equal(t, i, r.Turn)
		assert.Equal(t, want.prompt, r.PromptTokens.N)
		assert.Equal(t, want.output, r.OutputTokens.N)
		if i > 0 {
			assert.GreaterOrEqual(t, r.Scheduled, report.Results[i-1].End)
		}
	}
	s = startStub(t, nil)
	run(t, Config{Client: client(t, "vllm-chat", s.URL), Arrivals: atOnce()}, conversation)
	assert.JSONEq(t, `[{"role":"user","content":"w w w"},{"role":"assistant","content":"t t "},{"role":"user","content":"more"},
		{"role":"assistant","content":"t t t "},{"role":"user","content":"yet more"}]`, gjson.GetBytes(s.Requests()[2].Body, "messages").Raw)
}

func TestSampleThatCannotBePut(t *testing.T) {
	chat := []datasets.Sample{{Messages: []datasets.Message{{Role: "user", Content: "hi"}}, OutputLen: 1}}
	_, err := Run(context.Background(), Config{Client: client(t, "tokamak", "http://x"), Arrivals: atOnce()}, chat)
	require.ErrorContains(t, err, "sample 1: the sample is a chat, backend tokamak takes none: use tokamak-chat")
	c := client(t, "ollama", "http://x")
	c.Decode = nil
	_, err = Run(context.Background(), Config{Client: c, Arrivals: atOnce()}, samples(1, 1, 1))
	require.ErrorContains(t, err, "needs the model's tokenizer")
}

func TestControl(t *testing.T) {
	ctx := context.Background()
	s := startStub(t, nil)
	c := client(t, "vllm", s.URL)
	require.NoError(t, c.WaitReady(ctx))
	model, err := c.FindModel(ctx)
	require.NoError(t, err)
	assert.Equal(t, "stub", model)
	require.NoError(t, c.Flush(ctx))
	assert.Equal(t, 1, s.Flushes)
	require.ErrorContains(t, client(t, "ollama", s.URL).Flush(ctx), "leave --flush-cache out")
	short, cancel := context.WithTimeout(ctx, 120*time.Millisecond)
	defer cancel()
	require.ErrorContains(t, client(t, "vllm", "http://127.0.0.1:1").WaitReady(short), "no server at http://127.0.0.1:1")
	_, err = c.Post(ctx, "/nonesuch", nil)
	require.ErrorContains(t, err, "status 404")
}

// TestThousandStreams: as many streams at once, and nothing is left behind.
func TestThousandStreams(t *testing.T) {
	startStub(t, nil).Close() // what the first use of the network opens stays open
	before, files := runtime.NumGoroutine(), openFiles()
	s, err := stub.Start("", false, func(_ int, r *stub.Request) stub.Reply {
		return stub.Reply{Tokens: r.MaxTokens, TTFT: time.Second, ITL: 10 * time.Millisecond}
	})
	require.NoError(t, err)
	c := client(t, "tokamak", s.URL)
	report := run(t, Config{Client: c, Arrivals: atOnce()}, samples(1000, 4, 10))
	got := Summarize(report, nil)
	assert.Empty(t, got.Failures)
	assert.Equal(t, 1000, got.Completed)
	assert.Equal(t, 10000, got.OutputTokens)
	assert.Equal(t, 1000, got.PeakConcurrency)
	c.Close()
	s.Close()
	// Not require.Eventually, which adds a goroutine of its own.
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before || openFiles() > files; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("goroutines %d, before %d; files %d, before %d", runtime.NumGoroutine(), before, openFiles(), files)
		}
	}
}

func openFiles() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0 // no such file system: goroutines alone are checked
	}
	return len(entries)
}
