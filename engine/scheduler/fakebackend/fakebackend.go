// Package fakebackend is a backend.Backend for tests. Its model is a hash: each page slot holds a token and the hash of all
// tokens up to it, a row walks the whole chain of its page table, and the sampled token is a function of the chain's end. So a
// page that is shared wrongly, overwritten, freed too early or not filled shows as a broken chain or a different token, and
// what one request alone would give is known without running it.
package fakebackend

import (
	"fmt"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// Backend computes a step when it is launched and hands it out when it is awaited. A row that breaks the contract makes
// Launch fail.
type Backend struct {
	// FailLaunch and FailWait, if set, are asked before each call and may return the fault to report.
	FailLaunch, FailWait func(step backend.StepID) error
	// Poison tells whether the row that starts with this chain gives logits that are not finite.
	Poison func(chain uint64) bool
	// BeforeWait is called by Wait before it returns: to hold a step back.
	BeforeWait func(step backend.StepID)

	info   backend.Info
	kv     [][]entry // [page][offset]
	slots  []slot
	steps  []step // launched, not awaited, oldest first
	spare  []step // recycled memory
	next   backend.StepID
	err    error
	closed bool

	checker *backend.Checker
	stamp   uint64
	written []writing // [page] scratch of check: an entry counts if it bears the current stamp
}

type writing struct {
	stamp uint64
	slot  int
}

// writer tells which slot the batch being checked writes page for.
func (b *Backend) writer(page int32) (int, bool) {
	return b.written[page].slot, b.written[page].stamp == b.stamp
}

type entry struct {
	token int32
	chain uint64
	valid bool
}

type slot struct {
	last     int32 // token sampled last
	pages    []int32
	sampling backend.Sampling
}

type step struct {
	id   backend.StepID
	rows []launchedRow
}

type launchedRow struct {
	slot   int
	pages  []int32
	result backend.RowResult
	drawn  []backend.Sampled
}

// New returns a backend of info's bounds.
func New(info backend.Info) *Backend {
	b := &Backend{
		info: info, slots: make([]slot, info.MaxRows), kv: make([][]entry, info.NumPages),
		checker: backend.NewChecker(info), written: make([]writing, info.NumPages),
	}
	for i := range b.kv {
		b.kv[i] = make([]entry, info.PageSize)
	}
	return b
}

// Info implements backend.Backend.
func (b *Backend) Info() backend.Info { return b.info }

// Launch implements backend.Backend.
func (b *Backend) Launch(batch *backend.Batch) (backend.StepID, error) {
	if b.err != nil {
		return 0, b.err
	}
	if b.closed {
		return 0, backend.ErrClosed
	}
	if len(b.steps) == backend.MaxInFlight {
		return 0, backend.ErrTooManySteps
	}
	if b.FailLaunch != nil {
		if err := b.FailLaunch(b.next + 1); err != nil {
			b.err = err
			return 0, err
		}
	}
	if err := b.check(batch); err != nil {
		b.err = err
		return 0, err
	}
	b.checker.Launched(batch)
	b.next++
	st := b.newStep(len(batch.Rows))
	for i := range batch.Rows {
		if err := b.compute(&batch.Rows[i], &st.rows[i]); err != nil {
			b.err = fmt.Errorf("step %d row %d: %w", b.next, i, err)
			return 0, b.err
		}
	}
	b.steps = append(b.steps, st)
	return b.next, nil
}

func (b *Backend) newStep(rows int) step {
	var st step
	if n := len(b.spare); n > 0 {
		st, b.spare = b.spare[n-1], b.spare[:n-1]
	}
	st.id = b.next
	st.rows = slices.Grow(st.rows[:0], rows)[:rows]
	return st
}

// check looks at what concerns the whole batch: besides what every backend does, who writes which page.
func (b *Backend) check(batch *backend.Batch) error {
	if err := b.checker.Check(batch); err != nil {
		return err
	}
	b.stamp++ // empties written
	for i := range batch.Rows {
		r := &batch.Rows[i]
		end := r.Position + r.NumTokens()
		for p := r.Position / b.info.PageSize; p*b.info.PageSize < end; p++ {
			page := r.Pages[p]
			if other, ok := b.writer(page); ok {
				return fmt.Errorf("slots %d and %d write page %d", other, r.Slot, page)
			}
			b.written[page] = writing{b.stamp, r.Slot}
		}
	}
	for i := range batch.Rows {
		r := &batch.Rows[i]
		for _, page := range r.Pages {
			if writer, ok := b.writer(page); ok && writer != r.Slot {
				return fmt.Errorf("slot %d reads page %d that slot %d writes in the same step", r.Slot, page, writer)
			}
		}
	}
	// What steps that were not awaited use may not be given to others.
	for _, st := range b.steps {
		for _, row := range st.rows {
			for i := range batch.Rows {
				if r := &batch.Rows[i]; r.Slot == row.slot {
					if r.Start != nil {
						return fmt.Errorf("slot %d is started anew while step %d uses it", r.Slot, st.id)
					}
				}
			}
			for _, page := range row.pages {
				if writer, ok := b.writer(page); ok && writer != row.slot {
					return fmt.Errorf("slot %d writes page %d while step %d uses it for slot %d", writer, page, st.id, row.slot)
				}
			}
		}
	}
	return nil
}

func (b *Backend) compute(r *backend.Row, out *launchedRow) error {
	s := &b.slots[r.Slot]
	if r.Start != nil {
		*s = slot{pages: s.pages[:0], sampling: r.Start.Sampling}
	}
	if len(r.Pages) < len(s.pages) || !slices.Equal(r.Pages[:len(s.pages)], s.pages) {
		return fmt.Errorf("page table of slot %d changed from %v to %v", r.Slot, s.pages, r.Pages)
	}
	s.pages = append(s.pages[:0], r.Pages...)
	out.slot, out.pages = r.Slot, append(out.pages[:0], r.Pages...)
	out.result = backend.RowResult{TargetLogProbs: out.result.TargetLogProbs[:0], Guesses: out.result.Guesses[:0]}

	chain := uint64(0)
	for pos := range r.Position {
		e := b.at(r.Pages, pos)
		if !e.valid || e.chain != Extend(chain, e.token) {
			return fmt.Errorf("slot %d: position %d of %d holds another sequence's keys and values", r.Slot, pos, r.Position)
		}
		chain = e.chain
	}
	if r.Start != nil && r.Start.Prompt != nil {
		if err := b.checkStart(r); err != nil {
			return err
		}
	}
	tokens := r.Tokens
	if len(tokens) == 0 {
		tokens = append([]int32{s.last}, r.Drafts...)
	}
	drawn := out.drawn[:0]
	for i, t := range tokens {
		chain = Extend(chain, t)
		*b.at(r.Pages, r.Position+i) = entry{t, chain, true}
		if len(r.Targets) > 0 {
			out.result.TargetLogProbs = append(out.result.TargetLogProbs, LogProb(chain, r.Targets[i]))
		}
		if r.Sample && i >= len(tokens)-1-len(r.Drafts) {
			drawn = append(drawn, b.draw(s, r, chain))
			out.result.NonFinite = out.result.NonFinite || b.Poison != nil && b.Poison(chain)
			if n := len(drawn); n <= len(r.Drafts) && drawn[n-1].Token != r.Drafts[n-1] {
				for rest := i + 1; rest < len(tokens); rest++ { // the drafts' keys and values lie there: whoever reads them is wrong
					*b.at(r.Pages, r.Position+rest) = entry{}
				}
				break
			}
		}
	}
	if out.drawn = drawn; len(drawn) > 0 {
		first, last := &drawn[0], &drawn[len(drawn)-1]
		out.result.Token, out.result.LogProb, out.result.Top, out.result.More = first.Token, first.LogProb, first.Top, drawn[1:]
		s.last = last.Token
		b.guess(r, out, Extend(chain, last.Token))
	}
	return nil
}

// guess is the draft head: it expects what will come behind chain, two times out of three, and is sure of itself mostly when it is right.
func (b *Backend) guess(r *backend.Row, out *launchedRow, chain uint64) {
	for range r.Guess {
		g := backend.Guess{Token: Sample(chain, b.info.VocabSize, nil), Prob: 0.9}
		if h := chain >> 20; h%3 == 0 {
			g = backend.Guess{Token: (g.Token + 1) % int32(b.info.VocabSize), Prob: float32(h%5) / 4}
		}
		out.result.Guesses = append(out.result.Guesses, g)
		chain = Extend(chain, g.Token)
	}
}

func (b *Backend) draw(s *slot, r *backend.Row, chain uint64) backend.Sampled {
	d := backend.Sampled{Token: Sample(chain, b.info.VocabSize, r.Mask)}
	d.LogProb = LogProb(chain, d.Token)
	for k := range s.sampling.TopLogProbs {
		t := int32((int(d.Token) + k) % b.info.VocabSize)
		d.Top = append(d.Top, backend.TokenLogProb{Token: t, LogProb: LogProb(chain, t)})
	}
	return d
}

// checkStart compares what the slot is told of the sequence with what the cache and the row hold.
func (b *Backend) checkStart(r *backend.Row) error {
	all := slices.Concat(r.Start.Prompt, r.Start.Output)
	if len(all) < r.Position+len(r.Tokens) {
		return fmt.Errorf("slot %d is told of %d tokens and computes up to %d", r.Slot, len(all), r.Position+len(r.Tokens))
	}
	for pos := range r.Position {
		if b.at(r.Pages, pos).token != all[pos] {
			return fmt.Errorf("slot %d is told of another token at %d than it has", r.Slot, pos)
		}
	}
	if !slices.Equal(all[r.Position:r.Position+len(r.Tokens)], r.Tokens) {
		return fmt.Errorf("slot %d is told of other tokens than it gets", r.Slot)
	}
	return nil
}

func (b *Backend) at(pages []int32, pos int) *entry {
	return &b.kv[pages[pos/b.info.PageSize]][pos%b.info.PageSize]
}

// Wait implements backend.Backend.
func (b *Backend) Wait(id backend.StepID, out *backend.Result) error {
	if b.BeforeWait != nil {
		b.BeforeWait(id)
	}
	if b.err != nil {
		return b.err
	}
	if b.closed {
		return backend.ErrClosed
	}
	if len(b.steps) == 0 || b.steps[0].id != id {
		b.err = fmt.Errorf("step %d is awaited out of order", id)
		return b.err
	}
	if b.FailWait != nil {
		if err := b.FailWait(id); err != nil {
			b.err = err
			return err
		}
	}
	b.checker.Awaited()
	st := b.steps[0]
	copy(b.steps, b.steps[1:])
	b.steps = b.steps[:len(b.steps)-1]
	out.Rows = out.Rows[:0]
	for _, row := range st.rows {
		out.Rows = append(out.Rows, row.result)
	}
	b.spare = append(b.spare, st)
	return nil
}

// Close implements backend.Backend.
func (b *Backend) Close() error {
	b.closed = true
	return nil
}

// Extend is the chain after one more token.
func Extend(chain uint64, token int32) uint64 {
	h := chain + uint64(uint32(token)) + 0x9E3779B97F4A7C15
	h = (h ^ h>>30) * 0xBF58476D1CE4E5B9
	h = (h ^ h>>27) * 0x94D049BB133111EB
	return h ^ h>>31
}

// Sample is the token that follows chain, the next allowed one if mask forbids it. Three quarters of the tokens are one of three, so that
// what was said is said again and guesses at it are right now and then.
func Sample(chain uint64, vocab int, mask []uint32) int32 {
	t := int((chain >> 8) % uint64(vocab))
	if chain%4 != 0 {
		t = min(1+t%3, vocab-1)
	}
	for range vocab {
		if mask == nil || mask[t/32]>>(t%32)&1 == 1 {
			break
		}
		t = (t + 1) % vocab
	}
	return int32(t)
}

// LogProb is what the model gives for token after chain.
func LogProb(chain uint64, token int32) float32 {
	return -float32(Extend(chain, token)%1000) / 1000
}

// Continue is what one request alone gives: up to n tokens after prompt, ending with one of stop.
func Continue(prompt []int32, n, vocab int, stop []int32) []int32 {
	chain := uint64(0)
	for _, t := range prompt {
		chain = Extend(chain, t)
	}
	var out []int32
	for range n {
		t := Sample(chain, vocab, nil)
		out = append(out, t)
		if slices.Contains(stop, t) {
			break
		}
		chain = Extend(chain, t)
	}
	return out
}
