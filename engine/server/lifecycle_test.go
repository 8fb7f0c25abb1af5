package server

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
)

func TestHealthThroughLife(t *testing.T) {
	check := func(s *Server, health, healthz, readyz, completion int) {
		t.Helper()
		assert.Equal(t, health, do(s, "GET", "/health", "").Code, "/health")
		assert.Equal(t, healthz, do(s, "GET", "/healthz", "").Code, "/healthz")
		assert.Equal(t, readyz, do(s, "GET", "/readyz", "").Code, "/readyz")
		w := do(s, "POST", "/v1/completions", `{"prompt":"a"}`)
		assert.Equal(t, completion, w.Code, "/v1/completions")
		if completion != 200 {
			assert.NotEmpty(t, w.Header().Get("Retry-After"))
		}
	}
	s, _ := testServer(t, nil, nil)
	check(s, 503, 200, 503, 503) // loading
	f := newFake()
	s.start(f, fakeModel())
	check(s, 200, 200, 200, 200)
	s.draining.Store(true)
	check(s, 503, 200, 503, 503)
	assert.Equal(t, 200, do(s, "GET", "/get_load", "").Code, "a draining server still tells its state")

	s.draining.Store(false)
	lost := errors.New("device lost")
	f.broken.Store(&lost)
	select {
	case <-s.Failed():
	case <-time.After(5 * time.Second):
		t.Fatal("nobody noticed that the backend failed")
	}
	check(s, 503, 503, 503, 503)
	assert.Contains(t, scrape(s), `tokamak_engine_healthy{model_name="tiny"} 0`)
}

func TestDrain(t *testing.T) {
	f := newFake()
	f.step = tokenPause(5 * time.Millisecond)
	s, _ := testServer(t, f, nil)
	base := listen(t, s)
	finished := make(chan string, 1)
	go func() {
		_, body := send(t, base+"/v1/completions", `{"prompt":"a","max_tokens":40,"stream":true}`)
		finished <- body
	}()
	eventually(t, "running", func() bool { return f.running.Load() == 1 })
	drained := make(chan bool, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		drained <- s.Shutdown(ctx)
	}()
	eventually(t, "no more accepting", func() bool {
		c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	body := <-finished
	assert.Contains(t, body, `"finish_reason":"length"`, "a running request may finish")
	assert.True(t, strings.HasSuffix(body, "data: [DONE]\n\n"))
	assert.True(t, <-drained)
}

func TestDrainDeadline(t *testing.T) {
	f := newFake()
	f.step = tokenPause(time.Millisecond)
	s, _ := testServer(t, f, nil)
	base := listen(t, s)
	finished := make(chan string, 2)
	for _, body := range []string{`{"prompt":"a","max_tokens":1000000,"stream":true}`, `{"prompt":"a","max_tokens":1000000}`} {
		go func() {
			_, body := send(t, base+"/v1/completions", body)
			finished <- body
		}()
	}
	eventually(t, "running", func() bool { return f.running.Load() == 2 })
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	assert.False(t, s.Shutdown(ctx))
	for range 2 {
		assert.Contains(t, <-finished, `"code":"shutting_down"`, "cancelled requests are told why")
	}
	eventually(t, "the generations to end", func() bool { return f.running.Load() == 0 })
}

func TestAPIKey(t *testing.T) {
	s, logs := testServer(t, newFake(), func(o *Options) { o.APIKey = "correct horse" })
	for _, route := range routes {
		method := route.methods[0]
		w := do(s, method, route.path, "")
		if route.open {
			assert.Equal(t, 200, w.Code, route.path)
			continue
		}
		assert.Equal(t, 401, w.Code, route.path)
		assert.Equal(t, "Bearer", w.Header().Get("WWW-Authenticate"))
		decodeError(t, w.Body.String())
	}
	assert.Equal(t, 401, do(s, "GET", "/nowhere", "").Code, "what exists is nobody's business without a key")
	for _, bad := range [][]string{{"Authorization", "Bearer wrong"}, {"Authorization", "correct horse"}, {"X-Api-Key", "correct"}, {"Authorization", "Basic correct horse"}} {
		assert.Equal(t, 401, do(s, "GET", "/v1/models", "", bad...).Code, bad)
	}
	for _, good := range [][]string{{"Authorization", "Bearer correct horse"}, {"authorization", "bearer correct horse"}, {"X-Api-Key", "correct horse"}} {
		assert.Equal(t, 200, do(s, "GET", "/v1/models", "", good...).Code, good)
		w := do(s, "GET", "/get_server_info", "", good...)
		assert.NotContains(t, w.Body.String(), "correct horse")
		assert.Contains(t, w.Body.String(), `"shutdown_timeout":2`)
	}
	assert.NotContains(t, logs.String(), "correct horse")
	for _, route := range routes {
		if route.open {
			assert.Contains(t, []string{"/health", "/healthz", "/readyz", "/ping"}, route.path, "only health is open")
		}
	}
}

func TestCrossSiteRequestsAreRefused(t *testing.T) {
	s, _ := testServer(t, newFake(), nil)
	assert.Equal(t, 403, do(s, "GET", "/flush_cache", "", "Sec-Fetch-Site", "cross-site").Code)
	assert.Equal(t, 403, do(s, "POST", "/generate", `{"text":"a"}`, "Sec-Fetch-Site", "same-site").Code)
	assert.Equal(t, 200, do(s, "POST", "/generate", `{"text":"a"}`, "Sec-Fetch-Site", "same-origin").Code)
	assert.Equal(t, 200, do(s, "GET", "/health", "", "Sec-Fetch-Site", "cross-site").Code)
}

// Log lines are one line each, whatever clients send, and hold no prompt.
func TestLogInjection(t *testing.T) {
	s, logs := testServer(t, newFake(), func(o *Options) { o.LogRequests = true })
	evil := "x\nlevel=ERROR msg=forged"
	do(s, "POST", "/generate", `{"text":"my secret prompt","rid":"a\nlevel=ERROR msg=forged"}`, "X-Request-Id", evil)
	do(s, "GET", "/no%0Alevel=ERROR%20msg=forged", "")
	do(s, "POST", "/v1/completions", `{"prompt":"my secret prompt","model":"m\nlevel=ERROR msg=forged"}`)
	for line := range strings.SplitSeq(strings.TrimSpace(logs.String()), "\n") {
		assert.True(t, strings.HasPrefix(line, "time="), "not a line of ours: %q", line)
	}
	assert.NotContains(t, logs.String(), "secret prompt")
	assert.Contains(t, logs.String(), "path=/generate")
}

func TestRequestID(t *testing.T) {
	s, _ := testServer(t, newFake(), nil)
	assert.Equal(t, "abc-1", do(s, "GET", "/health", "", "X-Request-Id", "abc-1").Header().Get("X-Request-Id"))
	for _, bad := range []string{"a b", "a\tb", strings.Repeat("a", 129), "é"} {
		assert.NotEqual(t, bad, do(s, "GET", "/health", "", "X-Request-Id", bad).Header().Get("X-Request-Id"))
	}
}

func TestPanicIsAnswered(t *testing.T) {
	f := newFake()
	s, logs := testServer(t, f, nil)
	f.before = func(engine.Request) error { panic("boom") }
	for _, body := range []string{`{"text":"a"}`, `{"text":["a","b"]}`, `{"text":"a","stream":true}`} {
		w := do(s, "POST", "/generate", body)
		assert.Equal(t, 500, w.Code, body)
		assert.NotContains(t, w.Body.String(), "boom")
	}
	assert.Contains(t, logs.String(), "boom")
	f.before = nil
	assert.Equal(t, 200, do(s, "POST", "/generate", `{"text":"a"}`).Code, "one request's panic is not another's")
}

// A body counts against the server's memory while it is read and decoded, and no longer.
func TestBodyMemory(t *testing.T) {
	f := newFake()
	s, _ := testServer(t, f, nil)
	held := int64(-1)
	f.before = func(engine.Request) error { held = s.bodyBytes.Load(); return nil }
	assert.Equal(t, 200, do(s, "POST", "/generate", `{"text":"a"}`).Code)
	assert.Zero(t, held, "while it generates")
	s.bodyBytes.Store(maxBodiesInMemory)
	w := do(s, "POST", "/generate", `{"text":"a"}`)
	assert.Equal(t, 503, w.Code)
	assert.Equal(t, "overloaded", decodeError(t, w.Body.String()).Error.Code)
	assert.EqualValues(t, maxBodiesInMemory, s.bodyBytes.Load())
}

func TestBodies(t *testing.T) {
	s, _ := testServer(t, newFake(), func(o *Options) {
		o.MaxBodyBytes = 1 << 20
		o.BodyTimeout = 300 * time.Millisecond
		o.HeaderTimeout = 300 * time.Millisecond
	})
	base := listen(t, s)
	// A client that sends 100 MB may find the connection reset before it looks for the answer, unless the server reads on for a while: here it
	// has the time to.
	patient, _ := testServer(t, newFake(), func(o *Options) { o.MaxBodyBytes = 1 << 20 })
	patientBase := listen(t, patient)

	t.Run("100 MB", func(t *testing.T) {
		const size = 100 << 20
		resp, err := http.Post(patientBase+"/v1/completions", "application/json", io.LimitReader(zeros{}, size))
		require.NoError(t, err)
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		assert.Equal(t, 413, resp.StatusCode)
		assert.Equal(t, "body_too_large", decodeError(t, string(body)).Error.Code)
	})
	t.Run("100 MB with its length", func(t *testing.T) {
		r, err := http.NewRequest("POST", patientBase+"/v1/completions", io.LimitReader(zeros{}, 100<<20))
		require.NoError(t, err)
		r.ContentLength = 100 << 20
		resp, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, 413, resp.StatusCode)
	})
	raw := func(t *testing.T, first string, rest func(net.Conn)) string {
		c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
		require.NoError(t, err)
		defer c.Close()
		_, err = io.WriteString(c, first)
		require.NoError(t, err)
		if rest != nil {
			rest(c)
		}
		require.NoError(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return fmt.Sprintf("%d %s", resp.StatusCode, decodeError(t, string(body)).Error.Code)
	}
	t.Run("body that never ends", func(t *testing.T) {
		assert.Equal(t, "408 body_timeout", raw(t, "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", nil))
	})
	t.Run("body that nobody reads and that never ends", func(t *testing.T) {
		assert.Equal(t, "404 not_found", raw(t, "POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", nil))
	})
	t.Run("header that never ends", func(t *testing.T) {
		assert.Equal(t, "408 header_timeout", raw(t, "POST /generate HTTP/1.1\r\nHost: x\r\nX-A: b", nil))
	})
	t.Run("header byte by byte", func(t *testing.T) {
		assert.Equal(t, "408 header_timeout", raw(t, "GET /health HTTP/1.1\r\n", func(c net.Conn) {
			for i := range 20 {
				if _, err := fmt.Fprintf(c, "X-%d: y\r\n", i); err != nil {
					return
				}
				time.Sleep(25 * time.Millisecond) // the attack is its slowness
			}
		}))
	})
	t.Run("body cut short", func(t *testing.T) {
		assert.Equal(t, "400 incomplete_body", raw(t, "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", func(c net.Conn) {
			assert.NoError(t, c.(*net.TCPConn).CloseWrite())
		}))
	})
	assert.Zero(t, s.bodyBytes.Load(), "bytes of bodies are given back")
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func TestTooManyConnections(t *testing.T) {
	s, _ := testServer(t, newFake(), func(o *Options) { o.MaxConnections = 2 })
	base := listen(t, s)
	address := strings.TrimPrefix(base, "http://")
	var open []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", address)
		require.NoError(t, err)
		open = append(open, c)
	}
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	assert.Equal(t, 503, resp.StatusCode)
	assert.Equal(t, "1", resp.Header.Get("Retry-After"))
	c.Close()
	for _, c := range open {
		c.Close()
	}
	eventually(t, "room again", func() bool {
		resp, err := http.Get(base + "/health")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	})
}

func TestFlushCacheWaits(t *testing.T) {
	f := newFake()
	s, _ := testServer(t, f, nil)
	f.busy = true
	w := do(s, "POST", "/flush_cache", "")
	assert.Equal(t, 400, w.Code)
	assert.Equal(t, "busy", decodeError(t, w.Body.String()).Error.Code)
	f.busy = false
	f.running.Add(1)
	time.AfterFunc(50*time.Millisecond, func() { f.running.Add(-1) })
	assert.Equal(t, 200, do(s, "POST", "/flush_cache?timeout=5", "").Code)
}

func TestProfileHook(t *testing.T) {
	p := &fakeProfiler{}
	s, _ := testServer(t, newFake(), nil)
	s.profiler = p
	w := do(s, "POST", "/start_profile", `{"output_dir":"/etc/cron.d","profile_prefix":"../../run 1/é","num_steps":5,"activities":["CPU","GPU"],"profile_by_stage":true}`)
	require.Equal(t, 200, w.Code, w.Body.String())
	assert.Equal(t, ProfileRequest{Name: "run1", NumSteps: 5, Activities: []string{"CPU", "GPU"}, ByStage: true}, p.got)
	assert.Equal(t, 200, do(s, "GET", "/start_profile", "").Code, "seed-era clients send no body")
	p.err = errors.New("a capture is running: stop it first")
	w = do(s, "POST", "/start_profile", "")
	assert.Equal(t, 409, w.Code)
	assert.Contains(t, w.Body.String(), "stop it first", "what to do")
	p.err = fmt.Errorf("capture: %w", &fs.PathError{Op: "open", Path: "/secret/path/x", Err: fs.ErrPermission})
	w = do(s, "POST", "/start_profile", "")
	assert.NotContains(t, w.Body.String(), "secret")
	assert.Contains(t, w.Body.String(), "permission denied")
	p.err = nil
	assert.Contains(t, do(s, "POST", "/stop_profile", "").Body.String(), "trace.json.gz")
}

type fakeProfiler struct {
	got ProfileRequest
	err error
}

func (p *fakeProfiler) StartProfile(_ context.Context, r ProfileRequest) (string, error) {
	p.got = r
	return "profiles/run1", p.err
}

func (p *fakeProfiler) StopProfile(context.Context) ([]string, error) {
	return []string{"trace.json.gz"}, p.err
}
