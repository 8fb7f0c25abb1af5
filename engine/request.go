package engine

import "time"

// Request is one generation. One of Prompt and InputIDs is set.
type Request struct {
	ID       string // made up if empty; must be unique among running requests
	Prompt   string
	InputIDs []int32
	Sampling Sampling
	// CacheSalt keeps prefix-cache pages apart from those of other salts.
	CacheSalt string
	// PromptLogProbs asks for the log probability of each prompt token given the ones before it.
	PromptLogProbs bool
}

// Sampling says how tokens are chosen and when a request ends. [DefaultSampling] is where to start from: the zero value asks
// for no tokens.
type Sampling struct {
	MaxNewTokens int // ends with FinishLength
	MinNewTokens int // no end-of-sequence or stop before this many

	Temperature       float32 // 0 is greedy
	TopK              int     // 0 keeps all
	TopP              float32 // 1 keeps all
	MinP              float32
	RepetitionPenalty float32 // 1 is off
	PresencePenalty   float32
	FrequencyPenalty  float32
	LogitBias         map[int32]float32
	Seed              *uint64 // nil: drawn from the engine's own

	Stop         []string // stop strings; the text ends before them
	StopTokenIDs []int32
	IgnoreEOS    bool
	// SkipSpecialTokens leaves special tokens out of Text.
	SkipSpecialTokens bool

	LogProbs    bool
	TopLogProbs int

	// At most one of these constrains the output. JSONSchema "{}" allows any JSON value.
	JSONSchema string
	Regex      string
}

// DefaultSampling returns greedy sampling of up to maxNewTokens tokens.
func DefaultSampling(maxNewTokens int) Sampling {
	return Sampling{MaxNewTokens: maxNewTokens, TopP: 1, RepetitionPenalty: 1, SkipSpecialTokens: true}
}

// FinishReason says why a request ended.
type FinishReason string

const (
	FinishLength FinishReason = "length" // MaxNewTokens or the context is used up
	FinishStop   FinishReason = "stop"   // end-of-sequence, stop string or stop id
	FinishAbort  FinishReason = "abort"  // cancelled, aborted, or the engine failed
)

// Event is one streamed step of a request.
type Event struct {
	Text     string         // new text, whole characters only; "" while a character is incomplete
	TokenIDs []int32        // new tokens, usually one
	LogProbs []TokenLogProb // one for each of TokenIDs if asked for
	At       time.Time      // when the step that sampled the tokens was seen to be done
	Done     *Output        // set on the last event, and only there: the whole output
}

// TokenLogProb is a token's log probability with the likeliest alternatives, most likely first.
type TokenLogProb struct {
	Token   int32
	LogProb float32
	Top     []TokenLogProb
}

// Output is a finished request.
type Output struct {
	ID             string
	Text           string
	TokenIDs       []int32
	LogProbs       []TokenLogProb // if asked for, one for each of TokenIDs
	PromptLogProbs []TokenLogProb // if asked for, one for each prompt token but the first
	Finish         FinishReason
	// Matched is the stop string or the stop token that ended it; "" and nil where none did.
	MatchedString string
	MatchedToken  *int32

	PromptTokens int
	CachedTokens int // prompt tokens taken from the prefix cache

	Arrived, Scheduled, FirstToken, Finished time.Time
}
