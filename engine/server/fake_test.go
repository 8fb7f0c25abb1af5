package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// fakeEngine is a generator with a script: token i of every answer is the i-th byte of text, over and over.
type fakeEngine struct {
	text  string
	clock func() time.Time
	// before is asked before a request is admitted, step before each token; nil lets all pass.
	before func(engine.Request) error
	step   func(ctx context.Context, r engine.Request, i int) error
	busy   bool

	running atomic.Int64
	broken  atomic.Pointer[error]

	mu      sync.Mutex
	aborted map[string]context.CancelCauseFunc
	seen    []engine.Request
}

func (f *fakeEngine) Stream(ctx context.Context, r engine.Request) iter.Seq2[engine.Event, error] {
	return func(yield func(engine.Event, error) bool) {
		if f.before != nil {
			if err := f.before(r); err != nil {
				yield(engine.Event{}, err)
				return
			}
		}
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		f.mu.Lock()
		f.aborted[r.ID] = cancel
		f.seen = append(f.seen, r)
		f.mu.Unlock()
		f.running.Add(1)
		defer f.running.Add(-1)

		out := &engine.Output{ID: r.ID, PromptTokens: len(r.InputIDs), CachedTokens: len(r.InputIDs) / 2, Arrived: f.clock()}
		out.Scheduled, out.FirstToken = out.Arrived.Add(time.Millisecond), out.Arrived.Add(2*time.Millisecond)
		fail := func(err error) {
			out.Finish, out.Finished = engine.FinishAbort, f.clock()
			if ctx.Err() != nil && context.Cause(ctx) == engine.ErrAborted {
				err = engine.ErrAborted
			}
			yield(engine.Event{At: f.clock(), Done: out}, err)
		}
		if r.Sampling.MaxNewTokens == 0 {
			out.Finish, out.Finished = engine.FinishLength, f.clock()
			f.scorePrompt(&r, out)
			yield(engine.Event{At: f.clock(), Done: out}, nil)
			return
		}
		var text strings.Builder
		for i := range r.Sampling.MaxNewTokens {
			if ctx.Err() != nil {
				fail(ctx.Err())
				return
			}
			if f.step != nil {
				if err := f.step(ctx, r, i); err != nil {
					fail(err)
					return
				}
			}
			id := int32(f.text[i%len(f.text)])
			ev := engine.Event{Text: string(rune(id)), TokenIDs: []int32{id}, At: f.clock()}
			if r.Sampling.LogProbs {
				lp := engine.TokenLogProb{Token: id, LogProb: -0.5}
				for k := range r.Sampling.TopLogProbs {
					lp.Top = append(lp.Top, engine.TokenLogProb{Token: id + int32(k), LogProb: -0.5 - float32(k)})
				}
				ev.LogProbs = []engine.TokenLogProb{lp}
			}
			out.TokenIDs = append(out.TokenIDs, id)
			out.LogProbs = append(out.LogProbs, ev.LogProbs...)
			stop := ""
			for _, s := range r.Sampling.Stop {
				if strings.HasSuffix(text.String()+ev.Text, s) {
					stop = s
				}
			}
			if stop != "" {
				out.Finish, out.MatchedString = engine.FinishStop, stop
				ev.Text = ""
			} else {
				text.WriteString(ev.Text)
				if i == r.Sampling.MaxNewTokens-1 {
					out.Finish = engine.FinishLength
				}
			}
			if out.Finish != "" {
				out.Text = text.String()
				out.Finished = out.Arrived.Add(10 * time.Millisecond)
				f.scorePrompt(&r, out)
				ev.Done = out
			}
			if !yield(ev, nil) || ev.Done != nil {
				return
			}
		}
	}
}

func (f *fakeEngine) scorePrompt(r *engine.Request, out *engine.Output) {
	if r.PromptLogProbs {
		for _, id := range r.InputIDs[1:] {
			out.PromptLogProbs = append(out.PromptLogProbs, engine.TokenLogProb{Token: id, LogProb: -1.25})
		}
	}
}

func (f *fakeEngine) Generate(ctx context.Context, r engine.Request) (*engine.Output, error) {
	var out *engine.Output
	for ev, err := range f.Stream(ctx, r) {
		out = ev.Done
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

func (f *fakeEngine) Abort(id string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	cancel := f.aborted[id]
	if cancel != nil {
		cancel(engine.ErrAborted)
	}
	return cancel != nil
}

func (f *fakeEngine) FlushCache() error {
	if f.busy || f.running.Load() > 0 {
		return engine.ErrBusy
	}
	return nil
}

func (f *fakeEngine) Stats() engine.Stats {
	return engine.Stats{Running: int(f.running.Load()), NumPages: 64, PageSize: 16, PromptTokensTotal: 7, OutputTokensTotal: 3}
}

func (f *fakeEngine) Err() error {
	if err := f.broken.Load(); err != nil {
		return *err
	}
	return nil
}

// requests returns what the engine was asked for.
func (f *fakeEngine) requests() []engine.Request {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]engine.Request(nil), f.seen...)
}

// fakeCodec has a token for each byte, and 256 for the beginning of a sequence.
type fakeCodec struct{}

func (fakeCodec) Encode(text string, addSpecial bool) (ids []int32) {
	if addSpecial {
		ids = append(ids, 256)
	}
	for _, b := range []byte(text) {
		ids = append(ids, int32(b))
	}
	return ids
}

func (fakeCodec) Decode(ids []int32, skipSpecial bool) string {
	var b bytes.Buffer
	for _, id := range ids {
		switch {
		case id < 256:
			b.WriteByte(byte(id))
		case !skipSpecial:
			b.WriteString("<s>")
		}
	}
	return b.String()
}

func (fakeCodec) TokenBytes(id int32) []byte {
	if id >= 256 {
		return []byte("<s>")
	}
	return []byte{byte(id)}
}

func (fakeCodec) ApplyChatTemplate(messages []tokenizer.Message, o tokenizer.ChatOptions) (string, error) {
	var b strings.Builder
	for _, tool := range o.Tools {
		fmt.Fprintf(&b, "[tool %s]", tool)
	}
	for _, m := range messages {
		if m.Content == "refuse me" {
			return "", &tokenizer.TemplateError{Problem: "roles must alternate"}
		}
		fmt.Fprintf(&b, "<%s>%v", m.Role, m.Content)
	}
	if o.AddGenerationPrompt {
		b.WriteString("<assistant>")
	}
	return b.String(), nil
}

const (
	fakeVocab   = 257
	fakeContext = 4096
)

func fakeModel() *modelInfo {
	return &modelInfo{
		name: "tiny", path: "/secret/path/tiny", tokenizerPath: "/secret/path/tiny", vocabSize: fakeVocab, maxContext: fakeContext,
		maxToken: 3, codec: fakeCodec{}, maxRunning: 8, capacity: 1024, backend: "fake", device: "none", options: engine.DefaultOptions(),
	}
}

func newFake() *fakeEngine {
	return &fakeEngine{text: "hello world ", clock: time.Now, aborted: map[string]context.CancelCauseFunc{}}
}

// testServer returns a server over a fake engine that change may alter, and what it logs.
func testServer(t testing.TB, f *fakeEngine, change func(*Options)) (*Server, *logBuffer) {
	o := DefaultOptions()
	o.Port, o.LogInterval, o.ServedModelName = 0, 0, "tiny"
	o.ShutdownTimeout = 2 * time.Second
	if change != nil {
		change(&o)
	}
	logs := &logBuffer{}
	s, err := New(o, nil, slog.New(slog.NewTextHandler(logs, &slog.HandlerOptions{Level: slog.LevelDebug})))
	require.NoError(t, err)
	if f != nil {
		s.start(f, fakeModel())
	}
	return s, logs
}

// listen serves s on loopback until the test ends, and returns its base URL.
func listen(t testing.TB, s *Server) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { done <- s.Serve(ln) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		s.Shutdown(ctx)
		require.NoError(t, <-done)
	})
	return "http://" + ln.Addr().String()
}

// do sends one request to s without a network.
func do(s *Server, method, path, body string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	for i := 0; i+1 < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// send sends a body over the network and returns status and answer.
func send(t testing.TB, url, body string) (int, string) {
	resp, err := http.Post(url, "application/json", strings.NewReader(body))
	require.NoError(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(b)
}

// logBuffer is a log that goroutines may write and a test read.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// quiet is a log that nobody reads.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// eventually polls until ok is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 10*time.Second, 2*time.Millisecond, what)
}
