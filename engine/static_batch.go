package engine

import (
	"fmt"
	"time"
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
	return StaticNeed{}
}

// StaticBatch prefills prompts, all of one length, and decodes outputLen tokens of each greedily, whatever the
// end-of-sequence token. chunk is the most prompt tokens of a row in one launch; 0 takes the engine's. Decode steps are timed
// one by one: each is launched with nothing else in flight and awaited.
//
// It needs the engine to itself: while requests run it returns [ErrBusy], and it empties the prefix cache.
func (e *Engine) StaticBatch(prompts [][]int32, outputLen, chunk int) (*StaticRun, error) {
	return nil, ErrClosed
}

// StaticBatchOverlapped is [Engine.StaticBatch] with each decode step launched before the one ahead of it was awaited: the rate
// the device reaches when the host's work hides behind it.
func (e *Engine) StaticBatchOverlapped(prompts [][]int32, outputLen, chunk int) (*StaticRun, error) {
	return nil, ErrClosed
}
