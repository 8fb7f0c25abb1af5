package cpu

import (
	"slices"
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// step is one launched batch. It owns its rows; its results belong to the goroutine that runs it until done is closed.
type step struct {
	id       backend.StepID
	rows     []backend.Row
	starts   []*sequence // one for each row that has Start
	results  []backend.RowResult
	times    []trace.Time  // of its operations, if a profiler wanted them
	headTime time.Duration // that the draft head took
	err      error
	done     chan struct{}
}

// newStep copies a checked batch.
func (b *Backend) newStep(batch *backend.Batch) *step {
	s := &step{
		id:      b.launched,
		rows:    slices.Clone(batch.Rows),
		starts:  make([]*sequence, len(batch.Rows)),
		results: make([]backend.RowResult, len(batch.Rows)),
		done:    make(chan struct{}),
	}
	for i := range s.rows {
		r := &s.rows[i]
		r.Tokens = slices.Clone(r.Tokens)
		r.Drafts = slices.Clone(r.Drafts)
		r.Pages = slices.Clone(r.Pages)
		r.Mask = slices.Clone(r.Mask)
		r.Targets = slices.Clone(r.Targets)
		if r.Start != nil {
			s.starts[i] = newSequence(r.Start)
			s.starts[i].sampling.Bias = slices.Clone(r.Start.Sampling.Bias)
			r.Start = nil
		}
	}
	return s
}
