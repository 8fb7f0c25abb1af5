package trace

import (
	"sync/atomic"
	"time"
)

// Stamps says whether a backend is to be built so that its kernels note themselves when they ran. It is set before the backend is opened.
var Stamps atomic.Bool

// Time is when operations of a step ran, as the backend noted it without any profiler: by stamps that the kernels write, or by the
// processor's clock where that is the device.
type Time struct {
	Name         string // of the operation; "silu_mul+gemm_down" where nothing tells the two apart
	Layer        int    // -1 outside of the layers
	Start        time.Time
	Length       time.Duration
	Bytes, FLOPs int64 // as of Op
	FP8          bool
}

// TimesSink is a Sink that also wants each step's times. Times is called while the step's wait is marked, with times in order.
type TimesSink interface {
	Times(times []Time)
}

// WantTimes tells whether the sink installed is a TimesSink: ask before noting any.
func WantTimes() bool {
	b := current.Load()
	if b == nil {
		return false
	}
	_, ok := b.Sink.(TimesSink)
	return ok
}

// StepTimes tells when the operations of the step being awaited ran.
func StepTimes(times []Time) {
	if b := current.Load(); b != nil {
		if s, ok := b.Sink.(TimesSink); ok {
			s.Times(times)
		}
	}
}

// NodeSink is a Sink that also wants to know what the host enqueues: the operations of a step that is no graph, and of a graph while it
// is captured.
type NodeSink interface {
	// Node says that an operation comes next on this goroutine; it ends the one before it. layer is -1 outside of the layers.
	Node(layer int, op string)
	// NodesDone ends the last one.
	NodesDone()
}

// WantNodes tells whether the sink installed is a NodeSink: ask before telling any.
func WantNodes() bool {
	b := current.Load()
	if b == nil {
		return false
	}
	_, ok := b.Sink.(NodeSink)
	return ok
}

// NextNode tells of an operation that is enqueued or captured next.
func NextNode(layer int, op string) {
	if b := current.Load(); b != nil {
		if s, ok := b.Sink.(NodeSink); ok {
			s.Node(layer, op)
		}
	}
}

// NodesDone tells that all of them are.
func NodesDone() {
	if b := current.Load(); b != nil {
		if s, ok := b.Sink.(NodeSink); ok {
			s.NodesDone()
		}
	}
}
