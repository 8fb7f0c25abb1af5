package load

import (
	"fmt"
	"time"
)

// Result is what became of one request: one turn of one sample. Times count from the start of the run.
type Result struct {
	Index int // of the sample
	Turn  int // 0 is the first

	Scheduled  time.Duration // when the request was to be sent; latencies count from here
	Granted    time.Duration // when a place under the concurrency limit was free; Scheduled without a limit
	Sent       time.Duration // when it was handed to the network
	FirstToken time.Duration // when the first chunk with a token came; meaningful if len(Chunks) > 0
	End        time.Duration // when the answer was complete, or the request failed

	Chunks []Chunk // of tokens, in order; a reply that is not streamed has none

	PromptTokens Count // as the server reports
	CachedTokens Count // prompt tokens that the server took from its prefix cache, if it says so
	OutputTokens Count
	// CountsEstimated tells that the server reports no running count of tokens: they were laid on the chunks afterwards.
	CountsEstimated bool

	WantPrompt int // prompt tokens sent, 0 if text was sent
	WantOutput int
	Finish     string // as the server gives it
	Text       string // if asked for, or needed by the next turn
	OutputIDs  []int32

	Failure *Failure // nil: the request did what was asked
}

// Count is a number that may not be known.
type Count struct {
	N     int
	Known bool
}

func known(n int) Count { return Count{n, true} }

// Chunk is a piece of a streamed answer.
type Chunk struct {
	At     time.Duration
	Tokens int
	bytes  int // of its text, to lay tokens on chunks whose count is not known
}

// Failure says why a request failed. Reason is one of a few words that failures are counted by.
type Failure struct{ Reason, Detail string }

func (f *Failure) Error() string { return f.Reason + ": " + f.Detail }

func failf(reason, format string, args ...any) *Failure {
	return &Failure{reason, fmt.Sprintf(format, args...)}
}

// Reasons of failures. An HTTP status becomes "http-<status>".
const (
	FailConnect   = "connect"       // no connection, or it broke
	FailTimeout   = "timeout"       // no complete answer in time
	FailCanceled  = "canceled"      // the run was stopped
	FailServer    = "server-error"  // the server sent an error within its answer
	FailProtocol  = "protocol"      // the answer is not in the form of this kind of server
	FailTruncated = "truncated"     // the stream ended before its end mark
	FailFinish    = "wrong-finish"  // it ended for another reason than the one asked for
	FailOutput    = "wrong-output"  // another number of tokens than asked for
	FailPrompt    = "wrong-prompt"  // the server counts other prompt tokens than were sent
	FailUnusable  = "cannot-be-put" // the sample cannot be put to this kind of server
)

// E2E is the whole latency, from schedule to end.
func (r *Result) E2E() time.Duration { return r.End - r.Scheduled }

// TTFT is the time to the first token, and whether there was a stream to take it from.
func (r *Result) TTFT() (time.Duration, bool) {
	return r.FirstToken - r.Scheduled, len(r.Chunks) > 0
}

// TPOT is the mean time per output token after the first chunk: from the first chunk to the last, over the tokens that came
// with the later ones. With one token a chunk it is the usual (last - first) / (tokens - 1).
func (r *Result) TPOT() (time.Duration, bool) {
	if len(r.Chunks) < 2 {
		return 0, false
	}
	first, last := r.Chunks[0], r.Chunks[len(r.Chunks)-1]
	later := r.streamed() - first.Tokens
	if later < 1 {
		return 0, false
	}
	return (last.At - first.At) / time.Duration(later), true
}

// Lag is the client's own delay: from the moment the request could be sent to the moment it was.
func (r *Result) Lag() time.Duration { return r.Sent - max(r.Scheduled, r.Granted) }

// Queued is the time the request waited for a place under the concurrency limit.
func (r *Result) Queued() time.Duration { return max(r.Granted-r.Scheduled, 0) }

func (r *Result) streamed() int {
	n := 0
	for _, c := range r.Chunks {
		n += c.Tokens
	}
	return n
}

// eachITL calls f with every inter-token latency: the gap before a chunk, shared evenly by its tokens. The tokens of the first
// chunk have none.
func (r *Result) eachITL(f func(time.Duration)) {
	for i := 1; i < len(r.Chunks); i++ {
		n := r.Chunks[i].Tokens
		gap := r.Chunks[i].At - r.Chunks[i-1].At
		for range n {
			f(gap / time.Duration(n))
		}
	}
}

// settle lays the reported number of tokens on the chunks if the server gave no running count.
func (r *Result) settle() {
	if !r.OutputTokens.Known {
		// The server never counts: its protocol's unit is the chunk.
		for i := range r.Chunks {
			r.Chunks[i].Tokens = 1
		}
		r.OutputTokens.N = len(r.Chunks)
		if len(r.Chunks) == 0 {
			r.OutputTokens.N = r.WantOutput
		}
		r.CountsEstimated = true
		return
	}
	if len(r.Chunks) == 0 || r.streamed() == r.OutputTokens.N {
		return
	}
	if r.OutputTokens.N == len(r.Chunks) {
		for i := range r.Chunks {
			r.Chunks[i].Tokens = 1
		}
		return
	}
	r.CountsEstimated = true
	total := 0
	for _, c := range r.Chunks {
		total += c.bytes
	}
	// Tokens go to chunks in proportion to their text, by cumulated rounding, so that the sum is right.
	seen, given := 0, 0
	for i := range r.Chunks {
		seen += r.Chunks[i].bytes
		upTo := r.OutputTokens.N * (i + 1) / len(r.Chunks)
		if total > 0 {
			upTo = int(int64(r.OutputTokens.N) * int64(seen) / int64(total))
		}
		r.Chunks[i].Tokens = upTo - given
		given = upTo
	}
}

// check compares what came with what was asked for.
func (r *Result) check(k *Kind, s *Sampling) *Failure {
	if r.PromptTokens.Known && k.exactPrompt && r.WantPrompt > 0 && r.PromptTokens.N != r.WantPrompt {
		return failf(FailPrompt, "server counts %d prompt tokens, %d were sent", r.PromptTokens.N, r.WantPrompt)
	}
	lengthOnly := s.IgnoreEOS && k.forcesLength
	switch {
	case r.Finish == "length", !lengthOnly && (r.Finish == "stop" || r.Finish == "eos"), r.Finish == "" && !k.saysFinish:
	default:
		return failf(FailFinish, "finish reason %q after %d of %d tokens", r.Finish, r.OutputTokens.N, r.WantOutput)
	}
	if !r.OutputTokens.Known {
		return nil
	}
	n := r.OutputTokens.N
	if (lengthOnly || r.Finish == "length") && n != r.WantOutput {
		return failf(FailOutput, "%d tokens, asked for %d", n, r.WantOutput)
	}
	if n < 1 || n > r.WantOutput {
		return failf(FailOutput, "%d tokens, asked for 1 to %d", n, r.WantOutput)
	}
	return nil
}
