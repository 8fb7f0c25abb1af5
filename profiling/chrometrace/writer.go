// Package chrometrace writes the Trace Event Format (JSON) that ui.perfetto.dev and chrome://tracing open.
//
// A trace is processes (pid) with threads (tid). Times are microseconds with a nanosecond's digits, from an origin of the caller's
// choice. Format: "Trace Event Format", the Chromium project, section "JSON Object Format".
package chrometrace

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// Track is where an event is drawn.
type Track struct{ PID, TID int }

// Arg is a name and a value shown with an event. Value is a string, a bool, an integer or a float.
type Arg struct {
	Key   string
	Value any
}

// Writer streams a trace. It is not safe for concurrent use. Errors are sticky and returned by Close.
type Writer struct {
	gz    *gzip.Writer
	out   *bufio.Writer
	buf   []byte
	first bool
	meta  map[string]string
	err   error
	// Events counts what was written.
	Events int
}

// NewWriter writes a gzip-compressed trace to w.
func NewWriter(w io.Writer) *Writer {
	gz, _ := gzip.NewWriterLevel(w, gzip.BestSpeed)
	t := &Writer{gz: gz, out: bufio.NewWriterSize(gz, 1<<16), first: true, meta: map[string]string{}}
	t.write([]byte(`{"displayTimeUnit":"ns","traceEvents":[`))
	return t
}

// Meta adds a key to the trace's otherData.
func (t *Writer) Meta(key, value string) { t.meta[key] = value }

// Process names a process and gives its place among the others.
func (t *Writer) Process(pid int, name string, order int) {
	t.named("process_name", Track{PID: pid}, Arg{"name", name})
	t.named("process_sort_index", Track{PID: pid}, Arg{"sort_index", order})
}

// Thread names a thread and gives its place within its process.
func (t *Writer) Thread(at Track, name string, order int) {
	t.named("thread_name", at, Arg{"name", name})
	t.named("thread_sort_index", at, Arg{"sort_index", order})
}

func (t *Writer) named(kind string, at Track, arg Arg) {
	t.begin('M', kind, "", at, 0)
	t.args(arg)
	t.end()
}

// Complete writes an event with a beginning and a length. Events of a track must nest.
func (t *Writer) Complete(name, category string, at Track, start, length time.Duration, args ...Arg) {
	t.begin('X', name, category, at, start)
	t.buf = append(t.buf, `,"dur":`...)
	t.micros(length)
	t.args(args...)
	t.end()
}

// Instant writes an event without a length.
func (t *Writer) Instant(name, category string, at Track, when time.Duration, args ...Arg) {
	t.begin('i', name, category, at, when)
	t.buf = append(t.buf, `,"s":"t"`...)
	t.args(args...)
	t.end()
}

// Async writes an event that may overlap others of its kind: it is drawn with those of the same category and id.
func (t *Writer) Async(name, category string, at Track, id uint64, start, length time.Duration, args ...Arg) {
	for _, phase := range []byte{'b', 'e'} {
		t.begin(phase, name, category, at, start)
		t.buf = append(t.buf, `,"id":"0x`...)
		t.buf = strconv.AppendUint(t.buf, id, 16)
		t.buf = append(t.buf, '"')
		if phase == 'b' {
			t.args(args...)
		}
		t.end()
		start += length
	}
}

// Counter writes a gauge's value from when on.
func (t *Writer) Counter(name string, at Track, when time.Duration, value float64) {
	t.begin('C', name, "counter", at, when)
	t.args(Arg{name, value})
	t.end()
}

// Flow draws an arrow from one event to another: start lies within the first, finish at the beginning of the second.
func (t *Writer) Flow(name, category string, id uint64, from Track, start time.Duration, to Track, finish time.Duration) {
	t.begin('s', name, category, from, start)
	t.flowID(id)
	t.end()
	t.begin('f', name, category, to, finish)
	t.flowID(id)
	t.buf = append(t.buf, `,"bp":"e"`...)
	t.end()
}

func (t *Writer) flowID(id uint64) {
	t.buf = append(t.buf, `,"id":`...)
	t.buf = strconv.AppendUint(t.buf, id, 10)
}

func (t *Writer) begin(phase byte, name, category string, at Track, ts time.Duration) {
	t.buf = t.buf[:0]
	if !t.first {
		t.buf = append(t.buf, ',')
	}
	t.first = false
	t.buf = append(t.buf, "\n{\"ph\":\""...)
	t.buf = append(t.buf, phase)
	t.buf = append(t.buf, `","name":`...)
	t.text(name)
	if category != "" {
		t.buf = append(t.buf, `,"cat":`...)
		t.text(category)
	}
	t.buf = append(t.buf, `,"pid":`...)
	t.buf = strconv.AppendInt(t.buf, int64(at.PID), 10)
	t.buf = append(t.buf, `,"tid":`...)
	t.buf = strconv.AppendInt(t.buf, int64(at.TID), 10)
	t.buf = append(t.buf, `,"ts":`...)
	t.micros(ts)
}

func (t *Writer) end() {
	t.buf = append(t.buf, '}')
	t.write(t.buf)
	t.Events++
}

func (t *Writer) micros(d time.Duration) {
	t.buf = strconv.AppendFloat(t.buf, float64(d.Nanoseconds())/1000, 'f', 3, 64)
}

func (t *Writer) args(args ...Arg) {
	if len(args) == 0 {
		return
	}
	t.buf = append(t.buf, `,"args":{`...)
	for i, a := range args {
		if i > 0 {
			t.buf = append(t.buf, ',')
		}
		t.text(a.Key)
		t.buf = append(t.buf, ':')
		value, err := json.Marshal(a.Value)
		if err != nil { // NaN and infinities
			value, _ = json.Marshal(fmt.Sprint(a.Value))
		}
		t.buf = append(t.buf, value...)
	}
	t.buf = append(t.buf, '}')
}

func (t *Writer) text(s string) {
	quoted, err := json.Marshal(s)
	if err != nil {
		t.err = errors.Join(t.err, err)
		return
	}
	t.buf = append(t.buf, quoted...)
}

func (t *Writer) write(p []byte) {
	if t.err == nil {
		_, t.err = t.out.Write(p)
	}
}

// Close ends the trace; it does not close the writer below.
func (t *Writer) Close() error {
	meta, err := json.Marshal(t.meta)
	t.err = errors.Join(t.err, err)
	t.write([]byte("\n],\"otherData\":" + string(meta) + "}\n"))
	flushed, closed := t.out.Flush(), t.gz.Close()
	return cmp.Or(t.err, flushed, closed) // what comes after the first failure says the same again
}
