package profiling

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// KernelCategory marks a source's events that are kernels.
const KernelCategory = "kernel"

// Kernel is one kernel that ran in a captured step, joined with the operation that the backend planned.
type Kernel struct {
	Step         uint64
	Name         string // of the kernel
	Op           string // of the operation; "" where the backend planned none
	Layer        int    // -1 outside of the layers and where there is no operation
	Start        time.Time
	Length       time.Duration
	Bytes, FLOPs int64
	FP8          bool // FLOPs are of fp8
	Stack        []uintptr
}

// Added tells of kernels in the order of their start how much time each adds to its step: what runs beside an earlier kernel is the earlier
// one's. With dependent launches a kernel begins long before its turn, and its own length says little.
func Added(kernels []Kernel) []time.Duration {
	added := make([]time.Duration, len(kernels))
	ends := map[uint64]time.Time{} // by step: when its kernels so far have ended
	for i, k := range kernels {
		from, end := later(k.Start, ends[k.Step]), k.Start.Add(k.Length)
		added[i] = max(0, end.Sub(from))
		ends[k.Step] = later(ends[k.Step], end)
	}
	return added
}

// stepOps is what one step planned to run.
type stepOps struct {
	ops   []trace.Op
	graph bool
}

// Ops implements trace.OpSink.
func (c *Capture) Ops(graph bool, ops []trace.Op) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended && c.room(len(ops)*opBytes) {
		before := c.ops[c.launching].ops // what was launched ahead of the step's graph
		c.ops[c.launching] = stepOps{append(before[:len(before):len(before)], ops...), graph}
	}
}

// Kernels returns the kernels of a capture that is done, in the order of their start.
func (c *Capture) Kernels() []Kernel {
	<-c.done
	return c.kernels
}

// join finds each kernel's step by the moment of its launch, and within a step its operation by the order: a step runs on one stream, so
// that kernels begin in the order of the plan. It adds what it finds to the events' arguments.
func join(steps []trace.Step, planned map[uint64]stepOps, recordings []Recording) []Kernel {
	bySteps := map[uint64][]*Event{}
	for i := range recordings {
		recordings[i].adopt()
		for j := range recordings[i].Events {
			e := &recordings[i].Events[j]
			if e.Category != KernelCategory || e.Launched.IsZero() {
				continue
			}
			if step, ok := stepLaunching(steps, e.Launched); ok {
				bySteps[step] = append(bySteps[step], e)
			}
		}
	}
	var kernels []Kernel
	for step, events := range bySteps {
		slices.SortStableFunc(events, func(a, b *Event) int { return a.Start.Compare(b.Start) })
		ops := planned[step&stepMask].ops
		before := -1
		for i, at := range align(events, ops) {
			e := events[i]
			k := Kernel{Step: step, Name: e.Name, Layer: -1, Start: e.Start, Length: e.Length}
			if at < 0 {
				e.Args = append(e.Args, chrometrace.Arg{Key: "op", Value: "not planned"})
			} else {
				op := &ops[at]
				k.Op, k.Layer, k.FP8, k.Stack = op.Name, op.Layer, op.FP8, op.Stack
				e.Args = append(e.Args, chrometrace.Arg{Key: "op", Value: op.Name})
				e.Args = append(e.Args, chrometrace.Arg{Key: "layer", Value: layerOf(op.Layer)})
				if at != before { // an operation of several kernels moves its bytes once
					k.Bytes, k.FLOPs = op.Bytes, op.FLOPs
				}
				e.Args = append(e.Args, rates(k.Bytes, k.FLOPs, e.Length)...)
				if len(op.Stack) > 0 {
					e.Args = append(e.Args, chrometrace.Arg{Key: "go stack", Value: strings.Join(frames(op.Stack), " < ")})
				}
			}
			before = at
			kernels = append(kernels, k)
		}
	}
	slices.SortFunc(kernels, func(a, b Kernel) int { return cmp.Or(a.Start.Compare(b.Start), cmp.Compare(a.Name, b.Name)) })
	return kernels
}

// rates are an operation's bytes and arithmetic, and both over its time.
func rates(bytes, flops int64, length time.Duration) (args []chrometrace.Arg) {
	s := length.Seconds()
	if s > 0 && bytes > 0 {
		args = append(args, chrometrace.Arg{Key: "bytes", Value: bytes}, chrometrace.Arg{Key: "GB/s", Value: float64(int(float64(bytes)/s/1e8)) / 10})
	}
	if s > 0 && flops > 0 {
		args = append(args, chrometrace.Arg{Key: "flops", Value: flops}, chrometrace.Arg{Key: "TFLOP/s", Value: float64(int(float64(flops)/s/1e11)) / 10})
	}
	return args
}

// bandwidth estimates, for each step, the rate at which its kernels moved the bytes that their operations must move: a counter that falls to
// 0 where nothing runs.
func bandwidth(kernels []Kernel) Recording {
	r := Recording{Processes: map[int]string{bandwidthTrack.PID: "GPU memory"}}
	for from := 0; from < len(kernels); {
		to, bytes, end := from, int64(0), kernels[from].Start
		for ; to < len(kernels) && kernels[to].Step == kernels[from].Step; to++ {
			bytes += kernels[to].Bytes
			end = later(end, kernels[to].Start.Add(kernels[to].Length))
		}
		start := kernels[from].Start
		if s := end.Sub(start).Seconds(); s > 0 && bytes > 0 {
			const name = "GB/s of planned bytes"
			r.Events = append(r.Events, Event{Name: name, Track: bandwidthTrack, Start: start, Counter: true, Value: float64(bytes) / s / 1e9},
				Event{Name: name, Track: bandwidthTrack, Start: end, Counter: true})
		}
		from = to
	}
	return r
}

var bandwidthTrack = chrometrace.Track{PID: 8}

// adopt gives kernels whose launch was not seen, a library's second ones, the launch of the kernel before them on their stream.
func (r *Recording) adopt() {
	last := map[chrometrace.Track]*Event{}
	slices.SortStableFunc(r.Events, func(a, b Event) int { return a.Start.Compare(b.Start) })
	for i := range r.Events {
		e := &r.Events[i]
		if e.Category != KernelCategory {
			continue
		}
		if before := last[e.Track]; e.Launched.IsZero() && before != nil {
			e.Launched, e.LaunchedFrom = before.Launched, before.LaunchedFrom
		}
		last[e.Track] = e
	}
}

// align gives each event its operation's index, or -1. Our own kernels are known by their names; what stands between them is a library's,
// whose operations may run several kernels: a reduction belongs to the product before it.
func align(events []*Event, ops []trace.Op) []int {
	places := make([]int, len(events))
	next := 0 // first operation that has no kernel yet
	for i, e := range events {
		places[i] = -1
		at := next
		for at < len(ops) && ops[at].Symbol == "" {
			at++
		}
		switch {
		case at < len(ops) && ops[at].Symbol == e.Name:
			places[i], next = at, at+1
		case next < len(ops) && ops[next].Symbol == "" && !strings.Contains(strings.ToLower(e.Name), "reduce"):
			places[i], next = next, next+1
		case next > 0 && ops[next-1].Symbol == "":
			places[i] = next - 1
		default:
			// A kernel that the plan does not have, or a plan whose kernels were not all seen: find the name further on.
			for j := next; j < len(ops); j++ {
				if ops[j].Symbol == e.Name {
					places[i], next = j, j+1
					break
				}
			}
		}
	}
	return places
}
