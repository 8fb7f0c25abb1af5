package load

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"
)

// maxEvent bounds one server-sent event. The longest honest ones are cumulative texts of a whole answer.
const maxEvent = 64 << 20

var errEventTooLarge = fmt.Errorf("event of more than %d bytes", maxEvent)

// events reads server-sent events, or JSON lines, from a response. It is made for load: one buffer, no copy of the usual
// event, and one reading of the clock for each read from the network, so that every event bears the time at
// which its last byte had come.
type events struct {
	src   io.Reader
	lines bool // each line is an event: JSON lines, not SSE
	clock func() time.Duration

	buf        []byte
	start, end int // unread bytes of buf
	scanned    int // bytes from start known to hold no line end
	skipLF     bool
	at         time.Duration // when the last read returned
	joined     []byte        // data of an event whose lines came in several reads, or several lines of data
}

func (e *events) reset(src io.Reader, lines bool, clock func() time.Duration) {
	*e = events{src: src, lines: lines, clock: clock, buf: e.buf, joined: e.joined[:0]}
	if e.buf == nil {
		e.buf = make([]byte, 16<<10)
	}
}

// next returns the data of the next event, valid until the next call, and when it came. At the end it returns io.EOF; an
// event that the end cut off is not returned, as the specification of server-sent events has it.
func (e *events) next() (data []byte, at time.Duration, err error) {
	has := false
	e.joined = e.joined[:0]
	for {
		line, err := e.line()
		if err != nil {
			return nil, e.at, err
		}
		if e.lines {
			if len(line) == 0 {
				continue
			}
			return line, e.at, nil
		}
		if len(line) == 0 {
			if has {
				return data, e.at, nil
			}
			continue
		}
		value, ok := bytes.CutPrefix(line, dataField)
		if !ok || (len(value) > 0 && value[0] != ':') {
			continue // a comment, or a field that says nothing of tokens
		}
		if len(value) > 0 {
			value = value[1:]
			if len(value) > 0 && value[0] == ' ' {
				value = value[1:]
			}
		}
		if !has && !e.skipLF && e.start < e.end && e.buf[e.start] == '\n' {
			// The usual case: one line of data, and the blank line that ends the event is there already.
			e.start++
			e.scanned = 0
			return value, e.at, nil
		}
		if has {
			e.joined = append(e.joined, '\n')
		}
		// The rest of the event may need another read, which moves the buffer: keep a copy.
		e.joined = append(e.joined, value...)
		if len(e.joined) > maxEvent {
			return nil, e.at, errEventTooLarge
		}
		has, data = true, e.joined
	}
}

var dataField = []byte("data")

// line returns the next line without its end, which is LF, CR LF or CR.
func (e *events) line() ([]byte, error) {
	for {
		if e.skipLF && e.start < e.end {
			e.skipLF = false
			if e.buf[e.start] == '\n' {
				e.start++
			}
		}
		unread := e.buf[e.start:e.end]
		e.scanned = min(e.scanned, len(unread))
		if i := lineEnd(unread[e.scanned:]); i >= 0 {
			i += e.scanned
			line := unread[:i]
			e.skipLF = unread[i] == '\r'
			e.start += i + 1
			e.scanned = 0
			return line, nil
		}
		e.scanned = len(unread)
		if err := e.fill(); err != nil {
			if errors.Is(err, io.EOF) && e.lines && e.start < e.end {
				// JSON lines may end without a line end.
				line := e.buf[e.start:e.end]
				e.start, e.scanned = e.end, 0
				return line, nil
			}
			return nil, err
		}
	}
}

// lineEnd finds the first CR or LF.
func lineEnd(b []byte) int {
	lf := bytes.IndexByte(b, '\n')
	head := b
	if lf >= 0 {
		head = b[:lf]
	}
	if cr := bytes.IndexByte(head, '\r'); cr >= 0 {
		return cr
	}
	return lf
}

func (e *events) fill() error {
	if e.start == e.end {
		e.start, e.end = 0, 0
	}
	if e.end == len(e.buf) {
		if e.start > 0 {
			e.end = copy(e.buf, e.buf[e.start:e.end])
			e.start = 0
		} else {
			if len(e.buf) >= maxEvent {
				return errEventTooLarge
			}
			e.buf = append(e.buf, make([]byte, len(e.buf))...)
		}
	}
	for range 100 {
		n, err := e.src.Read(e.buf[e.end:])
		if n > 0 {
			e.end += n
			e.at = e.clock()
			return nil
		}
		if err != nil {
			return err
		}
	}
	return io.ErrNoProgress
}
