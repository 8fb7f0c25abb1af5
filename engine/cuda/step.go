//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// pinned is the host memory that the device reads and writes in place. What comes in pairs alternates from step to step: a step
// is filled while the one before it may still be read.
type pinned struct {
	plans  [2]planBlock
	starts [2]*driver.Pinned
	ring   *driver.Pinned
	// Made when first asked for.
	masks, logits, targets, targetLogProbs [2]*driver.Pinned

	planLayout  planLayout
	startLayout startLayout
	ringLayout  ringLayout
}

// planBlock is one copy of the plan, as Go sees it.
type planBlock struct {
	memory *driver.Pinned
	header *planHeader
	rows   []planRow
	tok    []int32
	update []pageUpdate
}

// view is n values of type T at offset at of p.
func view[T any](p *driver.Pinned, at, n int) []T {
	bytes := p.Bytes[at : at+n*int(unsafe.Sizeof(*new(T)))]
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(bytes))), n)
}

func (b *Backend) openPinned() (err error) {
	s, p := b.shape, &b.pinned
	plan := newPlanLayout(s)
	p.planLayout, p.startLayout, p.ringLayout = plan, newStartLayout(s), newRingLayout(s)
	for i := range 2 {
		m, err := driver.AllocPinned(plan.size)
		if err != nil {
			return err
		}
		p.plans[i] = planBlock{m, &view[planHeader](m, 0, 1)[0], view[planRow](m, plan.rows, s.MaxRows), view[int32](m, plan.tok, s.MaxTokens),
			view[pageUpdate](m, plan.update, plan.maxUpdates)}
		if p.starts[i], err = driver.AllocPinned(p.startLayout.size); err != nil {
			return err
		}
		b.buffers.Plan[i], b.buffers.Starts[i] = m.Device, p.starts[i].Device
	}
	if p.ring, err = driver.AllocPinned(ringEntries * p.ringLayout.size); err != nil {
		return err
	}
	clear(p.ring.Bytes)
	b.buffers.Ring = p.ring.Device
	return nil
}

func (p *pinned) free() {
	for i := range 2 {
		for _, m := range []*driver.Pinned{p.plans[i].memory, p.starts[i], p.masks[i], p.logits[i], p.targets[i], p.targetLogProbs[i]} {
			m.Free()
		}
	}
	p.ring.Free()
}

// grown is *m with at least bytes; the old memory is of a step that was awaited.
func grown(m **driver.Pinned, bytes int) (*driver.Pinned, error) {
	if *m != nil && len((*m).Bytes) >= bytes {
		return *m, nil
	}
	if err := (*m).Free(); err != nil {
		return nil, err
	}
	var err error
	*m, err = driver.AllocPinned(bytes)
	return *m, err
}

// step is what is kept of a launched batch until it is awaited.
type step struct {
	index   uint64 // the device's number of it, from 0
	rows    []stepRow
	starts  bool // some row has Start
	masks   bool
	logits  bool
	targets int // rows that have Targets
	maskOf  [][]uint32
	drafts  []int32 // of all rows
}

// stepRow is one row, in the batch's order.
type stepRow struct {
	slot      int
	sample    int // its place among the sampled rows, or -1; those of its drafts follow
	token     int // its first token's place in the step
	tokens    int
	drafts    []int32
	targets   bool
	logits    bool
	logProbs  bool
	top       int
	logitsRow int // its place among the rows with Logits
}

// parity is the copy of the pinned blocks that the step uses.
func (st *step) parity() int { return int(st.index & 1) }

// fill writes the plan of a checked batch, decode rows first, and marks the slots. To the device a row with drafts is as many decode rows
// of one slot: token i, given here, at position i further, reads what those before it write. Decode rows that prompts follow are padded by
// rows without tokens, so that the step's graph serves other numbers of them.
func (b *Backend) fill(batch *backend.Batch, st *step, id backend.StepID) (stepShape, error) {
	*st = step{index: uint64(id) - 1, rows: append(st.rows[:0], make([]stepRow, len(batch.Rows))...), maskOf: st.maskOf[:0], drafts: st.drafts[:0]}
	plan := &b.pinned.plans[st.parity()]
	shape := stepShape{}
	row, token, updates, logitRows, pages, decode := 0, 0, 0, 0, 0, -1
	order := b.rowOrder(batch, &shape)
	for k, i := range order {
		r := &batch.Rows[i]
		prefill := len(r.Tokens) > 0
		if prefill && decode < 0 {
			decode = row
			for shape.decode = b.promptsAt(row, len(order)-k); row < shape.decode; row++ {
				plan.rows[row].Slot, plan.rows[row].Len, plan.rows[row].Start = -1, 0, int32(token)
			}
		}
		s := &b.slots[r.Slot]
		if r.Start != nil {
			*s = newSlot(r.Start, b.info.VocabSize)
			st.starts = true
		}
		sr := &st.rows[i]
		*sr = stepRow{slot: r.Slot, sample: -1, token: token, tokens: r.NumTokens(), targets: r.Targets != nil, logits: r.Logits, logProbs: s.logProbs, top: s.top}
		st.drafts = append(st.drafts, r.Drafts...)
		sr.drafts = st.drafts[len(st.drafts)-len(r.Drafts):]
		for j := s.pages; j < min(len(r.Pages), b.shape.MaxPages); j++ {
			plan.update[updates] = pageUpdate{Slot: uint32(r.Slot), Index: uint32(j), Page: uint32(r.Pages[j])}
			updates++
		}
		s.pages = max(s.pages, min(len(r.Pages), b.shape.MaxPages))
		if r.Logits {
			sr.logitsRow = logitRows
			logitRows++
		}
		if r.Targets != nil {
			st.targets++
		}
		length, known := 1, s.token
		if prefill {
			copy(plan.tok[token:], r.Tokens)
			length, known = sr.tokens, -1
			shape.longest = max(shape.longest, length)
			pages += ceilDiv(r.Position+length, b.shape.Page)
		} else {
			shape.drafts = shape.drafts || len(r.Drafts) > 0
		}
		s.token = -1
		for d := range 1 + len(r.Drafts) {
			to := &plan.rows[row]
			to.Slot, to.Pos, to.Len, to.Start, to.Token = int32(r.Slot), int32(r.Position+d), int32(length), int32(token), known
			to.From = 0
			if shape.shared && !prefill {
				to.From = b.prefixes.from[k]
			}
			if d < len(r.Drafts) {
				known = r.Drafts[d]
			}
			if r.Sample || r.Logits {
				if d == 0 {
					sr.sample = shape.samples
				}
				sampled := &plan.rows[shape.samples]
				sampled.SampleRow, sampled.MaskRow = int32(row), -1
				if r.Mask != nil {
					sampled.MaskRow = int32(len(st.maskOf))
					st.maskOf = append(st.maskOf, r.Mask)
				}
				shape.samples++
				shape.full = shape.full || s.full || r.Mask != nil || r.Logits
			}
			row++
			token += length
		}
	}
	if decode < 0 {
		decode, shape.decode = row, row
	}
	shape.rows, shape.tokens, shape.widens = row, token, pages > 0 && pages <= b.shape.widenedPages(b.device) && !b.shape.Deterministic
	st.masks, st.logits = len(st.maskOf) > 0, logitRows > 0
	*plan.header = planHeader{Tokens: int32(token), Rows: int32(row), Decode: int32(decode), Samples: int32(shape.samples), Updates: int32(updates)}
	return shape, nil
}

// rowOrder lists the batch's rows as the device has them: decode rows first, those that share pages together where that pays.
func (b *Backend) rowOrder(batch *backend.Batch, shape *stepShape) []int {
	x := &b.prefixes
	shape.shared = b.shape.canShare() && x.find(batch.Rows, b.info.PageSize, b.shape.prefixRows())
	if !shape.shared {
		x.order = x.order[:0]
		for i := range batch.Rows {
			if len(batch.Rows[i].Tokens) == 0 {
				x.order = append(x.order, i)
			}
		}
	}
	for i := range batch.Rows {
		if len(batch.Rows[i].Tokens) > 0 {
			x.order = append(x.order, i)
		}
	}
	return x.order
}

// promptsAt is the place of the first of so many prompts behind decode rows.
func (b *Backend) promptsAt(decode, prompts int) int {
	if at := bucketFor(decode); b.mixedGraphs && decode > 0 && at+prompts <= b.shape.MaxRows {
		return at
	}
	return decode
}

// copyPlan brings a plan to device memory, where many threads can read it at once: worth it for a prompt's tokens.
func (b *Backend) copyPlan(st *step) error {
	plan, l := &b.pinned.plans[st.parity()], b.pinned.planLayout
	if err := driver.CopyToDevice(b.buffers.PlanCopy, plan.memory.Bytes[:l.tok+4*int(plan.header.Tokens)], b.stream); err != nil {
		return err
	}
	return driver.CopyToDevice(b.buffers.PlanCopy+ptr(l.update), plan.memory.Bytes[l.update:][:16*int(plan.header.Updates)], b.stream)
}

func newSlot(s *backend.Start, vocabulary int) slot {
	p := params(&s.Sampling, vocabulary)
	truncated := p.TopK > 0 || p.TopP < 1 || p.MinP > 0
	return slot{
		logProbs: p.Flags&slotLogProbs != 0, top: int(p.TopLogProbs),
		full: p.Flags != 0 || p.NumBias > 0 || p.Temperature > 0 && truncated, token: -1,
	}
}

// params is s as the device has it: every option that is off has its neutral value.
func params(s *backend.Sampling, vocabulary int) slotParams {
	p := slotParams{Seed: s.Seed, Temperature: s.Temperature, TopP: s.TopP, MinP: s.MinP, Repetition: s.RepetitionPenalty,
		Presence: s.PresencePenalty, Frequency: s.FrequencyPenalty, TopK: int32(s.TopK), NumBias: int32(len(s.Bias)), TopLogProbs: int32(s.TopLogProbs)}
	if p.TopP == 0 {
		p.TopP = 1
	}
	if p.Repetition == 0 {
		p.Repetition = 1
	}
	if s.TopK >= vocabulary {
		p.TopK = 0
	}
	if p.Repetition != 1 || p.Presence != 0 || p.Frequency != 0 {
		p.Flags |= slotPenalties
	}
	if s.LogProbs || s.TopLogProbs > 0 {
		p.Flags |= slotLogProbs
	}
	return p
}

// start enqueues the slots' new state. The prompts of sequences with penalties travel in a pool; one that does not fit waits for
// a launch of its own.
func (b *Backend) start(batch *backend.Batch, st *step) error {
	l, block := b.pinned.startLayout, b.pinned.starts[st.parity()]
	entries := view[startEntry](block, 0, b.shape.MaxRows)
	bias := view[backend.TokenBias](block, l.bias, maxBias*b.shape.MaxRows)
	tokens := view[int32](block, l.tokens, l.maxTokens)
	n, biased, used := 0, 0, 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		o := startOp(b.device, b.shape, &b.buffers, n)
		b.tellOp(&o)
		err := b.launch(o, b.stream)
		n, biased, used = 0, 0, 0
		return err
	}
	for i := range batch.Rows {
		r := &batch.Rows[i]
		if r.Start == nil {
			continue
		}
		p := params(&r.Start.Sampling, b.info.VocabSize)
		var prompt, output []int32
		if p.Flags&slotPenalties != 0 {
			prompt, output = r.Start.Prompt, r.Start.Output
		}
		if len(prompt)+len(output) > len(tokens) {
			return fmt.Errorf("penalties over %d tokens: the CUDA backend takes up to %d", len(prompt)+len(output), len(tokens))
		}
		if used+len(prompt)+len(output) > len(tokens) {
			if err := errors.Join(flush(), b.stream.Synchronize()); err != nil {
				return err
			}
		}
		e := startEntry{Params: p, Slot: int32(r.Slot), BiasFirst: int32(biased), PromptFirst: int32(used), Prompt: int32(len(prompt)),
			OutputFirst: int32(used + len(prompt)), Output: int32(len(output))}
		biased += copy(bias[biased:], r.Start.Sampling.Bias)
		used += copy(tokens[used:], prompt)
		used += copy(tokens[used:], output)
		entries[n] = e
		n++
	}
	return flush()
}

func (b *Backend) copyMasks(st *step) error {
	words := b.shape.maskWords()
	m, err := grown(&b.pinned.masks[st.parity()], 4*words*b.shape.MaxRows)
	if err != nil {
		return err
	}
	host := view[uint32](m, 0, words*len(st.maskOf))
	for i, mask := range st.maskOf {
		copy(host[i*words:], mask)
	}
	return driver.CopyToDevice(b.buffers.Mask, m.Bytes[:4*len(host)], b.stream)
}

// hooks are what a step with Targets or Logits does beside sampling.
func (b *Backend) hooks(batch *backend.Batch, st *step) (h hooks, err error) {
	if st.targets > 0 {
		m, err := grown(&b.pinned.targets[st.parity()], 4*b.shape.MaxTokens)
		if err != nil {
			return h, err
		}
		out, err := grown(&b.pinned.targetLogProbs[st.parity()], 4*b.shape.MaxTokens)
		if err != nil {
			return h, err
		}
		targets := view[int32](m, 0, b.shape.MaxTokens)
		h.beforeHead = func() error {
			for i := range batch.Rows {
				copy(targets[st.rows[i].token:], batch.Rows[i].Targets)
			}
			if err := driver.CopyToDevice(b.buffers.Targets, m.Bytes, b.stream); err != nil {
				return err
			}
			for _, r := range st.rows {
				if !r.targets {
					continue
				}
				for at := 0; at < r.tokens; at += targetRows {
					if err := b.enqueue(b.planner.targets(r.token+at, min(targetRows, r.tokens-at))); err != nil {
						return err
					}
				}
				if err := driver.CopyToHost(out.Bytes[4*r.token:][:4*r.tokens], b.buffers.TargetLogProbs+ptr(4*r.token), b.stream); err != nil {
					return err
				}
			}
			return nil
		}
	}
	if st.logits {
		rowBytes := 4 * b.shape.Vocab
		count := 0
		for _, r := range st.rows {
			if r.logits {
				count++
			}
		}
		m, err := grown(&b.pinned.logits[st.parity()], count*rowBytes)
		if err != nil {
			return h, err
		}
		h.beforeSampling = func() error {
			for _, r := range st.rows {
				if !r.logits {
					continue
				}
				if err := driver.CopyToHost(m.Bytes[r.logitsRow*rowBytes:][:rowBytes], b.buffers.Logits+ptr(r.sample*rowBytes), b.stream); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return h, nil
}

// await polls the ring until the step's number appears. The device never waits for the host: at most a finished step waits to be
// seen, while the next one runs. Polling gives the processor up only if it is the sole one: handing a locked thread over and back
// costs more than what is left of most waits.
func (b *Backend) await(id backend.StepID) error {
	seq := &view[uint64](b.pinned.ring, b.ringAt(id)+b.pinned.ringLayout.seq, 1)[0]
	alone := runtime.GOMAXPROCS(0) == 1
	for spins := 1; atomic.LoadUint64(seq) != uint64(id); spins++ {
		if alone && spins%64 == 0 {
			runtime.Gosched()
		}
		if spins%(1<<20) != 0 { // about a millisecond
			continue
		}
		// A kernel's fault would leave the host waiting forever.
		idle, err := b.context.Query(b.stream)
		if err != nil {
			return fmt.Errorf("while the step ran: %w", err)
		}
		if idle && atomic.LoadUint64(seq) != uint64(id) {
			time.Sleep(time.Millisecond) // the store may be on its way
			if got := atomic.LoadUint64(seq); got != uint64(id) {
				return fmt.Errorf("the device is idle but published step %d last", got)
			}
		}
	}
	return nil
}

func (b *Backend) ringAt(id backend.StepID) int {
	return int((uint64(id)-1)%ringEntries) * b.pinned.ringLayout.size
}

// collect reads a finished step's results.
func (b *Backend) collect(st *step, id backend.StepID, out *backend.Result) {
	l, at := b.pinned.ringLayout, b.ringAt(id)
	results := view[sampled](b.pinned.ring, at+l.sampled, b.shape.MaxRows)
	top := view[backend.TokenLogProb](b.pinned.ring, at+l.top, b.shape.MaxRows*maxTop)
	for len(out.Rows) < len(st.rows) {
		out.Rows = append(out.Rows, backend.RowResult{})
	}
	out.Rows = out.Rows[:len(st.rows)]
	for i := range st.rows {
		r, o := &st.rows[i], &out.Rows[i]
		*o = backend.RowResult{Top: o.Top[:0], More: o.More[:0], TargetLogProbs: o.TargetLogProbs[:0], Guesses: o.Guesses[:0], Logits: o.Logits[:0]}
		if r.sample >= 0 {
			row := func(k int) (int32, float32, []backend.TokenLogProb) {
				got := &results[r.sample+k]
				o.NonFinite = o.NonFinite || got.Flags&sampledNonFinite != 0
				if !r.logProbs {
					return got.Token, 0, nil
				}
				return got.Token, got.LogProb, top[(r.sample+k)*maxTop:][:r.top]
			}
			token, logProb, likeliest := row(0)
			o.Token, o.LogProb, o.Top = token, logProb, append(o.Top, likeliest...)
			accepted := backend.Accepted(r.drafts, func(k int) int32 { return results[r.sample+k].Token })
			for k := range accepted {
				token, logProb, likeliest = row(1 + k)
				o.More = append(o.More, backend.Sampled{Token: token, LogProb: logProb, Top: slices.Clone(likeliest)})
			}
			if len(r.drafts) > 0 { // the device's own notion of the slot's last token is that of any of the drafts
				b.slots[r.slot].token = token
			}
		}
		if r.targets {
			o.TargetLogProbs = append(o.TargetLogProbs, view[float32](b.pinned.targetLogProbs[st.parity()], 4*r.token, r.tokens)...)
		}
		if r.logits {
			o.Logits = append(o.Logits, view[float32](b.pinned.logits[st.parity()], 4*b.shape.Vocab*r.logitsRow, b.shape.Vocab)...)
		}
	}
}
