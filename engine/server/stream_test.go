package server

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/metrics"
)

// tokenPause makes the fake engine wait before each token, as long as its request lives.
func tokenPause(d time.Duration) func(context.Context, engine.Request, int) error {
	return func(ctx context.Context, _ engine.Request, _ int) error {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(d):
			return nil
		}
	}
}

func events(t *testing.T, body string) []string {
	t.Helper()
	var list []string
	for part := range strings.SplitSeq(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		data, ok := strings.CutPrefix(part, "data: ")
		require.True(t, ok, "not an event: %q", part)
		list = append(list, data)
	}
	return list
}

func TestStreamOfBatch(t *testing.T) {
	s, _ := testServer(t, newFake(), nil)
	w := do(s, "POST", "/generate", `{"text":["a","bc","d"],"sampling_params":{"max_new_tokens":20,"n":2},"stream":true,"stream_mode":"delta"}`)
	require.Equal(t, 200, w.Code)
	list := events(t, w.Body.String())
	require.Equal(t, "[DONE]", list[len(list)-1])
	texts, counts := map[int]string{}, map[int]int{}
	for _, data := range list[:len(list)-1] {
		var ev struct {
			Text  string
			IDs   []int `json:"output_ids"`
			Index int
			Meta  struct {
				Completion int `json:"completion_tokens"`
				Prompt     int `json:"prompt_tokens"`
			} `json:"meta_info"`
		}
		require.NoError(t, json.Unmarshal([]byte(data), &ev))
		texts[ev.Index] += ev.Text
		counts[ev.Index] += len(ev.IDs)
		assert.Equal(t, counts[ev.Index], ev.Meta.Completion)
		assert.Equal(t, []int{2, 2, 3, 3, 2, 2}[ev.Index], ev.Meta.Prompt)
	}
	require.Len(t, texts, 6)
	for i, text := range texts {
		assert.Equal(t, "hello world hello wo", text, "generation %d", i)
	}
}

// An error before the first token is a status, one after it an event: no client may take a broken answer for a whole one.
func TestStreamErrors(t *testing.T) {
	f := newFake()
	s, logs := testServer(t, f, nil)
	f.before = func(engine.Request) error { return errors.New("cannot read /secret/path/tiny/model.safetensors") }
	w := do(s, "POST", "/v1/completions", `{"prompt":"a","stream":true}`)
	require.Equal(t, 500, w.Code)
	assert.Equal(t, "internal_error", decodeError(t, w.Body.String()).Error.Code)
	assert.NotContains(t, w.Body.String(), "secret")
	assert.Contains(t, logs.String(), "model.safetensors", "the log must say why")

	f.before = nil
	f.step = func(_ context.Context, _ engine.Request, i int) error {
		if i == 2 {
			return errors.New("device lost")
		}
		time.Sleep(10 * time.Millisecond) // until the first token is on its way
		return nil
	}
	w = do(s, "POST", "/v1/completions", `{"prompt":"a","stream":true}`)
	require.Equal(t, 200, w.Code)
	list := events(t, w.Body.String())
	assert.Equal(t, "[DONE]", list[len(list)-1])
	assert.Equal(t, "internal_error", decodeError(t, list[len(list)-2]).Error.Code)

	w = do(s, "POST", "/v1/completions", `{"prompt":["a","b"],"n":2}`)
	assert.Equal(t, 500, w.Code)
}

func TestQueueFull(t *testing.T) {
	f := newFake()
	s, _ := testServer(t, f, nil)
	f.before = func(engine.Request) error { return engine.ErrQueueFull }
	for _, body := range []string{`{"prompt":"a"}`, `{"prompt":"a","stream":true}`, `{"prompt":["a","b"]}`} {
		w := do(s, "POST", "/v1/completions", body)
		assert.Equal(t, http.StatusTooManyRequests, w.Code)
		assert.Equal(t, "1", w.Header().Get("Retry-After"))
		assert.Equal(t, "rate_limit_error", decodeError(t, w.Body.String()).Error.Type)
	}
	assert.Contains(t, scrape(s), `tokamak_requests_total{model_name="tiny",outcome="rejected"} 3`)
}

func scrape(s *Server) string { return do(s, "GET", "/metrics", "").Body.String() }

func outcome(s *Server, name string) bool {
	return strings.Contains(scrape(s), fmt.Sprintf(`tokamak_requests_total{model_name="tiny",outcome=%q} 1`, name))
}

func TestDeadline(t *testing.T) {
	f := newFake()
	f.step = tokenPause(5 * time.Millisecond)
	s, _ := testServer(t, f, nil)
	for name, w := range map[string]func() (int, string){
		"header": func() (int, string) {
			w := do(s, "POST", "/v1/completions", `{"prompt":"a","max_tokens":100000}`, "X-Request-Timeout", "0.05")
			return w.Code, w.Body.String()
		},
		"field": func() (int, string) {
			w := do(s, "POST", "/generate", `{"text":"a","request_timeout":0.05,"sampling_params":{"max_new_tokens":100000}}`)
			return w.Code, w.Body.String()
		},
		"batch": func() (int, string) {
			w := do(s, "POST", "/generate", `{"text":["a","b"],"request_timeout":0.05,"sampling_params":{"max_new_tokens":100000}}`)
			return w.Code, w.Body.String()
		},
	} {
		code, body := w()
		assert.Equal(t, http.StatusGatewayTimeout, code, name)
		assert.Equal(t, "deadline_exceeded", decodeError(t, body).Error.Code, name)
	}
	w := do(s, "POST", "/generate", `{"text":"a","stream":true,"sampling_params":{"max_new_tokens":100000}}`, "X-Request-Timeout", "50ms")
	require.Equal(t, 200, w.Code, "the stream had begun")
	assert.Contains(t, w.Body.String(), `"code":"deadline_exceeded"`)
	assert.Zero(t, f.running.Load())

	w = do(s, "POST", "/generate", `{"text":"a"}`, "X-Request-Timeout", "soon")
	assert.Equal(t, 400, w.Code)
}

func TestAbort(t *testing.T) {
	f := newFake()
	f.step = tokenPause(time.Millisecond)
	s, _ := testServer(t, f, nil)
	base := listen(t, s)
	type answer struct {
		code int
		body string
	}
	answers := make(chan answer, 3)
	run := func(path, body string) {
		go func() {
			code, b := send(t, base+path, body)
			answers <- answer{code, b}
		}()
	}
	run("/generate", `{"text":"a","rid":"one","sampling_params":{"max_new_tokens":100000}}`)
	run("/generate", `{"text":["a","b"],"rid":"two","stream":true,"sampling_params":{"max_new_tokens":100000}}`)
	eventually(t, "three generations", func() bool { return f.running.Load() == 3 })

	code, body := send(t, base+"/generate", `{"text":"a","rid":"one"}`)
	assert.Equal(t, 400, code, "a rid that is in use")
	assert.Equal(t, "rid", *decodeError(t, body).Error.Param)

	_, body = send(t, base+"/abort_request", `{"rid":"one"}`)
	assert.Contains(t, body, `"aborted":1`)
	got := <-answers
	assert.Equal(t, 200, got.code)
	assert.Contains(t, got.body, `"finish_reason":{"type":"abort"`)

	_, body = send(t, base+"/abort_request", `{"abort_all":true}`)
	assert.Contains(t, body, `"aborted":2`)
	got = <-answers
	assert.Equal(t, 2, strings.Count(got.body, `"type":"abort"`))
	assert.True(t, strings.HasSuffix(got.body, "data: [DONE]\n\n"))
	assert.Zero(t, f.running.Load())
}

func TestDisconnectCancels(t *testing.T) {
	f := newFake()
	f.step = tokenPause(time.Millisecond)
	s, _ := testServer(t, f, nil)
	base := listen(t, s)
	for _, body := range []string{
		`{"text":"a","stream":true,"sampling_params":{"max_new_tokens":1000000}}`,
		`{"text":"a","sampling_params":{"max_new_tokens":1000000}}`,
	} {
		ctx, cancel := context.WithCancel(context.Background())
		r, err := http.NewRequestWithContext(ctx, "POST", base+"/generate", strings.NewReader(body))
		require.NoError(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			if resp, err := http.DefaultClient.Do(r); err == nil {
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}()
		eventually(t, "running", func() bool { return f.running.Load() == 1 })
		cancel()
		<-done
		eventually(t, "the generation to end", func() bool { return f.running.Load() == 0 })
	}
	eventually(t, "the outcome", func() bool {
		return strings.Contains(scrape(s), `tokamak_requests_total{model_name="tiny",outcome="disconnected"} 2`)
	})
}

// A client that does not read must not hold its generation for ever, nor slow others.
func TestSlowReaderIsCutOff(t *testing.T) {
	f := newFake()
	f.text = strings.Repeat("x", 64)
	s, logs := testServer(t, f, func(o *Options) { o.WriteTimeout = time.Second })
	base := listen(t, s)
	c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.(*net.TCPConn).SetReadBuffer(4096))
	body := `{"text":"a","stream":true,"sampling_params":{"max_new_tokens":1000000}}`
	fmt.Fprintf(c, "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	eventually(t, "running", func() bool { return f.running.Load() == 1 })

	start := time.Now()
	code, _ := send(t, base+"/generate", `{"text":"b","sampling_params":{"max_new_tokens":20}}`)
	assert.Equal(t, 200, code)
	assert.Less(t, time.Since(start), 900*time.Millisecond, "another client waited for the slow one")

	eventually(t, "the slow reader's generation to end", func() bool { return f.running.Load() == 0 })
	eventually(t, "its outcome", func() bool { return outcome(s, metrics.OutcomeSlowReader) })
	eventually(t, "its log line", func() bool { return strings.Contains(logs.String(), "code=slow_reader") })
}

// A client that reads, but more slowly than its tokens come, is cut off with a reason once it has fallen too far behind. A
// machine that is slow itself is no reason: then the writes take no time.
func TestLaggingReaderIsToldWhy(t *testing.T) {
	for _, pause := range []time.Duration{0, 20 * time.Millisecond} {
		tokens := 2000
		if pause > 0 {
			tokens = 1_000_000 // more than are made before it is cut off
		}
		body := fmt.Sprintf(`{"text":"a","stream":true,"stream_mode":"delta","sampling_params":{"max_new_tokens":%d}}`, tokens)
		f := newFake()
		made := 0
		f.step = func(context.Context, engine.Request, int) error { made++; return nil }
		began := time.Now().Add(-time.Second)
		if pause > 0 {
			began = time.Now()
		}
		f.clock = func() time.Time { return began } // tokens that are older and older when they are written
		s, _ := testServer(t, f, func(o *Options) { o.MaxStreamLag = 200 * time.Millisecond })
		w := &slowWriter{httptest.NewRecorder(), pause}
		s.ServeHTTP(w, httptest.NewRequest("POST", "/generate", strings.NewReader(body)))
		cut := strings.Contains(w.Body.String(), `"code":"slow_reader"`)
		assert.Equal(t, pause > 0, cut, "pause %v", pause)
		assert.True(t, strings.HasSuffix(w.Body.String(), "data: [DONE]\n\n"))
		assert.Equal(t, pause > 0, outcome(s, metrics.OutcomeSlowReader))
		assert.Zero(t, f.running.Load())
		assert.Equal(t, pause > 0, made < tokens, "the generation ends with its reader: %d tokens made", made)
	}
}

// A request may wait for longer than a write may take: its error is told all the same.
func TestAnAnswerAfterALongWait(t *testing.T) {
	f := newFake()
	f.before = func(engine.Request) error {
		time.Sleep(400 * time.Millisecond) // in the queue
		return engine.ErrQueueFull
	}
	s, _ := testServer(t, f, func(o *Options) { o.WriteTimeout = 100 * time.Millisecond })
	base := listen(t, s)
	for _, stream := range []string{"true", "false"} {
		code, body := send(t, base+"/generate", `{"text":"a","stream":`+stream+`}`)
		assert.Equal(t, 429, code)
		assert.Contains(t, body, "queue_full")
	}
}

// slowWriter is a connection that takes its time for each write.
type slowWriter struct {
	*httptest.ResponseRecorder
	pause time.Duration
}

func (w *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(w.pause)
	return w.ResponseRecorder.Write(p)
}

func TestStreamFlushesEachToken(t *testing.T) {
	f := newFake()
	gate := make(chan struct{})
	f.step = func(ctx context.Context, _ engine.Request, _ int) error {
		select {
		case <-gate:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s, _ := testServer(t, f, nil)
	base := listen(t, s)
	respc := make(chan *http.Response, 1)
	go func() {
		resp, err := http.Post(base+"/v1/completions", "application/json", strings.NewReader(`{"prompt":"a","max_tokens":3,"stream":true}`))
		assert.NoError(t, err)
		respc <- resp
	}()
	gate <- struct{}{} // the status goes out with the first token
	resp := <-respc
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		assert.Contains(t, line, fmt.Sprintf(`"text":%q`, "hel"[i:i+1]))
		_, err = r.ReadString('\n')
		require.NoError(t, err)
		if i < 2 {
			gate <- struct{}{}
		}
	}
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "data: [DONE]\n", line)
}
