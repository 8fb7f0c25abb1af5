package cpu

import (
	"time"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// notes are the times of a step's operations, for a profiler.
type notes struct {
	wanted bool
	last   time.Time
	times  []trace.Time
}

// begin starts a step's notes, if anybody wants them.
func (n *notes) begin() {
	*n = notes{wanted: trace.WantTimes()}
	if n.wanted {
		n.last = time.Now()
	}
}

// note says that an operation ends here, which began where the one before it ended. products are of m tokens.
func (n *notes) note(name string, layer, m int, products ...*matrix) {
	if !n.wanted {
		return
	}
	now := time.Now()
	t := trace.Time{Name: name, Layer: layer, Start: n.last, Length: now.Sub(n.last)}
	for _, w := range products {
		t.Bytes += int64(w.n) * int64(w.rowBytes)
		t.FLOPs += 2 * int64(m) * int64(w.n) * int64(w.k)
	}
	n.times, n.last = append(n.times, t), now
}
