package server

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// allocated runs f and returns the bytes that were allocated meanwhile.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestSlowlorisLeavesRoom holds hundreds of connections half open, byte by byte, while clients work: they are served, and the
// server drops each attacker when its header's time is over.
func TestSlowlorisLeavesRoom(t *testing.T) {
	s, _ := testServer(t, newFake(), func(o *Options) { o.HeaderTimeout = 400 * time.Millisecond })
	base := listen(t, s)
	const attackers = 300
	stop := make(chan struct{})
	var dropped, wg sync.WaitGroup
	dropped.Add(attackers)
	for range attackers {
		wg.Go(func() {
			c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
			if !assert.NoError(t, err) {
				dropped.Done()
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, "POST /generate HTTP/1.1\r\nHost: x\r\n")
			go func() {
				_, _ = io.Copy(io.Discard, c) // ends when the server closes the connection
				dropped.Done()
			}()
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Millisecond): // the attack is its slowness
				}
				if _, err := fmt.Fprintf(c, "X-%d: y\r\n", i); err != nil {
					return
				}
			}
		})
	}
	for range 20 {
		status, _ := send(t, base+"/v1/completions", `{"prompt":"a","max_tokens":4}`)
		require.Equal(t, 200, status)
	}
	all := make(chan struct{})
	go func() { dropped.Wait(); close(all) }()
	select {
	case <-all:
	case <-time.After(10 * time.Second):
		t.Error("attackers still hold their connections")
	}
	close(stop)
	wg.Wait()
}

// TestHeaderFloods sends headers without an end, at full speed, in three forms: each connection gets 431 or is closed within
// maxHeaderBytes and what net/http reads ahead.
func TestHeaderFloods(t *testing.T) {
	s, _ := testServer(t, newFake(), nil)
	base := listen(t, s)
	line := "X-Flood: " + strings.Repeat("y", 1000) + "\r\n"
	for name, flood := range map[string]struct{ first, again string }{
		"many lines": {"GET /health HTTP/1.1\r\nHost: x\r\n", line},
		"one line":   {"GET /health HTTP/1.1\r\nHost: x\r\nX-Flood: ", strings.Repeat("y", 1000)},
		"long path":  {"GET /", strings.Repeat("y", 1000)},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
			require.NoError(t, err)
			defer c.Close()
			answer := make(chan string, 1)
			go func() {
				b := make([]byte, 64)
				n, _ := c.Read(b)
				answer <- string(b[:n])
			}()
			require.NoError(t, c.SetWriteDeadline(time.Now().Add(10*time.Second)))
			_, err = io.WriteString(c, flood.first)
			sent := len(flood.first)
			const most = 64 << 20 // what sockets' buffers and all can swallow is far less
			for err == nil && sent < most {
				_, err = io.WriteString(c, flood.again)
				sent += len(flood.again)
			}
			require.Less(t, sent, most, "the server reads on and on")
			if got := <-answer; got != "" {
				assert.True(t, strings.HasPrefix(got, "HTTP/1.1 431 "), "%q", got)
			}
		})
	}
	assert.Equal(t, 200, do(s, "GET", "/health", "").Code)
}

// TestCompressedBodiesAreRefused sends a bomb: 32 KB of gzip that would be 32 MB of JSON. The server expands nothing, ever.
func TestCompressedBodiesAreRefused(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	_, err := io.WriteString(z, `{"prompt":"`+strings.Repeat("a", 32<<20)+`"}`)
	require.NoError(t, err)
	require.NoError(t, z.Close())
	require.Less(t, bomb.Len(), 64<<10)
	s, _ := testServer(t, newFake(), nil)
	for _, encoding := range []string{"gzip", "deflate", "br", "zstd", "gzip, gzip"} {
		var code int
		spent := allocated(func() {
			code = do(s, "POST", "/v1/completions", bomb.String(), "Content-Encoding", encoding).Code
		})
		assert.Equal(t, 415, code, encoding)
		assert.Less(t, spent, uint64(1<<20), "%s: bytes allocated", encoding)
	}
}

// TestHostileBodiesCostInProportion bounds what decoding may allocate by the size of what came, whatever it is.
func TestHostileBodiesCostInProportion(t *testing.T) {
	f := newFake()
	f.before = func(engine.Request) error { return engine.ErrQueueFull } // decoding is what is measured
	s, _ := testServer(t, f, nil)
	const n = 200_000
	repeat := func(before, piece, after string) string {
		return before + strings.Repeat(piece, n/len(piece)) + after
	}
	for name, body := range map[string]string{
		"deep arrays":     repeat(`{"prompt":`, "[", ""),
		"deep objects":    repeat(`{"metadata":`, `{"a":`, ""),
		"empty prompts":   repeat(`{"prompt":[`, `"",`, `""]}`),
		"short prompts":   repeat(`{"prompt":[`, `"a",`, `"a"],"n":128}`),
		"lists of lists":  repeat(`{"prompt":[`, `[1],`, `[1]]}`),
		"ids":             repeat(`{"prompt":[`, `1,`, `1]}`),
		"commas":          repeat(`{"prompt":[`, `,`, `]}`),
		"fields":          repeat(`{"`, `a":1,"`, `b":2}`),
		"escapes":         repeat(`{"prompt":"`, `\u0041`, `"}`),
		"stops":           repeat(`{"prompt":"a","stop":[`, `"b",`, `"b"]}`),
		"logit bias":      repeat(`{"prompt":"a","logit_bias":{`, `"1":1,`, `"2":1}}`),
		"messages":        repeat(`{"messages":[`, `{"role":"user","content":"a"},`, `{"role":"user","content":"a"}]}`),
		"parts":           repeat(`{"messages":[{"role":"user","content":[`, `{"type":"text","text":"a"},`, `{"type":"text","text":"a"}]}]}`),
		"tools":           repeat(`{"messages":[{"role":"user","content":"a"}],"tools":[`, `{"type":"function","function":{"name":"f"}},`, `{"type":"function","function":{"name":"f"}}]}`),
		"sampling params": repeat(`{"text":"a","sampling_params":[`, `{},`, `{}]}`),
		"number":          repeat(`{"prompt":"a","seed":`, `9`, `}`),
		"schema":          repeat(`{"prompt":"a","response_format":{"type":"json_schema","json_schema":{"schema":`, `{"not":`, `1}}}`),
	} {
		t.Run(name, func(t *testing.T) {
			for _, path := range []string{"/generate", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/api/chat", "/tokenize"} {
				var code int
				start := time.Now()
				spent := allocated(func() { code = do(s, "POST", path, body).Code })
				assert.Less(t, code, 500, path)
				// The dearest form, a list of tiny objects, makes a map for each: 194 bytes a byte. With --max-body-bytes
				// that bounds a request.
				assert.Less(t, spent, uint64(256*len(body)+1<<20), "%s: %d bytes allocated for each that came", path, spent/uint64(len(body)))
				assert.Less(t, time.Since(start), 3*time.Second, path)
			}
		})
	}
}

// openText opens a real engine with random weights and a tokenizer of single bytes.
func openText(t testing.TB) *engine.Engine {
	tiny, err := configs.Dir("tiny")
	require.NoError(t, err)
	config, err := os.ReadFile(filepath.Join(tiny, "config.json"))
	require.NoError(t, err)
	vocab := map[string]int{"<s>": 0, "</s>": 1}
	for b := range 256 { // GPT-2's alphabet of bytes: printable ones as they are, others above 255
		r := rune(b)
		if b <= ' ' || b >= 0x7f && b <= 0xa0 || b == 0xad {
			switch {
			case b <= ' ':
				r = rune(0x100 + b)
			case b <= 0xa0:
				r = rune(0x121 + b - 0x7f)
			default:
				r = 0x143
			}
		}
		vocab[string(r)] = b + 2
	}
	file, err := json.Marshal(map[string]any{
		"version":       "1.0",
		"added_tokens":  []any{map[string]any{"id": 0, "content": "<s>", "special": true}, map[string]any{"id": 1, "content": "</s>", "special": true}},
		"pre_tokenizer": map[string]any{"type": "ByteLevel", "add_prefix_space": false, "use_regex": false},
		"decoder":       map[string]any{"type": "ByteLevel"},
		"model":         map[string]any{"type": "BPE", "vocab": vocab, "merges": []string{}},
	})
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), config, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tokenizer.json"), file, 0o600))
	o := engine.DefaultOptions()
	o.LoadFormat, o.Device, o.MaxTotalTokens = "dummy", "cpu", 32768
	e, err := engine.Open(context.Background(), dir, engine.WithOptions(o))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, e.Close()) })
	return e
}

// TestHostilePatternsDoNotStopOthers constrains output to patterns that backtracking engines never end on, and to schemas that
// explode: each is answered in bounded time, with text that matches or a refusal, and meanwhile plain requests go on.
func TestHostilePatternsDoNotStopOthers(t *testing.T) {
	e := openText(t)
	s, _ := testServer(t, nil, nil)
	s.Start(e)
	base := listen(t, s)
	quote := func(v any) string {
		b, err := json.Marshal(v)
		require.NoError(t, err)
		return string(b)
	}
	deep := strings.Repeat(`{"type":"array","items":`, 500) + `{"type":"string"}` + strings.Repeat("}", 500)
	hostile := map[string]string{
		"nested stars":   `"regex":` + quote(`(a*)*(a*)*(a*)*b`),
		"alternatives":   `"regex":` + quote(`(a|a|ab|aab)*c`),
		"far end":        `"regex":` + quote(`(.*a.{20}){3}`),
		"counted counts": `"regex":` + quote(`((a{1,1000}){1,1000}){1,1000}`),
		"long":           `"regex":` + quote(strings.Repeat("(a?)", 2000)),
		"classes":        `"regex":` + quote(strings.Repeat(`\w{0,50}\d`, 40)),
		"deep schema":    `"json_schema":` + quote(deep),
		"recursion":      `"json_schema":` + quote(`{"$defs":{"a":{"anyOf":[{"$ref":"#/$defs/a"},{"$ref":"#/$defs/a"}]}},"$ref":"#/$defs/a"}`),
		"many optional":  `"json_schema":` + quote(manyOptional(60)),
		"long enum":      `"json_schema":` + quote(`{"enum":["`+strings.Repeat(`x","y`, 5000)+`"]}`),
	}
	var wg sync.WaitGroup
	for name, spec := range hostile {
		wg.Go(func() {
			start := time.Now()
			status, body := send(t, base+"/generate", `{"text":"a","sampling_params":{"max_new_tokens":8,"temperature":0,`+spec+`}}`)
			assert.Contains(t, []int{200, 400}, status, "%s: %.200s", name, body)
			assert.Less(t, time.Since(start), 30*time.Second, name)
			assert.Less(t, len(body), 16<<10, name)
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	slowest, served := time.Duration(0), 0
	for ended := false; !ended || served < 3; {
		select {
		case <-done:
			ended = true
		default:
		}
		start := time.Now()
		status, body := send(t, base+"/generate", `{"text":"plain","sampling_params":{"max_new_tokens":4,"ignore_eos":true}}`)
		require.Equal(t, http.StatusOK, status, body)
		slowest, served = max(slowest, time.Since(start)), served+1
	}
	t.Logf("%d plain requests meanwhile, the slowest took %v", served, slowest)
	assert.Less(t, slowest, 5*time.Second, "a plain request waited for a hostile one")
}

// manyOptional is a schema of an object with n properties, none required.
func manyOptional(n int) string {
	var b strings.Builder
	b.WriteString(`{"type":"object","properties":{`)
	for i := range n {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"p%d":{"type":["string","number","null"]}`, i)
	}
	b.WriteString(`}}`)
	return b.String()
}

// TestTenantsDoNotSeeEachOthersPrefixes asks for one long prompt as two tenants, on every route: a tenant learns from cached
// tokens, and from the time that they save, only what itself has asked before.
func TestTenantsDoNotSeeEachOthersPrefixes(t *testing.T) {
	e := openText(t)
	s, _ := testServer(t, nil, nil)
	s.Start(e)
	prompt := strings.Repeat("the merger is announced on Monday ", 10)
	cached := func(path, salt string) int {
		t.Helper()
		var body string
		switch path {
		case "/generate":
			body = `{"text":"` + prompt + `","sampling_params":{"max_new_tokens":1},"cache_salt":"` + salt + `"}`
		case "/v1/completions":
			body = `{"prompt":"` + prompt + `","max_tokens":1,"cache_salt":"` + salt + `"}`
		}
		w := do(s, "POST", path, body)
		require.Equal(t, 200, w.Code, w.Body.String())
		var answer struct {
			Meta struct {
				Cached int `json:"cached_tokens"`
			} `json:"meta_info"`
			Usage struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		require.NoError(t, json.Unmarshal(w.Body.Bytes(), &answer))
		return max(answer.Meta.Cached, answer.Usage.Details.Cached)
	}
	for i, path := range []string{"/generate", "/v1/completions"} {
		a, b := fmt.Sprintf("tenant-a-%d", i), fmt.Sprintf("tenant-b-%d", i)
		assert.Zero(t, cached(path, a))
		assert.Greater(t, cached(path, a), 200, "%s: the tenant's own prefix is there", path)
		assert.Zero(t, cached(path, b), "%s: another tenant's is not", path)
		assert.Greater(t, cached(path, b), 200, path)
	}
	// Those without a salt share, and share with nobody who has one.
	assert.Zero(t, cached("/generate", ""))
	assert.Greater(t, cached("/v1/completions", ""), 200)
}
