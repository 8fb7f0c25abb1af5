package nvtx

import (
	"strconv"
	"sync"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// Sink marks the engine's own ranges: schedule, launch, wait and commit with the step's number, and the phases of requests.
type Sink struct {
	domain *Domain

	mu    sync.Mutex
	spans map[spanKey]Range

	// The operation being enqueued or captured, and its layer: of one goroutine, the engine's.
	layer   Range
	op      Range
	inLayer int
}

type spanKey struct {
	name string
	id   uint64
}

var (
	_ trace.Sink     = (*Sink)(nil)
	_ trace.NodeSink = (*Sink)(nil)
)

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

// Node implements trace.NodeSink: a range for each operation that is enqueued, inside one for its layer. A graph's nodes are made within
// these ranges while it is captured, which is how a tool that knows a node's creation knows its layer and operation.
func (s *Sink) Node(layer int, op string) {
	s.op.End()
	if s.layer.open == nil || s.inLayer != layer {
		s.layer.End()
		name := "outside of the layers"
		if layer >= 0 {
			name = "layer " + strconv.Itoa(layer)
		}
		s.layer, s.inLayer = Annotate(name, In(s.domain), Category("layer"), Int(int64(layer))), layer
	}
	s.op = Annotate(op, In(s.domain), Category("op"), Int(int64(layer)))
}

// NodesDone implements trace.NodeSink.
func (s *Sink) NodesDone() {
	s.op.End()
	s.layer.End()
	s.op, s.layer = Range{}, Range{}
}
