// Package backend is the contract between the engine's loop and a device: model-level steps, launched and awaited apart.
//
// A step is a [Batch] of rows. A row is one sequence's part of the step: a chunk of its prompt (prefill) or one token that
// the device sampled itself in the step before (decode). The next token ids never have to visit the host between two steps,
// so step N+1 can be launched before step N was awaited.
//
// The contract holds no tensors on purpose: fused attention, kernel layouts and sampling on the device would leak through
// an op-level interface, and the logits of 256 rows over 128,256 tokens are 131 MB a step where their ids are 1 KB.
package backend

import (
	"errors"
	"time"
)

// Backend runs a model's steps. All methods are called by one goroutine; a backend owns its threads itself.
type Backend interface {
	// Info describes the opened backend; it does not change.
	Info() Info
	// Launch enqueues one step, forward pass and sampling, and does not wait for it. It has copied what it needs of b when
	// it returns. A batch that is refused (see [Checker]) has no effect. Steps run and finish in the order of their launch. At most [MaxInFlight] steps may be awaiting.
	Launch(b *Batch) (StepID, error)
	// Wait blocks until step id has finished and fills out, reusing its slices. Steps are awaited in launch order.
	// An error is final for the backend: every later call returns it again.
	Wait(id StepID, out *Result) error
	// Close waits for launched steps and frees the device. It may be called twice.
	Close() error
}

// MaxInFlight is the number of launched steps that may not have been awaited yet: the one running and the one behind it.
const MaxInFlight = 2

// MaxRowDrafts is the most draft tokens of one row: with the row's own token they fill the 16 columns of a matrix unit's tile, and
// cost about as much as one.
const MaxRowDrafts = 15

// StepID names a launched step; ids ascend by one.
type StepID uint64

var (
	// ErrClosed is returned by every call after Close.
	ErrClosed = errors.New("backend is closed")
	// ErrTooManySteps is returned by Launch when MaxInFlight steps await.
	ErrTooManySteps = errors.New("too many steps in flight: await one first")
)

// Info describes an opened backend. Bytes are bytes, not KiB.
type Info struct {
	Name       string // "cpu" or "cuda"
	Device     string // for a person: processor or card name
	DType      string // of weights as computed with: "float32", "bfloat16", ...
	VocabSize  int    // ids are 0..VocabSize-1
	MaxContext int    // tokens of one sequence, prompt and output together
	MaxRows    int    // slots, and the most rows of one step
	MaxTokens  int    // the most tokens of one step, all rows together
	PageSize   int    // tokens of a KV page
	NumPages   int    // KV pages; ids are 0..NumPages-1
	MaxVerify  int    // the most rows and draft tokens together of a step that has drafts; 0: rows carry none
	DraftHead  bool   // a draft head guesses what follows a row: rows may have Follow and Guess

	WeightBytes     int64 // read once by every decode step, whatever its rows
	KVBytesPerToken int64 // of all layers, K and V
	// ReadBandwidth is the device's read-only memory bandwidth in bytes a second as measured at start; nil where it was not.
	ReadBandwidth *float64
	// BF16FLOPs and FP8FLOPs are what the device's matrix units did in a second at start, of bfloat16 and of e4m3, a multiplication and
	// an addition counting two; nil where it was not measured.
	BF16FLOPs, FP8FLOPs *float64

	// Of a mixture: how many experts a layer has, how many each token takes, and the bytes of one expert's weights in all layers. They
	// are not among WeightBytes: see [Info.StepWeightBytes].
	Experts, ExpertsPerToken int
	ExpertBytes              int64
}

// Batch is one step. Rows is in no particular order; a slot appears at most once.
type Batch struct {
	Rows []Row
}

// Row is one sequence's part of a step.
type Row struct {
	// Slot names the sequence's state on the device (last token, sampler state), 0..MaxRows-1.
	Slot int
	// Start is set on a sequence's first row in its slot, and after it lost the slot: it (re)initialises the slot's state.
	Start *Start
	// Tokens is the chunk of the sequence to prefill, [n]. Empty: a decode row of one token, the one sampled last in Slot, which
	// must have one.
	Tokens []int32
	// Drafts are guesses at the tokens that follow the one in Slot, [k], k <= MaxRowDrafts: a decode row alone may have them. The step
	// puts the slot's token and the drafts through the model, 1+k tokens at Position..Position+k, and samples after each, exactly as
	// decode rows would one by one. Guesses that agree are accepted: draft i if it is the token sampled before it and all drafts before
	// it were. So the step gives 1 to 1+k tokens, those it would have given without drafts, in more than one step: see
	// [RowResult.More]. With a accepted, a+1 of the tokens put through the model are the sequence's, and the slot's next row has
	// Position a+1 further; what the cache holds behind that is overwritten. Only the host can tell a, so that the slot may be in no
	// further step before this one was awaited. What follows from the output so far would have to be worked out token by token: a
	// row with drafts has no Mask and no penalties; nor has it Logits.
	Drafts []int32
	// Follow has the draft head read the row's tokens, each with the model's hidden state of the one before it; and the token that the row
	// samples. A sequence is followed from its Start on, at the beginning of a page, or not at all; its first row without Follow ends it.
	Follow bool
	// Guess asks the head, of a row that it follows and that samples, for up to so many guesses at what comes next: [RowResult.Guesses].
	// The head keeps what it makes of them in the pages, behind the row's tokens: Pages and the context have room for Guess-1 more.
	Guess int
	// Position is the number of the sequence's tokens that the KV cache holds already; the row's first token goes there.
	Position int
	// Pages is the sequence's page table, page i holding positions i*PageSize..; it covers Position+Reach() tokens. Between
	// two rows of a slot without Start it only grows at its end.
	Pages []int32
	// Sample asks for a token after the row's last position: true for decode rows and a prompt's last chunk.
	Sample bool
	// Mask allows token t if bit t%32 of word t/32 is set, [(VocabSize+31)/32]; nil allows all.
	Mask []uint32
	// Targets asks for the log probability of Targets[i] after the chunk's token i, [len(Tokens)] or nil. It is computed from
	// the model's plain distribution (no temperature, penalty or mask). For prompt log probabilities and perplexity.
	Targets []int32
	// Logits asks for the row's last logits as the model made them, before any penalty or mask. For tests: it copies the
	// whole vocabulary to the host.
	Logits bool
}

// NumTokens is the number of tokens the row puts through the model.
func (r *Row) NumTokens() int { return max(1+len(r.Drafts), len(r.Tokens)) }

// Reach is the number of positions, from the row's own on, that the step may write to: of its tokens and of the draft head's guesses.
func (r *Row) Reach() int { return r.NumTokens() + max(0, r.Guess-1) }

// Start is what a slot must know of a sequence before its first row.
type Start struct {
	Sampling Sampling
	// Prompt and Output are the sequence's tokens so far, [n] each: cached prefix included, so that penalties count them.
	// Output is not empty only for a sequence that resumes after preemption. Both may be nil if no penalty is set.
	Prompt, Output []int32
}

// Sampling says how a sequence's tokens are chosen. The order is: logits, + bias, penalties, mask, temperature, then top-k,
// top-p and min-p on the tempered distribution, then a draw. A draw is a function of (Seed, position) alone: it does not
// depend on the batch, on chunks or on preemption. The zero Sampling is greedy with every option off: a TopP or RepetitionPenalty of 0 is off, too.
type Sampling struct {
	Temperature       float32 // 0 is greedy: the most likely token, the lowest id on a tie
	TopK              int     // keep the k most likely; 0 keeps all
	TopP              float32 // keep the smallest set of at least this probability; 1 keeps all
	MinP              float32 // drop tokens less likely than MinP times the likeliest; 0 drops none
	RepetitionPenalty float32 // divides positive, multiplies negative logits of prompt and output tokens; 1 is off
	PresencePenalty   float32 // subtracted once from tokens in the output
	FrequencyPenalty  float32 // subtracted per occurrence in the output
	Bias              []TokenBias
	Seed              uint64
	// LogProbs asks for the chosen token's log probability under the model's plain distribution, TopLogProbs for the likeliest
	// tokens beside it.
	LogProbs    bool
	TopLogProbs int
}

// TokenBias is added to one token's logit.
type TokenBias struct {
	Token int32
	Bias  float32
}

// Result is what a step gave: one entry for each row of its batch, in the batch's order.
type Result struct {
	Rows []RowResult
	// HeadTime is how much of the step's time the draft head took.
	HeadTime time.Duration
}

// RowResult is one row's outcome. Its slices are valid until the Result is filled again.
type RowResult struct {
	Token          int32 // the sampled token; meaningful if the row had Sample
	LogProb        float32
	Top            []TokenLogProb // [TopLogProbs], most likely first
	More           []Sampled      // [accepted drafts] the tokens after Token, one for each draft that was accepted
	TargetLogProbs []float32      // [len(Targets)]
	Guesses        []Guess        // [at most Row.Guess] at the tokens that follow the last one sampled
	Logits         []float32      // [VocabSize]
	// NonFinite tells that the row's logits held a NaN or an infinity; Token is then meaningless.
	NonFinite bool
}

// Sampled is a token of a row beyond its first.
type Sampled struct {
	Token   int32
	LogProb float32
	Top     []TokenLogProb
}

// Guess is a token that a draft head expects, and how sure it is: the probability it gives it, after all guesses before it.
type Guess struct {
	Token int32
	Prob  float32
}

// Accepted is the number of drafts that agree with what was sampled; sampled(i) is the token after i drafts. It is asked for i in
// ascending order, and for none behind the first that disagrees.
func Accepted(drafts []int32, sampled func(i int) int32) int {
	for i, d := range drafts {
		if sampled(i) != d {
			return i
		}
	}
	return len(drafts)
}

// TokenLogProb is a token and its natural-log probability.
type TokenLogProb struct {
	Token   int32
	LogProb float32
}

// Options is what every backend is opened with. Zero fields take the backend's own default.
type Options struct {
	MaxRows    int // slots, rows of a step
	MaxTokens  int // tokens of a step
	MaxContext int // tokens of a sequence; at most what the model allows
	PageSize   int // tokens of a page
	NumPages   int // 0: as many as MemFraction leaves room for
	MaxVerify  int // rows and draft tokens together of a step that has drafts; 0: rows carry none
	// MixedTokens is the most prompt tokens of a step with decode rows, where no long queue waits: such steps come again and again, and the
	// CUDA backend makes graphs of them. 0: there is no bound.
	MixedTokens int
	// MemFraction is the part of the device's memory for weights and KV pages together, 0..1.
	MemFraction float64
	// KVDType is the KV cache's element type: "auto", "float32", "bfloat16" or "fp8_e4m3".
	KVDType string
	// DType is the type weights are computed with: "auto", "float32", "float16" or "bfloat16".
	DType string
	// Quantization is applied to the weights at load: "", "fp8", or "int4", which keeps weights of four bits as they are stored where the
	// backend would widen them.
	Quantization  string
	Threads       int  // CPU backend: worker threads; 0: one a processor
	DisableGraph  bool // CUDA backend: launch kernels one by one instead of replaying a graph
	Deterministic bool // results do not depend on a row's batch mates, bit for bit
	// SimulateUniformExperts chooses a mixture's experts by [UniformExpert] instead of by the router, whose weights stay: for speed with
	// dummy weights, whose routers are uneven. What the model says means nothing then.
	SimulateUniformExperts bool
	// Progress is told of long work at start: done of total in unit ("GiB", "kernels"). It may be nil.
	Progress func(phase string, done, total float64, unit string)
}
