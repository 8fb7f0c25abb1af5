package scheduler

import (
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/kvcache"
	"github.com/tokamak-engine/tokamak/engine/speculate"
)

// Finish says why a request ended.
type Finish uint8

const (
	Running   Finish = iota // it has not
	Length                  // MaxNewTokens, or the context is full
	Stop                    // one of StopTokens was sampled
	Cancelled               // by Cancel
	NonFinite               // its logits held a NaN or an infinity
)

// Request is one generation. The exported fields are set before Add and not changed after.
type Request struct {
	Owner    any // the caller's own, not looked at
	Prompt   []int32
	Sampling backend.Sampling
	// MaxNewTokens may be 0: the prompt is prefilled and nothing sampled. Prompt and output together must not exceed
	// [Scheduler.Limit] by more than the last token, whose keys and values are never needed.
	MaxNewTokens int
	MinNewTokens int     // MinMask applies to the tokens before
	StopTokens   []int32 // each ends the request, and is part of its output
	// MinMask forbids StopTokens; nil if MinNewTokens is 0.
	MinMask []uint32
	Salt    kvcache.Salt
	// PromptLogProbs asks for the log probability of each prompt token but the first. Such a request takes nothing from the
	// prefix cache, for what is cached is not computed.
	PromptLogProbs bool
	// Constrained says that each sampled token needs a mask made from the tokens before it: the request waits for SetMask, and is
	// not planned one step ahead.
	Constrained bool
	// Guesses proposes drafts of what the request will say, and was made of Prompt. nil: it does not speculate. A request with penalties
	// or one that is Constrained cannot. A *[speculate.Head] needs a backend with a draft head.
	Guesses speculate.Guesser

	state    state
	arrival  uint64
	passed   int    // times that the policy let a later one go first
	deferred uint64 // step that it was not admitted to because the step computes its prefix

	tokens  []int32 // prompt and committed output
	pending int     // tokens sampled in planned steps that were not committed
	targets int     // prompt tokens whose log probability was delivered

	slot     int
	started  bool // the slot knows the sequence
	sampled  bool // the slot holds the sequence's last token
	inFlight int  // planned rows that were not committed
	pages    []int32
	shared   int // leading pages that are in the prefix tree
	tried    int // leading pages that were offered to it
	computed int // tokens whose keys and values planned steps have put into pages
	cached   int // of the prompt, found in the prefix cache at the first admission
	start    backend.Start
	drafts   []int32         // memory of a row's
	head     *speculate.Head // Guesses, if it is one

	mask      []uint32
	maskReady bool
	matchLen  int // for the policy
}

type state uint8

const (
	fresh state = iota
	waiting
	running
	preempted // on its way from running to waiting: planned rows must be committed first
	ended     // holds pages until its planned rows are committed
)

// Tokens is the prompt and the committed output. It must not be changed.
func (r *Request) Tokens() []int32 { return r.tokens }

// Output is the committed output.
func (r *Request) Output() []int32 { return r.tokens[len(r.Prompt):] }

// CachedTokens is the number of prompt tokens that the first admission found in the prefix cache.
func (r *Request) CachedTokens() int { return r.cached }

// numOutput counts sampled tokens, those not yet committed included.
func (r *Request) numOutput() int { return len(r.tokens) - len(r.Prompt) + r.pending }

func (r *Request) wantsToken() bool { return r.numOutput() < r.MaxNewTokens }

// remaining is the number of known tokens that are still to be put through the model.
func (r *Request) remaining() int { return len(r.tokens) - r.computed }

// finishAfter says whether token, the last of tokens, ended the request.
func (r *Request) finishAfter(token int32) Finish {
	n := len(r.Output())
	switch {
	case n > r.MinNewTokens && slices.Contains(r.StopTokens, token):
		return Stop
	case n >= r.MaxNewTokens:
		return Length
	}
	return Running
}

// HasPenalty tells that what is sampled depends on what was.
func (r *Request) HasPenalty() bool {
	p := &r.Sampling
	return p.RepetitionPenalty != 1 && p.RepetitionPenalty != 0 || p.PresencePenalty != 0 || p.FrequencyPenalty != 0
}
