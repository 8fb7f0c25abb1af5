package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// openTiny opens the real engine on the CPU with a model of two layers and dummy weights.
func openTiny(t testing.TB, change func(*engine.Options)) *engine.Engine {
	dir, err := configs.Dir("tiny")
	require.NoError(t, err)
	o := engine.DefaultOptions()
	o.LoadFormat, o.Device, o.SkipTokenizerInit = "dummy", "cpu", true
	o.MaxRunningRequests, o.MaxTotalTokens = 64, 16384
	if change != nil {
		change(&o)
	}
	e, err := engine.Open(context.Background(), dir, engine.WithOptions(o))
	require.NoError(t, err)
	return e
}

// TestThousandStreams runs 1,000 streams at once through the real engine: every token arrives once, in order, and as the engine
// gives it without a server; afterwards nothing is left over.
func TestThousandStreams(t *testing.T) {
	streams, outputTokens := 1000, 12
	if testing.Short() {
		streams = 100
	}
	e := openTiny(t, nil)
	defer e.Close()
	prompt := func(i int) []int32 { return []int32{int32(i % 250), int32(i / 250), 7, 9} }
	greedy := engine.DefaultSampling(outputTokens)
	greedy.IgnoreEOS = true
	alone := make([][]int32, 8) // outputs of the first few prompts, for comparison
	for i := range alone {
		out, err := e.Generate(context.Background(), engine.Request{InputIDs: prompt(i), Sampling: greedy})
		require.NoError(t, err)
		alone[i] = out.TokenIDs
	}
	require.NoError(t, e.FlushCache())

	o := DefaultOptions()
	o.ServedModelName, o.LogInterval = "tiny", 0
	s, err := New(o, nil, quiet())
	require.NoError(t, err)
	s.Start(e)
	base := listen(t, s)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: streams}}
	warm, err := client.Get(base + "/health")
	require.NoError(t, err)
	warm.Body.Close()
	client.CloseIdleConnections()
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	counted := e.Stats().OutputTokensTotal

	var wait sync.WaitGroup
	outputs := make([][]int32, streams)
	for i := range streams {
		wait.Go(func() { outputs[i] = streamIDs(t, client, base, prompt(i), outputTokens) })
	}
	wait.Wait()
	for i, ids := range outputs {
		require.Len(t, ids, outputTokens, "stream %d", i)
		if i < len(alone) {
			assert.Equal(t, alone[i], ids, "stream %d differs from the same request alone", i)
		}
	}
	st := e.Stats()
	assert.Equal(t, uint64(streams*outputTokens), st.OutputTokensTotal-counted, "tokens that the engine delivered")
	assert.Contains(t, scrape(s), fmt.Sprintf(`tokamak_requests_total{model_name="tiny",outcome="ok"} %d`, streams))
	client.CloseIdleConnections()
	eventually(t, "no request, no page in use", func() bool {
		st := e.Stats()
		return st.Running == 0 && st.Waiting == 0 && st.UsedPages == 0
	})
	const slack = 5 // of the runtime's own
	eventually(t, "goroutines back to where they were", func() bool { return runtime.NumGoroutine() <= goroutines+slack })
	eventually(t, "files back to where they were", func() bool { return openFiles(t) <= files+slack })
	assert.Empty(t, s.active.find("", true))
	assert.Zero(t, s.bodyBytes.Load())
}

// streamIDs runs one request in delta mode and returns its tokens, checking that each event counts on from the one before.
func streamIDs(t *testing.T, client *http.Client, base string, prompt []int32, n int) (ids []int32) {
	body := fmt.Appendf(nil, `{"input_ids":[%s],"stream":true,"stream_mode":"delta","sampling_params":{"max_new_tokens":%d,"temperature":0,"ignore_eos":true}}`,
		appendIDs(nil, prompt), n)
	resp, err := client.Post(base+"/generate", "application/json", bytes.NewReader(body))
	if !assert.NoError(t, err) {
		return nil
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	done := false
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok {
			continue
		}
		if data == "[DONE]" {
			done = true
			continue
		}
		var ev struct {
			IDs  []int32 `json:"output_ids"`
			Meta struct {
				Completion int `json:"completion_tokens"`
			} `json:"meta_info"`
		}
		if !assert.NoError(t, json.Unmarshal([]byte(data), &ev), data) {
			return nil
		}
		ids = append(ids, ev.IDs...)
		assert.Equal(t, len(ids), ev.Meta.Completion)
	}
	assert.True(t, done, "the stream ended without [DONE]")
	return ids
}

// openFiles counts this process's file descriptors where the system tells.
func openFiles(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Log("file descriptors are not checked: ", err)
		return 0
	}
	return len(entries)
}

// A client that leaves gives its pages back while others go on.
func TestDisconnectFreesPages(t *testing.T) {
	e := openTiny(t, nil)
	defer e.Close()
	o := DefaultOptions()
	o.ServedModelName, o.LogInterval = "tiny", 0
	s, err := New(o, nil, quiet())
	require.NoError(t, err)
	s.Start(e)
	base := listen(t, s)
	const clients = 20
	ctx, leave := context.WithCancel(context.Background())
	for i := range clients {
		go func() {
			body := fmt.Sprintf(`{"input_ids":[%d,5],"stream":true,"sampling_params":{"max_new_tokens":500,"ignore_eos":true}}`, i)
			r, err := http.NewRequestWithContext(ctx, "POST", base+"/generate", strings.NewReader(body))
			if !assert.NoError(t, err) {
				return
			}
			if resp, err := http.DefaultClient.Do(r); err == nil {
				defer resp.Body.Close()
				bufio.NewReader(resp.Body).WriteTo(discard{})
			}
		}()
	}
	eventually(t, "all running", func() bool { return e.Stats().Running == clients })
	assert.Positive(t, e.Stats().UsedPages)
	leave()
	eventually(t, "pages free again", func() bool {
		st := e.Stats()
		return st.Running == 0 && st.UsedPages == 0
	})
	assert.Less(t, e.Stats().OutputTokensTotal, uint64(clients*500), "the generations went on to their end")
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// The queue's bound reaches clients as 429.
func TestQueueBound(t *testing.T) {
	e := openTiny(t, func(o *engine.Options) { o.MaxRunningRequests, o.MaxQueuedRequests = 1, 2 })
	defer e.Close()
	o := DefaultOptions()
	o.ServedModelName, o.LogInterval = "tiny", 0
	s, err := New(o, nil, quiet())
	require.NoError(t, err)
	s.Start(e)
	base := listen(t, s)
	codes := make(chan int, 12)
	for range cap(codes) {
		go func() {
			code, _ := send(t, base+"/generate", `{"input_ids":[1,2],"sampling_params":{"max_new_tokens":300,"ignore_eos":true}}`)
			codes <- code
		}()
	}
	got := map[int]int{}
	for range cap(codes) {
		got[<-codes]++
	}
	assert.Positive(t, got[200])
	assert.Positive(t, got[429])
	assert.Equal(t, cap(codes), got[200]+got[429], "%v", got)
	eventually(t, "an empty engine", func() bool { st := e.Stats(); return st.Running+st.Waiting == 0 })
}

// With no token to make, the prompt alone is scored: what evaluation tools ask for.
func TestScorePrompt(t *testing.T) {
	e := openTiny(t, nil)
	defer e.Close()
	o := DefaultOptions()
	o.ServedModelName, o.LogInterval = "tiny", 0
	s, err := New(o, nil, quiet())
	require.NoError(t, err)
	s.Start(e)
	w := do(s, "POST", "/v1/completions", `{"prompt":[1,2,3,4],"max_tokens":0,"echo":true,"logprobs":1}`)
	require.Equal(t, 200, w.Code, w.Body.String())
	var answer struct {
		Choices []struct {
			Logprobs struct {
				Values []*float64 `json:"token_logprobs"`
			}
		}
		Usage struct {
			Completion int `json:"completion_tokens"`
		}
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer))
	values := answer.Choices[0].Logprobs.Values
	require.Len(t, values, 4)
	assert.Nil(t, values[0], "the first token follows nothing")
	for _, v := range values[1:] {
		assert.Negative(t, *v)
	}
	assert.Zero(t, answer.Usage.Completion)
	w = do(s, "POST", "/generate", `{"input_ids":[1,2,3,4],"return_logprob":true,"logprob_start_len":2,"sampling_params":{"max_new_tokens":0}}`)
	require.Equal(t, 200, w.Code, w.Body.String())
	assert.Equal(t, 2, strings.Count(w.Body.String(), ",null]"), w.Body.String())
}
