package profiling

import (
	"strconv"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// Times implements trace.TimesSink.
func (c *Capture) Times(times []trace.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended && c.room(len(times)*timeBytes) {
		c.times[c.awaiting] = times
	}
}

// Node implements trace.NodeSink: of what is enqueued kernel by kernel, the layers become ranges.
func (c *Capture) Node(layer int, _ string) {
	if n := c.node; n.open && n.layer == layer {
		return
	}
	c.NodesDone()
	c.node.open, c.node.layer = true, layer
	c.node.token = c.Begin(layerName(layer), trace.Backend, 0)
}

// NodesDone implements trace.NodeSink.
func (c *Capture) NodesDone() {
	if n := c.node; n.open {
		c.node.open = false
		c.End(layerName(n.layer), trace.Backend, n.token)
	}
}

// Tracks of what a backend timed itself.
var (
	timesPID    = 7
	timedLayers = chrometrace.Track{PID: timesPID, TID: 1}
	timedOps    = chrometrace.Track{PID: timesPID, TID: 2}
)

// timedKernels are a capture's operations as the backend timed them, for where no kernels were seen.
func timedKernels(steps []trace.Step, times map[uint64][]trace.Time) []Kernel {
	var kernels []Kernel
	for _, s := range steps {
		for _, t := range times[s.ID&stepMask] {
			kernels = append(kernels, Kernel{Step: s.ID, Name: t.Name, Op: t.Name, Layer: t.Layer, Start: t.Start, Length: t.Length, Bytes: t.Bytes, FLOPs: t.FLOPs, FP8: t.FP8})
		}
	}
	return kernels
}

// timesRecording draws what a backend timed: operations, and above them layers.
func timesRecording(steps []trace.Step, times map[uint64][]trace.Time) (r Recording) {
	r.Processes = map[int]string{timesPID: "times noted by the backend itself"}
	r.Threads = map[chrometrace.Track]string{timedLayers: "layers", timedOps: "operations"}
	for _, s := range steps {
		layer := -1 // event
		for _, t := range times[s.ID&stepMask] {
			args := []chrometrace.Arg{{Key: "op", Value: t.Name}, {Key: "layer", Value: layerOf(t.Layer)}, {Key: "step", Value: s.ID}}
			r.Events = append(r.Events, Event{Name: t.Name, Category: "timed", Track: timedOps, Start: t.Start, Length: t.Length, Args: append(args, rates(t.Bytes, t.FLOPs, t.Length)...)})
			if name := layerName(t.Layer); layer >= 0 && r.Events[layer].Name == name {
				r.Events[layer].Length = t.Start.Add(t.Length).Sub(r.Events[layer].Start)
				continue
			}
			layer = len(r.Events)
			r.Events = append(r.Events, Event{Name: layerName(t.Layer), Category: "layer", Track: timedLayers, Start: t.Start, Length: t.Length, Args: args[1:]})
		}
	}
	return r
}

func layerName(layer int) string {
	if layer < 0 {
		return "outside of the layers"
	}
	return "layer " + strconv.Itoa(layer)
}

// layerOf is a layer as an argument.
func layerOf(layer int) any {
	if layer < 0 {
		return "outside"
	}
	return layer
}
