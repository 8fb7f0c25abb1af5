//go:build cuda

package cuda

import (
	"errors"
	"math"
	"runtime"
	"slices"
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// followedStep is what the head must know of a launched step of the model.
type followedStep struct {
	index uint64 // the step's
	rows  []backend.Row
	first []int // each row's first token in the step
}

// passRows is a pass: rows of the head's batch, and for those that it samples whose guesses they are.
type passRows struct {
	batch backend.Batch
	asks  []ask
}

type ask struct {
	row   int // of the model's step
	wants int // guesses that are still to be made
	batch int // the row of the pass
}

// launched keeps what the head must know of a batch that st was made of.
func (h *draftHead) launched(batch *backend.Batch, st *step, id backend.StepID) {
	f := &h.steps[id%backend.MaxInFlight]
	f.index, f.rows, f.first = st.index, append(f.rows[:0], batch.Rows...), f.first[:0]
	for i := range f.rows {
		r := &f.rows[i]
		r.Tokens, r.Drafts, r.Pages = slices.Clone(r.Tokens), slices.Clone(r.Drafts), slices.Clone(r.Pages)
		f.first = append(f.first, st.rows[i].token)
	}
}

// follow reads what step id has made known of the rows that are followed, and makes the guesses that they ask for.
func (h *draftHead) follow(id backend.StepID, out *backend.Result) error {
	began := time.Now()
	f := &h.steps[id%backend.MaxInFlight]
	for i := range f.rows {
		if r := &f.rows[i]; r.Start != nil {
			h.follower.Begin(r)
		}
	}
	reads := h.follower.Step(f.rows, f.first, out.Rows)
	if len(reads) == 0 {
		return nil
	}
	if err := h.settle(); err != nil { // index is still read
		return err
	}
	h.fill(reads, int(f.index&1)*h.rows)
	if len(h.pass.batch.Rows) > 0 {
		if err := h.launch(); err != nil {
			return err
		}
	}
	if err := h.hold(reads, int(f.index&1)*h.rows); err != nil {
		return err
	}
	for len(h.pass.asks) > 0 {
		if err := h.settle(); err != nil {
			return err
		}
		if h.guess(out); len(h.pass.asks) > 0 {
			if err := h.launch(); err != nil {
				return err
			}
		}
	}
	out.HeadTime = time.Since(began)
	return nil
}

// heldRow is the row of aux that holds a slot's state.
func (h *draftHead) heldRow(slot int) int { return 2*h.rows + slot }

// fill makes the pass of pairs: its rows, and the rows of aux that their states are. copied is where the step's own begin.
func (h *draftHead) fill(reads []backend.Read, copied int) {
	index, n := view[int32](h.index, 0, len(h.index.Bytes)/4), 0
	add := func(row int) {
		index[n] = int32(row)
		n++
	}
	p := &h.pass
	p.batch.Rows, p.asks = p.batch.Rows[:0], p.asks[:0]
	for _, r := range reads {
		h.fresh[r.Slot] = h.fresh[r.Slot] || r.Begins
		if len(r.Tokens) == 0 {
			continue
		}
		if r.Held {
			add(h.heldRow(r.Slot))
		}
		for _, token := range r.States {
			add(copied + token)
		}
		row := backend.Row{Slot: r.Slot, Position: r.Position, Tokens: r.Tokens, Pages: r.Pages, Sample: r.Guess > 0}
		if h.fresh[r.Slot] {
			h.fresh[r.Slot] = false
			row.Start = &backend.Start{Sampling: backend.Sampling{LogProbs: true}}
		}
		if r.Guess > 0 {
			p.asks = append(p.asks, ask{r.Row, r.Guess, len(p.batch.Rows)})
		}
		p.batch.Rows = append(p.batch.Rows, row)
	}
	clear(index[n:min(len(index), n+tokenPad)]) // padding reads, too
}

// hold keeps the states of tokens that the ones behind are not known of.
func (h *draftHead) hold(reads []backend.Read, copied int) error {
	bytes := ptr(h.auxCols() * bf16Bytes)
	for _, r := range reads {
		if !r.Holds {
			continue
		}
		o := draftGatherOp(h.aux+ptr(copied+r.Hold)*bytes, h.aux+ptr(h.heldRow(r.Slot))*bytes, 0, 1, h.auxCols())
		o.PDL = false
		runtime.LockOSThread()
		err := errors.Join(h.layer.context.Bind(), h.layer.launch(o, h.layer.stream))
		runtime.UnlockOSThread()
		if err != nil {
			return err
		}
	}
	return nil
}

// guess takes what the pass sampled and makes the next one, of the rows that want more.
func (h *draftHead) guess(out *backend.Result) {
	in, p := h.layer, &h.pass
	st := &in.steps[(in.awaited-1)%backend.MaxInFlight]
	index, rows := view[int32](h.index, 0, len(h.index.Bytes)/4), p.batch.Rows
	going := p.asks[:0]
	next := make([]backend.Row, 0, len(p.asks))
	for _, a := range p.asks {
		r := &h.result.Rows[a.batch]
		if r.NonFinite {
			continue
		}
		guess := backend.Guess{Token: h.ids[r.Token], Prob: float32(math.Exp(float64(r.LogProb)))}
		out.Rows[a.row].Guesses = append(out.Rows[a.row].Guesses, guess)
		if a.wants--; a.wants == 0 {
			continue
		}
		from := &rows[a.batch]
		index[len(next)] = int32(st.rows[a.batch].sample)
		in.slots[from.Slot].token = guess.Token
		a.batch = len(next)
		next = append(next, backend.Row{Slot: from.Slot, Position: from.Position + from.NumTokens(), Pages: from.Pages, Sample: true})
		going = append(going, a)
	}
	clear(index[len(next):min(len(index), len(next)+tokenPad)])
	p.batch.Rows, p.asks = next, going
}

// launch enqueues the pass.
func (h *draftHead) launch() error {
	in := h.layer
	id := in.launched
	st := &in.steps[id%backend.MaxInFlight]
	shape, err := in.fill(&h.pass.batch, st, id)
	if err == nil {
		err = in.submit(&h.pass.batch, st, shape)
	}
	if err != nil {
		return err
	}
	in.launched++
	h.running = true
	return nil
}

// settle awaits the pass that runs, if one does.
func (h *draftHead) settle() error {
	if !h.running {
		return nil
	}
	in := h.layer
	id := in.awaited
	if err := in.await(id); err != nil {
		return err
	}
	in.awaited++
	in.collect(&in.steps[id%backend.MaxInFlight], id, &h.result)
	h.running = false
	return nil
}
