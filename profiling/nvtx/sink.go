package nvtx

import (
	"sync"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// Sink marks the engine's own ranges: schedule, launch, wait and commit with the step's number, and the phases of requests.
type Sink struct {
	domain *Domain

	mu    sync.Mutex
	spans map[spanKey]Range
}

type spanKey struct {
	name string
	id   uint64
}

var _ trace.Sink = (*Sink)(nil)

// NewSink makes the sink; install it with profiling.AddSink.
func NewSink() *Sink { return &Sink{domain: NewDomain("tokamak"), spans: map[spanKey]Range{}} }

var categoryColors = map[trace.Category]string{trace.Loop: "gray", trace.Scheduler: "orange", trace.Backend: "green", trace.Request: "blue"}

// Begin implements trace.Sink.
func (s *Sink) Begin(name string, c trace.Category, arg uint64) uint64 {
	a := attributes{domain: s.domain, category: string(c), color: colors[categoryColors[c]], payload: arg, kind: intPayload}
	return rangeStart(name, &a)
}

// End implements trace.Sink.
func (s *Sink) End(_ string, _ trace.Category, token uint64) { rangeEnd(s.domain, token) }

// Counter implements trace.Sink.
func (s *Sink) Counter(name string, c trace.Category, value int64) {
	Mark(name, In(s.domain), Category(string(c)), Int(value))
}

// SpanBegin implements trace.Sink.
func (s *Sink) SpanBegin(name string, c trace.Category, id uint64) {
	r := Annotate(name, In(s.domain), Category(string(c)), Color(categoryColors[c]), Int(int64(id)))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.spans[spanKey{name, id}] = r
}

// SpanEnd implements trace.Sink.
func (s *Sink) SpanEnd(name string, _ trace.Category, id uint64) {
	s.mu.Lock()
	r := s.spans[spanKey{name, id}]
	delete(s.spans, spanKey{name, id})
	s.mu.Unlock()
	r.End()
}

// Step implements trace.Sink. A step's ranges have been marked as they happened; what kind it was, and of how many rows, is known now.
func (s *Sink) Step(step trace.Step) {
	Mark(step.Phase.String()+" step", In(s.domain), Category("step"), Int(int64(step.Rows)))
}
