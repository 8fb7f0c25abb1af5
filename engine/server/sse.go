package server

import (
	"net/http"
	"time"
)

// streamWriter writes a response in pieces. It owns one buffer for the whole response: encoders append to it, flush sends it
// with one write and one flush and nothing is allocated for a token.
type streamWriter struct {
	c        *call
	rc       *http.ResponseController
	kind     string // Content-Type
	buf      []byte
	started  bool
	deadline time.Time
	blocked  time.Duration // spent in writes: a reader who keeps up takes none of it worth speaking of
}

func newStreamWriter(c *call, contentType string) *streamWriter {
	return &streamWriter{c: c, rc: http.NewResponseController(c.w.ResponseWriter), kind: contentType, buf: make([]byte, 0, 2048)}
}

// flush sends what is in the buffer.
func (w *streamWriter) flush() error {
	if !w.started {
		w.started = true
		h := w.c.w.Header()
		h.Set("Content-Type", w.kind)
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Accel-Buffering", "no") // nginx would hold events back
		w.c.w.WriteHeader(http.StatusOK)
	}
	now := time.Now()
	timeout := w.c.s.options.WriteTimeout
	if w.deadline.Sub(now) < timeout*3/4 { // a deadline costs as much as a small write: not one for each
		w.deadline = now.Add(timeout)
		w.rc.SetWriteDeadline(w.deadline)
	}
	_, err := w.c.w.Write(w.buf)
	w.buf = w.buf[:0]
	if err == nil {
		err = w.rc.Flush()
	}
	w.blocked += time.Since(now)
	if err != nil {
		return writeProblem(err)
	}
	return nil
}

// lagging tells that the client gets tokens too late, and that it is to blame: most of that time went by in writes to it.
func (w *streamWriter) lagging(oldest time.Time) bool {
	if oldest.IsZero() {
		return false
	}
	lag := time.Since(oldest)
	return lag > w.c.s.options.MaxStreamLag && w.blocked > lag/2
}

const eventStream = "text/event-stream; charset=utf-8"

// appendDone adds OpenAI's end of a stream, which SGLang's native API has too.
func appendDone(buf []byte) []byte { return append(buf, "data: [DONE]\n\n"...) }

// appendError adds an error event and the stream's end.
func appendError(buf []byte, err *apiError) []byte {
	buf = append(buf, "data: "...)
	buf = err.append(buf)
	buf = append(buf, "\n\n"...)
	return appendDone(buf)
}
