package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/tokamak-engine/tokamak/engine/metrics"
)

// call is one HTTP request on its way.
type call struct {
	s      *Server
	live   *live // nil on routes that do not need an engine
	w      *response
	r      *http.Request
	start  time.Time
	id     string // of the request, in logs and the X-Request-Id header
	held   int64  // bytes of body counted in Server.bodyBytes
	tokens int    // output tokens, for the log
}

// response remembers whether and what was answered.
type response struct {
	http.ResponseWriter
	status int
}

// WriteHeader implements [http.ResponseWriter].
func (w *response) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements [http.ResponseWriter].
func (w *response) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets [http.ResponseController] reach the connection.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if c, ok := r.Context().Value(connKey{}).(*conn); ok {
		c.handling()
	}
	c := &call{s: s, w: &response{ResponseWriter: w}, r: r, start: s.now(), id: s.requestID(r)}
	h := w.Header()
	h.Set("X-Request-Id", c.id)
	h.Set("X-Content-Type-Options", "nosniff")
	c.extendWrite()
	if r.ContentLength != 0 { // net/http reads a body before it answers, even one that nobody looks at
		http.NewResponseController(w).SetReadDeadline(time.Now().Add(s.options.BodyTimeout))
	}
	route := s.route(r.URL.Path)
	defer func() {
		if p := recover(); p != nil {
			begun := c.w.status != 0
			c.finish(route, c.panicked(p))
			if begun {
				panic(http.ErrAbortHandler) // a broken answer must not look like a whole one
			}
		}
	}()
	defer c.release()
	c.finish(route, c.serve(route))
}

// panicked makes an error of a panic in this call, wherever it happened. Engine, tokenizer and grammar run in the caller's
// goroutine, on what a client sent: a mistake in them must end that request alone.
func (c *call) panicked(p any) error {
	c.s.log.Error("panic in a request", "id", c.id, "panic", p, "stack", string(debug.Stack()))
	return errors.New("panic")
}

// serve runs the route if the request may have it.
func (c *call) serve(route *route) error {
	s, r := c.s, c.r
	if route == nil || !route.open {
		if !s.authorized(r) {
			return errUnauthorized
		}
	}
	if route == nil {
		return &apiError{status: http.StatusNotFound, kind: "invalid_request_error", code: "not_found", outcome: metrics.OutcomeInvalid,
			message: "no such route: see the server's documentation for the list"}
	}
	if site := r.Header.Get("Sec-Fetch-Site"); !route.open && site != "" && site != "same-origin" && site != "none" {
		return errCrossSite
	}
	if !route.allows(r.Method) {
		c.w.Header().Set("Allow", strings.Join(route.methods, ", "))
		return &apiError{status: http.StatusMethodNotAllowed, kind: "invalid_request_error", code: "method_not_allowed", outcome: metrics.OutcomeInvalid,
			message: "method not allowed: use " + strings.Join(route.methods, " or ")}
	}
	c.live = s.live.Load()
	if route.needs != nothing {
		if state := s.health(); state != healthy && !(state == draining && route.needs == engineThere) {
			return state.err()
		}
	}
	return route.serve(c)
}

// finish answers with err if nothing was answered yet, counts the outcome and logs.
func (c *call) finish(route *route, err error) {
	s := c.s
	level, outcome := slog.LevelDebug, metrics.OutcomeOK
	attrs := make([]any, 0, 20)
	if err != nil {
		e := apiErrorOf(c.r.Context(), err)
		outcome = e.outcome
		attrs = append(attrs, "code", e.code)
		if e.status == http.StatusInternalServerError {
			level = slog.LevelError
			attrs = append(attrs, "error", err)
		}
		if c.w.status == 0 {
			if e.code == "queue_full" {
				e.retryAfter = s.retryAfter()
			}
			c.extendWrite() // the wait may have been longer than a write may take
			e.write(c.w)
		}
	}
	if route != nil && route.needs == engineReady {
		s.metrics.Ended(outcome)
		if s.options.LogRequests {
			level = max(level, slog.LevelInfo)
		}
	}
	if s.log.Enabled(context.Background(), level) {
		attrs = append([]any{"id", c.id, "method", c.r.Method, "path", clip([]byte(c.r.URL.Path)), "status", c.w.status,
			"outcome", outcome, "tokens", c.tokens, "took", s.now().Sub(c.start).Round(time.Microsecond)}, attrs...)
		s.log.Log(context.Background(), level, "request", attrs...)
	}
}

// retryAfter guesses when the queue has room: the time that the work of those before takes, as far as the last second tells.
func (s *Server) retryAfter() time.Duration {
	const least, most = time.Second, 60 * time.Second
	l := s.live.Load()
	if l == nil {
		return least
	}
	st := l.gen.Stats()
	if st.OutputTokRate <= 0 || st.UsedTokens <= 0 {
		return least
	}
	return min(most, max(least, time.Duration(float64(st.UsedTokens)/st.OutputTokRate*float64(time.Second))))
}

// authorized compares the key that the client sent with the server's in a time that does not depend on either.
func (s *Server) authorized(r *http.Request) bool {
	if s.options.APIKey == "" {
		return true
	}
	key := r.Header.Get("X-Api-Key")
	if auth := r.Header.Get("Authorization"); auth != "" {
		scheme, token, _ := strings.Cut(auth, " ")
		if strings.EqualFold(scheme, "bearer") {
			key = strings.TrimSpace(token)
		}
	}
	want, got := sha256.Sum256([]byte(s.options.APIKey)), sha256.Sum256([]byte(key))
	return subtle.ConstantTimeCompare(want[:], got[:]) == 1
}

// requestID takes the client's X-Request-Id if it is harmless, or makes one up.
func (s *Server) requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > maxIDBytes {
		return s.newID()
	}
	for i := range len(id) {
		if c := id[i]; !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte("-_.:", c) >= 0) {
			return s.newID()
		}
	}
	return id
}

func randomID() string {
	var b [12]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// extendWrite gives the client the time of one write from now.
func (c *call) extendWrite() {
	http.NewResponseController(c.w.ResponseWriter).SetWriteDeadline(time.Now().Add(c.s.options.WriteTimeout))
}

// body reads the request's body within its bounds of size and time.
func (c *call) body() ([]byte, error) {
	if encoding := c.r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		return nil, errEncoding
	}
	most := int64(c.s.options.MaxBodyBytes)
	size := c.r.ContentLength
	if size > most {
		return nil, c.tooLarge(most)
	}
	var buf bytes.Buffer
	if size > 0 {
		const trust = 1 << 20 // what a client only says it will send is not set aside
		buf.Grow(int(min(size, trust)) + bytes.MinRead)
	}
	_, err := buf.ReadFrom(io.LimitReader(&countedBody{c}, most+1))
	if err == nil && int64(buf.Len()) <= most {
		http.NewResponseController(c.w.ResponseWriter).SetReadDeadline(time.Time{})
	} else { // the deadline stays, or net/http would wait for the rest of the body
		c.w.Header().Set("Connection", "close")
	}
	switch {
	case int64(buf.Len()) > most:
		return nil, c.tooLarge(most)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, errBodyTimeout
	case errors.Is(err, errBodies):
		return nil, errBodies
	case err != nil:
		return nil, badRequest("", "incomplete_body", "the body ended early or is not well-formed HTTP")
	case buf.Len() == 0:
		return nil, badRequest("", "invalid_json", "the body is empty: want a JSON object")
	}
	return buf.Bytes(), nil
}

// countedBody counts what is read against the server's memory for bodies, until [call.release].
type countedBody struct{ c *call }

// Read implements [io.Reader].
func (b *countedBody) Read(p []byte) (int, error) {
	n, err := b.c.r.Body.Read(p)
	b.c.held += int64(n)
	if b.c.s.bodyBytes.Add(int64(n)) > maxBodiesInMemory {
		return n, errBodies
	}
	return n, err
}

// release gives the body's memory back: it has been decoded, or the call is over.
func (c *call) release() {
	c.s.bodyBytes.Add(-c.held)
	c.held = 0
}

// tooLarge refuses the body, and reads and drops a bounded part of it first: most clients look for an answer only after they
// have sent all.
func (c *call) tooLarge(most int64) error {
	if c.r.Header.Get("Expect") == "" {
		rc := http.NewResponseController(c.w.ResponseWriter)
		rc.SetReadDeadline(time.Now().Add(c.s.options.BodyTimeout))
		io.CopyN(io.Discard, c.r.Body, maxDrainBytes)
		c.extendWrite()
	}
	c.w.Header().Set("Connection", "close")
	return &apiError{status: http.StatusRequestEntityTooLarge, kind: "invalid_request_error", code: "body_too_large", outcome: metrics.OutcomeInvalid,
		message: "the body is larger than " + byteCount(most) + ": send less or raise --max-body-bytes"}
}

// object reads the body as a JSON object.
func (c *call) object() (*object, error) {
	body, err := c.body()
	if err != nil {
		return nil, err
	}
	o, bad := parseObject(body)
	if bad != nil {
		return nil, bad
	}
	return o, nil
}

// context is the request's, with the deadline that the client or the server sets: asked is the client's field in seconds.
func (c *call) context(asked float32) (context.Context, context.CancelFunc, error) {
	timeout := c.s.options.RequestTimeout
	shorten := func(d time.Duration) {
		if d > 0 && (timeout == 0 || d < timeout) {
			timeout = d
		}
	}
	shorten(time.Duration(float64(asked) * float64(time.Second)))
	if h := c.r.Header.Get("X-Request-Timeout"); h != "" {
		d, err := parseSeconds(h)
		if err != nil {
			return nil, nil, badRequest("X-Request-Timeout", "invalid_value", "X-Request-Timeout: %s", err)
		}
		shorten(d)
	}
	if timeout == 0 {
		ctx, cancel := context.WithCancel(c.r.Context())
		return ctx, cancel, nil
	}
	ctx, cancel := context.WithDeadlineCause(c.r.Context(), c.start.Add(timeout), errDeadline)
	return ctx, cancel, nil
}

// answer writes a JSON value that is already encoded.
func (c *call) answer(body []byte) error {
	c.extendWrite()
	c.w.Header().Set("Content-Type", "application/json")
	_, err := c.w.Write(body)
	if err != nil {
		return writeProblem(err)
	}
	return nil
}

// writeProblem says whether a client was too slow or had left.
func writeProblem(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errSlowReader
	}
	return &apiError{status: statusClientClosed, kind: "cancelled", code: "disconnected", message: "the client left", outcome: metrics.OutcomeDisconnected}
}
