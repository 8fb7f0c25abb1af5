package profiling

import (
	"slices"
	"sync"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// sinks are those installed by this package. Several may be at once: NVTX for the whole run and a capture for a while.
var sinks struct {
	sync.Mutex
	all []trace.Sink
}

// AddSink lets s see the engine's marks beside the sinks that do already.
func AddSink(s trace.Sink) {
	sinks.Lock()
	defer sinks.Unlock()
	sinks.all = append(sinks.all, s)
	install()
}

// RemoveSink ends what AddSink began.
func RemoveSink(s trace.Sink) {
	sinks.Lock()
	defer sinks.Unlock()
	sinks.all = slices.DeleteFunc(slices.Clone(sinks.all), func(other trace.Sink) bool { return other == s })
	install()
}

func install() {
	switch len(sinks.all) {
	case 0:
		trace.SetSink(nil)
	case 1:
		trace.SetSink(sinks.all[0])
	default:
		trace.SetSink(&tee{sinks: slices.Clone(sinks.all), open: map[uint64][]uint64{}})
	}
}

// tee gives every mark to several sinks. A sink's tokens are its own, so that those of an open range are kept side by side.
type tee struct {
	sinks []trace.Sink
	mu    sync.Mutex
	next  uint64
	open  map[uint64][]uint64
}

func (t *tee) Begin(name string, c trace.Category, arg uint64) uint64 {
	tokens := make([]uint64, len(t.sinks))
	for i, s := range t.sinks {
		tokens[i] = s.Begin(name, c, arg)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	t.open[t.next] = tokens
	return t.next
}

func (t *tee) End(name string, c trace.Category, token uint64) {
	t.mu.Lock()
	tokens := t.open[token]
	delete(t.open, token)
	t.mu.Unlock()
	for i, token := range tokens {
		t.sinks[i].End(name, c, token)
	}
}

func (t *tee) Counter(name string, c trace.Category, value int64) {
	for _, s := range t.sinks {
		s.Counter(name, c, value)
	}
}

func (t *tee) SpanBegin(name string, c trace.Category, id uint64) {
	for _, s := range t.sinks {
		s.SpanBegin(name, c, id)
	}
}

func (t *tee) SpanEnd(name string, c trace.Category, id uint64) {
	for _, s := range t.sinks {
		s.SpanEnd(name, c, id)
	}
}

func (t *tee) Step(s trace.Step) {
	for _, sink := range t.sinks {
		sink.Step(s)
	}
}

// Ops implements trace.OpSink for those of the sinks that do.
func (t *tee) Ops(graph bool, ops []trace.Op) {
	for _, sink := range t.sinks {
		if s, ok := sink.(trace.OpSink); ok {
			s.Ops(graph, ops)
		}
	}
}

// Times implements trace.TimesSink for those of the sinks that do.
func (t *tee) Times(times []trace.Time) {
	for _, sink := range t.sinks {
		if s, ok := sink.(trace.TimesSink); ok {
			s.Times(times)
		}
	}
}

// Node implements trace.NodeSink for those of the sinks that do.
func (t *tee) Node(layer int, op string) {
	for _, sink := range t.sinks {
		if s, ok := sink.(trace.NodeSink); ok {
			s.Node(layer, op)
		}
	}
}

// NodesDone implements trace.NodeSink.
func (t *tee) NodesDone() {
	for _, sink := range t.sinks {
		if s, ok := sink.(trace.NodeSink); ok {
			s.NodesDone()
		}
	}
}
