package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
)

// sink is a connection that takes everything.
type sink struct{ header http.Header }

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(int)             {}
func (s *sink) Write(p []byte) (int, error) { return len(p), nil }
func (s *sink) FlushError() error           { return nil }

func benchCall(b testing.TB) *call {
	s, _ := testServer(b, newFake(), nil)
	r := httptest.NewRequest("POST", "/generate", nil)
	return &call{s: s, live: s.live.Load(), w: &response{ResponseWriter: &sink{http.Header{}}}, r: r, start: s.now()}
}

// BenchmarkEvent is the cost of one token on its way from the engine's event to the connection, without the system call.
//
//	go test ./engine/server -run '^$' -bench Event
func BenchmarkEvent(b *testing.B) {
	tokens := make([]engine.Event, 256)
	for i := range tokens {
		tokens[i] = engine.Event{Text: " token", TokenIDs: []int32{int32(1000 + i)}}
	}
	w := &work{id: "0123456789abcdef01234567", n: 1, requests: []engine.Request{{ID: "0123456789abcdef01234567", InputIDs: make([]int32, 512)}}}
	encoders := []struct {
		name string
		make func(c *call) encoder
	}{
		{"native-delta", func(c *call) encoder { return newGenerateEncoder(c, &generateRequest{work: w, delta: true}) }},
		{"native-cumulative", func(c *call) encoder { return newGenerateEncoder(c, &generateRequest{work: w}) }},
		{"completions", func(c *call) encoder {
			q := &completionsRequest{openAIRequest: &openAIRequest{work: w, model: "tiny", created: 1}}
			return &completionsEncoder{c: c, q: q, states: make([]completionsState, 1)}
		}},
		{"chat", func(c *call) encoder { return newChatEncoder(c, &openAIRequest{work: w, model: "tiny", created: 1}) }},
	}
	for _, e := range encoders {
		b.Run("api="+e.name, func(b *testing.B) {
			c := benchCall(b)
			b.ReportAllocs()
			written := 0
			for i := 0; b.Loop(); i++ {
				// A generation of 256 tokens, over and over: what it costs to begin one is shared among its tokens.
				if i%len(tokens) == 0 {
					b.StopTimer()
					out := newStreamWriter(c, eventStream)
					enc := e.make(c)
					b.StartTimer()
					benchEnc, benchOut = enc, out
				}
				benchOut.buf = benchEnc.event(benchOut.buf, 0, &tokens[i%len(tokens)])
				written += len(benchOut.buf)
				if err := benchOut.flush(); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(written)/float64(b.N), "B/token")
		})
	}
}

var (
	benchEnc encoder
	benchOut *streamWriter
)

// TestEventsDoNotAllocate holds what the benchmark shows: a token of a delta stream costs no memory.
func TestEventsDoNotAllocate(t *testing.T) {
	c := benchCall(t)
	w := &work{id: "id", n: 1, requests: []engine.Request{{ID: "id", InputIDs: make([]int32, 512)}}}
	for name, enc := range map[string]encoder{
		"native": newGenerateEncoder(c, &generateRequest{work: w, delta: true}),
		"chat":   newChatEncoder(c, &openAIRequest{work: w, model: "tiny"}),
	} {
		out := newStreamWriter(c, eventStream)
		ev := engine.Event{Text: " token", TokenIDs: []int32{17}}
		allocs := testing.AllocsPerRun(200, func() {
			out.buf = enc.event(out.buf, 0, &ev)
			require.NoError(t, out.flush())
		})
		require.Zero(t, allocs, name)
	}
}

// BenchmarkStream is one streamed request of 128 tokens over loopback, client included; the engine answers at once.
func BenchmarkStream(b *testing.B) {
	for _, path := range []string{"/generate", "/v1/completions"} {
		b.Run(fmt.Sprintf("api=%s", path[1:]), func(b *testing.B) {
			const tokens = 128
			s, _ := testServer(b, newFake(), nil)
			base := listen(b, s)
			body := map[string]string{
				"/generate":       `{"text":"a","stream":true,"stream_mode":"delta","sampling_params":{"max_new_tokens":128}}`,
				"/v1/completions": `{"prompt":"a","stream":true,"max_tokens":128}`,
			}[path]
			b.ReportAllocs()
			for b.Loop() {
				code, _ := send(b, base+path, body)
				if code != 200 {
					b.Fatal(code)
				}
			}
			b.ReportMetric(tokens*float64(b.N)/b.Elapsed().Seconds(), "tok/s")
		})
	}
}
