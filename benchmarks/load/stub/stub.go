// Package stub is a server with no model: it answers every kind of request with tokens at times that a script fixes. What a
// load client measures against it is known beforehand, so it tells whether the client can be believed, and how fast the client
// itself is.
package stub

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/tidwall/gjson"

	"github.com/tokamak-engine/tokamak/benchmarks/load/pace"
)

// Reply is the script of one answer.
type Reply struct {
	// Tokens to send, PerChunk (0 means 1) at a time: the first chunk TTFT after the request came, the others ITL apart for
	// each of their tokens.
	Tokens, PerChunk int
	TTFT, ITL        time.Duration
	CachedTokens     int
	Precise          bool // wait to some 50 microseconds, at a thread's cost for each stream

	Status     int    // an HTTP error in place of an answer
	Error      string // an error within the stream, in place of the last chunk
	CutAfter   int    // close the connection after this many chunks; 0: never
	NoEndMark  bool
	Finish     string // "" means "length"
	PromptBias int    // added to the number of prompt tokens told
}

// Request is what the server saw.
type Request struct {
	Path         string
	Header       http.Header
	Body         []byte
	At           time.Time   // when its body had come
	Sent         []time.Time // when each chunk of the answer had been written
	PromptTokens int         // token ids, or words of text
	MaxTokens    int
}

// Server answers on a loopback port until it is closed.
type Server struct {
	URL string
	// Flushes counts calls that empty the prefix cache.
	Flushes int

	script   func(n int, r *Request) Reply
	record   bool
	listener net.Listener
	mu       sync.Mutex
	closing  chan struct{}
	once     sync.Once
	n        int
	requests []*Request
	conns    map[net.Conn]bool
	serving  sync.WaitGroup
}

// Start serves on addr ("" picks a port). script gives the reply to the n-th request, counted from 0; nil answers all tokens
// that were asked for at once. With record the server keeps what it saw for Requests.
func Start(addr string, record bool, script func(n int, r *Request) Reply) (*Server, error) {
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	if script == nil {
		script = func(_ int, r *Request) Reply { return Reply{Tokens: r.MaxTokens} }
	}
	s := &Server{URL: "http://" + listener.Addr().String(), script: script, record: record, listener: listener,
		conns: map[net.Conn]bool{}, closing: make(chan struct{})}
	s.serving.Add(1)
	go s.accept()
	return s, nil
}

// Close ends every connection and waits for their goroutines.
func (s *Server) Close() {
	s.once.Do(func() { close(s.closing) })
	s.listener.Close()
	s.mu.Lock()
	for conn := range s.conns {
		conn.Close()
	}
	s.mu.Unlock()
	s.serving.Wait()
}

// Requests gives what came so far.
func (s *Server) Requests() []*Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*Request(nil), s.requests...)
}

func (s *Server) accept() {
	defer s.serving.Done()
	for {
		conn, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[conn] = true
		s.mu.Unlock()
		s.serving.Add(1)
		go s.serve(conn)
	}
}

// serve speaks just enough HTTP/1.1 by hand: net/http's server costs more than the client that is to be measured.
func (s *Server) serve(conn net.Conn) {
	defer s.serving.Done()
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
		conn.Close()
	}()
	in, out := bufio.NewReaderSize(conn, 16<<10), bufio.NewWriterSize(conn, 16<<10)
	for {
		r, method, err := read(in, s.record)
		if err != nil {
			return
		}
		if err := s.answer(out, method, r); err != nil {
			return
		}
		if err := out.Flush(); err != nil {
			return
		}
	}
}

// maxBody bounds a request's body.
const maxBody = 64 << 20

func read(in *bufio.Reader, header bool) (r *Request, method string, err error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return nil, "", err
	}
	method, rest, _ := strings.Cut(line, " ")
	path, _, _ := strings.Cut(rest, " ")
	r = &Request{Path: path}
	if header {
		r.Header = http.Header{}
	}
	length := 0
	for {
		line, err := in.ReadSlice('\n')
		if err != nil {
			return nil, "", err
		}
		name, value, ok := strings.Cut(strings.TrimRight(string(line), "\r\n"), ":")
		if !ok {
			break
		}
		value = strings.TrimSpace(value)
		if header {
			r.Header.Add(name, value)
		}
		if strings.EqualFold(name, "content-length") {
			if length, err = strconv.Atoi(value); err != nil || length < 0 || length > maxBody {
				return nil, "", fmt.Errorf("content length %q", value)
			}
		}
	}
	r.Body = make([]byte, length)
	if _, err := io.ReadFull(in, r.Body); err != nil {
		return nil, "", err
	}
	r.At = time.Now()
	return r, method, nil
}

func (s *Server) answer(out *bufio.Writer, method string, r *Request) error {
	wire := wires[r.Path]
	if wire == nil {
		return s.control(out, r)
	}
	if method != http.MethodPost {
		return whole(out, http.StatusMethodNotAllowed, "application/json", `{"error": "POST only"}`)
	}
	r.PromptTokens, r.MaxTokens = wire.size(r.Body)
	s.mu.Lock()
	n := s.n
	s.n++
	if s.record {
		s.requests = append(s.requests, r)
	}
	s.mu.Unlock()
	reply := s.script(n, r)
	if reply.Status != 0 {
		text, _ := json.Marshal(map[string]any{"error": map[string]string{"message": "scripted error"}})
		return whole(out, reply.Status, "application/json", string(text))
	}
	if reply.Finish == "" {
		reply.Finish = "length"
	}
	reply.PerChunk = max(reply.PerChunk, 1)
	a := answer{wire: wire, request: r, reply: &reply, prompt: r.PromptTokens + reply.PromptBias}
	if stream := gjson.GetBytes(r.Body, "stream"); stream.Exists() && !stream.Bool() {
		if err := s.sleepUntil(r.At.Add(reply.TTFT+reply.ITL*time.Duration(max(reply.Tokens-1, 0))), reply.Precise); err != nil {
			return err
		}
		err := whole(out, http.StatusOK, "application/json", string(wire.whole(&a)))
		s.sent(r)
		return err
	}
	return s.stream(out, &a)
}

func (s *Server) sent(r *Request) {
	if s.record {
		s.mu.Lock()
		r.Sent = append(r.Sent, time.Now())
		s.mu.Unlock()
	}
}

// sleepUntil fails if the server is closed meanwhile.
func (s *Server) sleepUntil(due time.Time, precise bool) error {
	if precise {
		if !pace.Until(due, s.closing) {
			return net.ErrClosed
		}
		return nil
	}
	timer := time.NewTimer(time.Until(due))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-s.closing:
		return net.ErrClosed
	}
}

var errCut = errors.New("connection cut by the script")

func (s *Server) stream(out *bufio.Writer, a *answer) error {
	out.WriteString("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	due := a.request.At.Add(a.reply.TTFT)
	var buf []byte
	for chunk := 1; a.done < a.reply.Tokens; chunk++ {
		k := min(a.reply.PerChunk, a.reply.Tokens-a.done)
		if a.done > 0 {
			due = due.Add(a.reply.ITL * time.Duration(k))
		}
		if time.Until(due) > 0 {
			if err := out.Flush(); err != nil {
				return err
			}
			if err := s.sleepUntil(due, a.reply.Precise); err != nil {
				return err
			}
		}
		a.done += k
		a.fresh = k
		last := a.done == a.reply.Tokens
		if last && a.reply.Error != "" {
			buf = a.wire.frame(buf[:0], fmt.Appendf(nil, `{"error": {"message": %q}}`, a.reply.Error))
		} else {
			buf = a.wire.frame(buf[:0], a.wire.chunk(a, last))
		}
		httpChunk(out, buf)
		if a.reply.ITL > 0 && !last {
			if err := out.Flush(); err != nil {
				return err
			}
		}
		s.sent(a.request)
		if chunk == a.reply.CutAfter {
			out.Flush()
			return errCut
		}
	}
	if !a.reply.NoEndMark {
		for _, event := range a.wire.end(a) {
			httpChunk(out, a.wire.frame(buf[:0], event))
		}
	}
	_, err := out.WriteString("0\r\n\r\n")
	return err
}

func httpChunk(out *bufio.Writer, data []byte) {
	out.WriteString(strconv.FormatInt(int64(len(data)), 16))
	out.WriteString("\r\n")
	out.Write(data)
	out.WriteString("\r\n")
}

func (s *Server) control(out *bufio.Writer, r *Request) error {
	switch r.Path {
	case "/health":
		return whole(out, http.StatusOK, "text/plain", "")
	case "/v1/models":
		return whole(out, http.StatusOK, "application/json", `{"object": "list", "data": [{"id": "stub", "object": "model", "owned_by": "tokamak"}]}`)
	case "/get_model_info", "/model_info":
		return whole(out, http.StatusOK, "application/json", `{"model_path": "stub", "tokenizer_path": "stub", "is_generation": true}`)
	case "/get_server_info", "/server_info":
		return whole(out, http.StatusOK, "application/json", `{"internal_states": [{}], "version": "stub"}`)
	case "/flush_cache", "/reset_prefix_cache":
		s.mu.Lock()
		s.Flushes++
		s.mu.Unlock()
		return whole(out, http.StatusOK, "text/plain", "Cache flushed.\n")
	default:
		return whole(out, http.StatusNotFound, "application/json", `{"error": {"message": "no such route"}}`)
	}
}

func whole(out *bufio.Writer, status int, kind, body string) error {
	_, err := fmt.Fprintf(out, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", status, http.StatusText(status), kind, len(body), body)
	return err
}
