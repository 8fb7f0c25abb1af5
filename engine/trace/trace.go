// Package trace marks what the engine does in time: nested ranges on the goroutine that runs them, asynchronous spans of
// requests, counters, and one record for each step. Without a sink, the default, a mark costs one atomic load; profiling
// installs sinks (a Chrome trace writer, NVTX) with [SetSink].
//
//	defer trace.Begin("launch", trace.Backend).End()
//
// Marks are cheap enough for a few dozen a step, not for one a token.
package trace

import (
	"runtime"
	"sync/atomic"
	"time"
)

// Category groups ranges and counters by the room they come from.
type Category string

const (
	Loop      Category = "loop"      // the engine's loop: inbox, deliver
	Scheduler Category = "scheduler" // Next, Commit
	Backend   Category = "backend"   // Launch, Wait
	Request   Category = "request"   // a request's life, as spans
)

// Sink takes marks. Its methods are called from the goroutine that does the work and must not block or keep a slice; any
// number of goroutines may call at once. Begin and End nest properly within a goroutine, and the engine's loop is locked to its
// OS thread, so a sink may use thread-bound ranges (NVTX push and pop).
type Sink interface {
	// Begin opens a range; what it returns is handed to End. arg is a number that tells ranges of a name apart: a step's id.
	Begin(name string, c Category, arg uint64) (token uint64)
	End(name string, c Category, token uint64)
	// Counter tells a gauge's value: batch rows, pages used, queue length.
	Counter(name string, c Category, value int64)
	// SpanBegin and SpanEnd bound something that starts and ends on any goroutine: a phase of request id.
	SpanBegin(name string, c Category, id uint64)
	SpanEnd(name string, c Category, id uint64)
	// Step tells of a step once it was awaited.
	Step(s Step)
}

// Phase says what kind of rows a step holds.
type Phase uint8

const (
	Decode  Phase = iota // decode rows only
	Prefill              // prefill rows only
	Mixed                // both
)

func (p Phase) String() string { return [...]string{"decode", "prefill", "mixed"}[p] }

// Step is the record of one step: a launch and its wait.
type Step struct {
	ID            uint64 // ascends by one from 1
	Phase         Phase
	Rows          int // all rows
	DecodeRows    int
	Tokens        int // put through the model: one a decode row and each prefill chunk's
	SampledTokens int
	Launched      time.Time     // before Launch was called
	LaunchTime    time.Duration // that Launch took on the host
	WaitStart     time.Time
	WaitTime      time.Duration // that Wait blocked the host: near zero if the host is the slower side
	InFlight      int           // steps launched and not awaited, this one included, when it was launched
}

type box struct{ Sink }

// current is nil while tracing is off: the only thing a mark looks at then.
var current atomic.Pointer[box]

// SetSink installs s for the whole process and returns the one before it; nil turns tracing off. A range that is open while
// the sink changes ends in the sink it began in.
func SetSink(s Sink) (before Sink) {
	var b *box
	if s != nil {
		b = &box{s}
	}
	if old := current.Swap(b); old != nil {
		return old.Sink
	}
	return nil
}

// Enabled tells whether a sink is installed: ask before work that only serves a mark.
func Enabled() bool { return current.Load() != nil }

// Range is an open range. The zero Range is one that was not traced. It is a single pointer, so that an idle one costs nothing.
type Range struct{ open *openRange }

type openRange struct {
	sink  *box
	name  string
	c     Category
	token uint64
}

// Begin opens a range on this goroutine; name should be a constant.
func Begin(name string, c Category) Range {
	if current.Load() == nil {
		return Range{}
	}
	return begin(name, c, 0)
}

// BeginArg is [Begin] with a number, usually a step's id.
func BeginArg(name string, c Category, arg uint64) Range {
	if current.Load() == nil {
		return Range{}
	}
	return begin(name, c, arg)
}

// begin is apart so that Begin is inlined and costs nothing but its test where tracing is off.
//
//go:noinline
func begin(name string, c Category, arg uint64) Range {
	b := current.Load()
	if b == nil {
		return Range{}
	}
	return Range{&openRange{b, name, c, b.Begin(name, c, arg)}}
}

// End closes the range.
func (r Range) End() {
	if r.open != nil {
		r.open.end()
	}
}

//go:noinline
func (o *openRange) end() { o.sink.End(o.name, o.c, o.token) }

// Counter tells a gauge's value.
func Counter(name string, c Category, value int64) {
	if b := current.Load(); b != nil {
		b.Counter(name, c, value)
	}
}

// SpanBegin opens a phase of request id.
func SpanBegin(name string, c Category, id uint64) {
	if b := current.Load(); b != nil {
		b.SpanBegin(name, c, id)
	}
}

// SpanEnd closes it.
func SpanEnd(name string, c Category, id uint64) {
	if b := current.Load(); b != nil {
		b.SpanEnd(name, c, id)
	}
}

// StepDone tells of a step that was awaited.
func StepDone(s Step) {
	if b := current.Load(); b != nil {
		b.Step(s)
	}
}

// Op is one device operation of a step, as the backend planned it: what a profiler joins with the kernels it saw run.
type Op struct {
	Name   string // of the operation: "gemv_qkv"
	Symbol string // of the kernel; "" for a library's, whose kernels have names of its own
	Layer  int    // -1 outside of the layers
	Bytes  int64  // of device memory that must move at least
	FLOPs  int64
	FP8    bool      // the arithmetic is the matrix units' of fp8, which have a ceiling of their own
	Stack  []uintptr // program counters of where it was launched or captured; nil if stacks are off
}

// OpSink is a Sink that also wants each step's operations, in the order they run. ops stays valid and unchanged.
type OpSink interface {
	Ops(graph bool, ops []Op)
}

// WantOps tells whether the sink installed is an OpSink: ask before making a list.
func WantOps() bool {
	b := current.Load()
	if b == nil {
		return false
	}
	_, ok := b.Sink.(OpSink)
	return ok
}

// StepOps tells what the step being launched runs; graph, that it is one launch of a captured graph.
func StepOps(graph bool, ops []Op) {
	if b := current.Load(); b != nil {
		if s, ok := b.Sink.(OpSink); ok {
			s.Ops(graph, ops)
		}
	}
}

// Stacks says whether launches note the Go stack they came from. It is set before a backend is opened: a graph keeps the stack of its capture.
var Stacks atomic.Bool

// Stack returns the caller's stack if Stacks is set, without skip frames above the caller's own; nil else.
func Stack(skip int) []uintptr {
	if !Stacks.Load() {
		return nil
	}
	pcs := make([]uintptr, 64)
	return pcs[:runtime.Callers(skip+2, pcs)]
}
