package server

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// boundedListener answers 503 to connections above a number, so that a flood of them neither exhausts file descriptors nor keeps
// health checks waiting in the kernel's queue unanswered for ever.
type boundedListener struct {
	net.Listener
	most    int64
	open    atomic.Int64
	leaving atomic.Int64 // being turned away
}

// Accept implements [net.Listener].
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.most {
			return &conn{Conn: c, listener: l}, nil
		}
		l.open.Add(-1)
		l.turnAway(c)
	}
}

// turnAway answers 503 and closes. A few connections at a time get the moment it takes to read what they sent, without which the
// close would reset the connection and their answer with it.
func (l *boundedListener) turnAway(c net.Conn) {
	const patient, moment = 64, 200 * time.Millisecond
	refuse(c, unavailable("too_many_connections", "too many open connections: retry later", time.Second), moment/2)
	if l.leaving.Add(1) > patient {
		l.leaving.Add(-1)
		c.Close()
		return
	}
	go func() {
		defer l.leaving.Add(-1)
		defer c.Close()
		if half, ok := c.(*net.TCPConn); ok {
			half.CloseWrite()
		}
		c.SetReadDeadline(time.Now().Add(moment))
		io.CopyN(io.Discard, c, maxHeaderBytes)
	}()
}

// refuse answers a connection that no handler will see.
func refuse(c net.Conn, e *apiError, within time.Duration) {
	body := append(e.append(nil), '\n')
	c.SetWriteDeadline(time.Now().Add(within))
	fmt.Fprintf(c, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: 1\r\nConnection: close\r\n\r\n%s",
		e.status, http.StatusText(e.status), len(body), body)
}

type connKey struct{}

// conn is an accepted connection. It sees to it that a client whose request header never ends is told so: net/http would close
// the connection without a word.
type conn struct {
	net.Conn
	listener *boundedListener
	once     sync.Once
	partial  atomic.Bool // bytes came for which no handler has been called
	timedOut atomic.Bool
}

// Read implements [net.Conn].
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.partial.Store(true)
	}
	if err != nil && errors.Is(err, os.ErrDeadlineExceeded) {
		c.timedOut.Store(true)
	}
	return n, err
}

// Write implements [net.Conn]. Who is written to needs no other word at the end.
func (c *conn) Write(p []byte) (int, error) {
	c.partial.Store(false)
	return c.Conn.Write(p)
}

// handling tells that the bytes read belong to a request that a handler answers.
func (c *conn) handling() {
	c.partial.Store(false)
	c.timedOut.Store(false)
}

// Close implements [net.Conn].
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.partial.Load() && c.timedOut.Load() {
			refuse(c.Conn, &apiError{status: http.StatusRequestTimeout, kind: "invalid_request_error", code: "header_timeout",
				message: "the request's header did not arrive in time"}, time.Second)
		}
		c.listener.open.Add(-1)
	})
	return c.Conn.Close()
}

// CloseWrite half-closes the connection, as net/http does before it drops an unread body: without it the client might see a
// reset instead of the answer.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}
