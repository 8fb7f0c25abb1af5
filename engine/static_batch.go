package engine

import (
	"fmt"
	"time"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// StaticRun is what one static batch gave: a prefill of equally long prompts and outputLen-1 decode steps, with no scheduler.
type StaticRun struct {
	// Prefill is the time from the first launch until the first token of every row is on the host.
	Prefill time.Duration
	// PrefillSteps is the number of launches of the prefill: more than one if it was chunked or over the step's token limit.
	PrefillSteps int
	// Decode holds the time of each decode step, [outputLen-1]. In a synchronous run: from launch to token on the host, nothing
	// else in flight. In an overlapped run: between two awaited steps.
	Decode []time.Duration
	// Total is the time from the first launch to the last token.
	Total time.Duration
	// Tokens holds every row's output, [batch][outputLen].
	Tokens [][]int32
	// NonFinite counts sampled rows whose logits held a NaN or an infinity. A run with any is not valid.
	NonFinite int
}

// StaticNeed is what a static batch asks of the engine against what it has.
type StaticNeed struct {
	NeedRows, HaveRows     int
	NeedPages, HavePages   int // KV cache
	NeedTokens, HaveTokens int // of one sequence: context
	NeedStep, HaveStep     int // tokens of the smallest step that the run can be cut into: activations
}

// Err is nil if the batch fits, or a *CapacityError naming the first need that does not.
func (n StaticNeed) Err() error {
	switch {
	case n.NeedTokens > n.HaveTokens:
		return &CapacityError{"tokens of context", n.NeedTokens, n.HaveTokens, "raise --context-length or shorten input and output"}
	case n.NeedRows > n.HaveRows:
		return &CapacityError{"rows", n.NeedRows, n.HaveRows, "raise --max-running-requests or lower the batch"}
	case n.NeedPages > n.HavePages:
		return &CapacityError{"KV pages", n.NeedPages, n.HavePages, "raise --mem-fraction-static or --max-total-tokens, or lower batch or lengths"}
	case n.NeedStep > n.HaveStep:
		return &CapacityError{"tokens of one step", n.NeedStep, n.HaveStep, "raise --max-prefill-tokens or lower the batch"}
	}
	return nil
}

// CapacityError tells that a workload needs more of something than there is.
type CapacityError struct {
	What       string
	Need, Have int
	Do         string
}

func (e *CapacityError) Error() string {
	return fmt.Sprintf("needs %d %s, has %d: %s", e.Need, e.What, e.Have, e.Do)
}

// StaticNeed computes what a static batch would need, before anything is allocated or launched.
func (e *Engine) StaticNeed(batch, inputLen, outputLen int) StaticNeed {
	return StaticNeed{
		NeedRows: batch, HaveRows: e.info.MaxRows,
		NeedPages: batch * staticPages(inputLen, outputLen, e.info.PageSize), HavePages: e.info.NumPages,
		NeedTokens: inputLen + outputLen, HaveTokens: e.info.MaxContext,
		NeedStep: batch, HaveStep: e.info.MaxTokens,
	}
}

// staticPages is the number of pages of one row. The last token's keys and values are never needed.
func staticPages(inputLen, outputLen, pageSize int) int {
	return (inputLen + outputLen - 1 + pageSize - 1) / pageSize
}

// StaticBatch prefills prompts, all of one length, and decodes outputLen tokens of each greedily, whatever the
// end-of-sequence token. chunk is the most prompt tokens of a row in one launch; 0 takes the engine's. Decode steps are timed
// one by one: each is launched with nothing else in flight and awaited.
//
// It needs the engine to itself: while requests run it returns [ErrBusy], and it empties the prefix cache. A batch that does not
// fit is a *[CapacityError]; prompts that cannot be run are a *[RequestError].
func (e *Engine) StaticBatch(prompts [][]int32, outputLen, chunk int) (*StaticRun, error) {
	return e.staticBatch(prompts, outputLen, chunk, 1)
}

// StaticBatchOverlapped is [Engine.StaticBatch] with each decode step launched before the one ahead of it was awaited: the rate
// the device reaches when the host's work hides behind it.
func (e *Engine) StaticBatchOverlapped(prompts [][]int32, outputLen, chunk int) (*StaticRun, error) {
	return e.staticBatch(prompts, outputLen, chunk, backend.MaxInFlight)
}

func (e *Engine) staticBatch(prompts [][]int32, outputLen, chunk, depth int) (*StaticRun, error) {
	if err := e.checkStatic(prompts, outputLen, chunk); err != nil {
		return nil, err
	}
	if chunk == 0 {
		chunk = max(0, e.options.ChunkedPrefillSize)
	}
	if chunk == 0 {
		chunk = e.info.MaxTokens
	}
	var run *StaticRun
	err := e.loop.call(func(l *loop) error {
		l.sched.Flush() // its pages are used below
		b := newStaticBatch(l, e.info, prompts, outputLen)
		if err := b.run(chunk, depth); err != nil {
			l.fail(err)
			return l.failure
		}
		run = b.result
		return nil
	})
	return run, err
}

func (e *Engine) checkStatic(prompts [][]int32, outputLen, chunk int) error {
	switch {
	case len(prompts) == 0:
		return &RequestError{"batch", "is 0: want at least 1"}
	case len(prompts[0]) == 0:
		return &RequestError{"input_len", "is 0: want at least 1"}
	case outputLen < 1:
		return &RequestError{"output_len", fmt.Sprintf("%d: want at least 1", outputLen)}
	case chunk < 0:
		return &RequestError{"chunk", fmt.Sprintf("%d: want at least 1, or 0 for the engine's", chunk)}
	}
	for i, p := range prompts {
		if len(p) != len(prompts[0]) {
			return &RequestError{"prompts", fmt.Sprintf("prompt %d has %d tokens, prompt 0 has %d: want one length", i, len(p), len(prompts[0]))}
		}
		for _, t := range p {
			if t < 0 || int(t) >= e.info.VocabSize {
				return &RequestError{"prompts", fmt.Sprintf("token %d is outside the vocabulary: want 0..%d", t, e.info.VocabSize-1)}
			}
		}
	}
	return e.StaticNeed(len(prompts), len(prompts[0]), outputLen).Err()
}

// staticBatch is a run in progress.
type staticBatch struct {
	device    backend.Backend
	info      backend.Info
	prompts   [][]int32
	outputLen int
	pages     [][]int32 // [row][page]
	done      []int     // [row] tokens whose keys and values are launched

	batch   backend.Batch
	output  backend.Result
	flights []staticFlight // oldest first
	steps   uint64
	result  *StaticRun
}

// staticFlight is a launched step: rows[i] is the row of the batch's row i.
type staticFlight struct {
	id   backend.StepID
	rows []int
	took []bool // rows that sampled
	step trace.Step
}

func newStaticBatch(l *loop, info backend.Info, prompts [][]int32, outputLen int) *staticBatch {
	b := &staticBatch{
		device: l.device, info: info, prompts: prompts, outputLen: outputLen, done: make([]int, len(prompts)),
		result: &StaticRun{Tokens: make([][]int32, len(prompts)), Decode: make([]time.Duration, 0, outputLen)},
	}
	perRow := staticPages(len(prompts[0]), outputLen, info.PageSize)
	for row := range prompts {
		pages := make([]int32, perRow)
		for i := range pages {
			pages[i] = int32(row*perRow + i)
		}
		b.pages = append(b.pages, pages)
		b.result.Tokens[row] = make([]int32, 0, outputLen)
	}
	return b
}

func (b *staticBatch) run(chunk, depth int) error {
	start := time.Now()
	if err := b.prefill(chunk); err != nil {
		return err
	}
	b.result.Prefill = time.Since(start)
	if err := b.decode(depth); err != nil {
		return err
	}
	b.result.Total = time.Since(start)
	return nil
}

// prefill launches the prompts in steps of at most the device's tokens, each row at most chunk a step.
func (b *staticBatch) prefill(chunk int) error {
	inputLen := len(b.prompts[0])
	for first := 0; first < len(b.prompts); {
		b.batch.Rows = b.batch.Rows[:0]
		budget := b.info.MaxTokens
		var flight staticFlight
		for row := first; row < len(b.prompts) && budget > 0; row++ {
			from := b.done[row]
			n := min(chunk, inputLen-from, budget)
			r := backend.Row{
				Slot: row, Position: from, Tokens: b.prompts[row][from : from+n], Pages: b.pages[row], Sample: from+n == inputLen,
			}
			if from == 0 {
				r.Start = &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}}
			}
			b.batch.Rows = append(b.batch.Rows, r)
			flight.rows, flight.took = append(flight.rows, row), append(flight.took, r.Sample)
			b.done[row] += n
			budget -= n
		}
		for first < len(b.prompts) && b.done[first] == inputLen {
			first++
		}
		if err := b.launch(flight, backend.MaxInFlight); err != nil {
			return err
		}
		b.result.PrefillSteps++
	}
	return b.await(0)
}

// decode launches one step for each token but the first, with at most depth in flight.
func (b *staticBatch) decode(depth int) error {
	flight := staticFlight{}
	for row := range b.prompts {
		flight.rows, flight.took = append(flight.rows, row), append(flight.took, true)
	}
	last := time.Now()
	awaited := func() {
		now := time.Now()
		b.result.Decode = append(b.result.Decode, now.Sub(last))
		last = now
	}
	for range b.outputLen - 1 {
		b.batch.Rows = b.batch.Rows[:0]
		for row := range b.prompts {
			b.batch.Rows = append(b.batch.Rows, backend.Row{Slot: row, Position: b.done[row], Pages: b.pages[row], Sample: true})
			b.done[row]++
		}
		if depth == 1 {
			last = time.Now() // nothing is in flight: the step's own time
		}
		if err := b.launch(flight, backend.MaxInFlight); err != nil {
			return err
		}
		if len(b.flights) < depth {
			continue
		}
		if err := b.await(len(b.flights) - 1); err != nil {
			return err
		}
		awaited()
	}
	for len(b.flights) > 0 {
		if err := b.await(len(b.flights) - 1); err != nil {
			return err
		}
		awaited()
	}
	return nil
}

// launch launches b.batch, awaiting the oldest step before if there are depth.
func (b *staticBatch) launch(f staticFlight, depth int) error {
	if err := b.await(depth - 1); err != nil {
		return err
	}
	b.steps++
	f.step = trace.Step{ID: b.steps, Phase: trace.Decode, Rows: len(b.batch.Rows), Launched: time.Now(), InFlight: len(b.flights) + 1}
	for i := range b.batch.Rows {
		row := &b.batch.Rows[i]
		f.step.Tokens += row.NumTokens()
		if len(row.Tokens) > 0 {
			f.step.Phase = trace.Prefill
		} else {
			f.step.DecodeRows++
		}
		if row.Sample {
			f.step.SampledTokens++
		}
	}
	r := trace.BeginArg("launch", trace.Backend, b.steps)
	id, err := b.device.Launch(&b.batch)
	r.End()
	if err != nil {
		return fmt.Errorf("launch a step of a static batch: %w", err)
	}
	f.id = id
	f.step.LaunchTime = time.Since(f.step.Launched)
	b.flights = append(b.flights, f)
	return nil
}

// await awaits the oldest steps until at most left are in flight.
func (b *staticBatch) await(left int) error {
	for len(b.flights) > left {
		f := b.flights[0]
		f.step.WaitStart = time.Now()
		r := trace.BeginArg("wait", trace.Backend, f.step.ID)
		err := b.device.Wait(f.id, &b.output)
		r.End()
		if err != nil {
			return fmt.Errorf("step of a static batch: %w", err)
		}
		if trace.Enabled() {
			f.step.WaitTime = time.Since(f.step.WaitStart)
			trace.StepDone(f.step)
		}
		copy(b.flights, b.flights[1:])
		b.flights = b.flights[:len(b.flights)-1]
		for i, row := range f.rows {
			if !f.took[i] {
				continue
			}
			if b.output.Rows[i].NonFinite {
				b.result.NonFinite++
			}
			b.result.Tokens[row] = append(b.result.Tokens[row], b.output.Rows[i].Token)
		}
	}
	return nil
}
