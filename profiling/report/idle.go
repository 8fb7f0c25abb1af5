package report

import (
	"slices"
	"time"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling"
)

// Idle tells how long the device ran nothing while steps were under way, and what of it is the host's doing.
type Idle struct {
	Wall  time.Duration // from the first launch to the end of the last wait
	Total time.Duration // of it, no kernel ran
	// Host is the part of Total in which the host was not waiting for the device either: it planned, launched or handed tokens out. The rest
	// lies between kernels, and between a launch and its first kernel.
	Host time.Duration
}

// Share is the idle part of the wall time, 0 to 1.
func (i Idle) Share() float64 { return float64(i.Total) / float64(max(1, i.Wall)) }

// HostShare is the host's part of the wall time, 0 to 1.
func (i Idle) HostShare() float64 { return float64(i.Host) / float64(max(1, i.Wall)) }

type interval struct{ from, to time.Time }

// NewIdle computes it from a capture's steps and kernels.
func NewIdle(steps []trace.Step, kernels []profiling.Kernel) Idle {
	if len(steps) == 0 {
		return Idle{}
	}
	var busy, covered []interval
	for _, k := range kernels {
		busy = append(busy, interval{k.Start, k.Start.Add(k.Length)})
	}
	whole := interval{steps[0].Launched, steps[0].Launched}
	covered = slices.Clone(busy)
	for _, s := range steps {
		wait := interval{s.WaitStart, s.WaitStart.Add(s.WaitTime)}
		covered = append(covered, wait)
		if s.Launched.Before(whole.from) {
			whole.from = s.Launched
		}
		if wait.to.After(whole.to) {
			whole.to = wait.to
		}
	}
	wall := whole.to.Sub(whole.from)
	return Idle{Wall: wall, Total: wall - union(busy, whole), Host: wall - union(covered, whole)}
}

// union is how much of whole the intervals cover.
func union(all []interval, whole interval) time.Duration {
	slices.SortFunc(all, func(a, b interval) int { return a.from.Compare(b.from) })
	var sum time.Duration
	end := whole.from
	for _, i := range all {
		if i.from.Before(end) {
			i.from = end
		}
		if i.to.After(whole.to) {
			i.to = whole.to
		}
		if i.to.After(i.from) {
			sum += i.to.Sub(i.from)
			end = i.to
		}
	}
	return sum
}
