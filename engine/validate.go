package engine

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// Bounds of a request. They keep one request's cost in proportion to its size.
const (
	maxStopStrings     = 16
	maxStopStringBytes = 512
	maxStopTokens      = 64
	maxLogitBias       = 1024
	maxTopLogProbs     = 20
)

// check returns the first thing wrong with r as a *RequestError.
func (e *Engine) check(r *Request) error {
	p := &r.Sampling
	bad := func(field, format string, args ...any) error {
		return &RequestError{field, fmt.Sprintf(format, args...)}
	}
	switch {
	case len(r.InputIDs) > 0 && r.Prompt != "":
		return bad("prompt", "is set beside input_ids: want one of them")
	case len(r.InputIDs) == 0 && r.Prompt == "":
		return bad("prompt", "is empty: want a text, or tokens in input_ids")
	case r.Prompt != "" && e.tokenizer == nil:
		return bad("prompt", "the engine runs without a tokenizer: want tokens in input_ids")
	case p.MaxNewTokens < 0:
		return bad("max_new_tokens", "%d: want at least 0", p.MaxNewTokens)
	case p.MinNewTokens < 0 || p.MinNewTokens > p.MaxNewTokens:
		return bad("min_new_tokens", "%d: want 0..max_new_tokens (%d)", p.MinNewTokens, p.MaxNewTokens)
	case len(p.Stop) > maxStopStrings:
		return bad("stop", "%d strings: want at most %d", len(p.Stop), maxStopStrings)
	case len(p.Stop) > 0 && e.tokenizer == nil:
		return bad("stop", "the engine runs without a tokenizer: want stop_token_ids")
	case len(p.StopTokenIDs) > maxStopTokens:
		return bad("stop_token_ids", "%d ids: want at most %d", len(p.StopTokenIDs), maxStopTokens)
	case len(p.LogitBias) > maxLogitBias:
		return bad("logit_bias", "%d tokens: want at most %d", len(p.LogitBias), maxLogitBias)
	case p.TopLogProbs < 0 || p.TopLogProbs > min(maxTopLogProbs, e.info.VocabSize):
		return bad("top_logprobs", "%d: want 0..%d", p.TopLogProbs, min(maxTopLogProbs, e.info.VocabSize))
	case p.TopK < 0:
		return bad("top_k", "%d: want at least 1, or 0 for all", p.TopK)
	case p.JSONSchema != "" && p.Regex != "":
		return bad("regex", "is set beside json_schema: want one of them")
	}
	for _, stop := range p.Stop {
		if stop == "" || len(stop) > maxStopStringBytes || !utf8.ValidString(stop) {
			return bad("stop", "%q: want 1 to %d bytes of UTF-8", clip(stop), maxStopStringBytes)
		}
	}
	for _, t := range p.StopTokenIDs {
		if t < 0 || int(t) >= e.info.VocabSize {
			return bad("stop_token_ids", "%d is outside the vocabulary: want 0..%d", t, e.info.VocabSize-1)
		}
	}
	for t, bias := range p.LogitBias {
		if t < 0 || int(t) >= e.info.VocabSize {
			return bad("logit_bias", "token %d is outside the vocabulary: want 0..%d", t, e.info.VocabSize-1)
		}
		if !within(bias, -100, 100) {
			return bad("logit_bias", "%v for token %d: want a number in -100..100", bias, t)
		}
	}
	for _, n := range []struct {
		field     string
		value     float32
		low, high float32
		want      string
	}{
		{"temperature", p.Temperature, 0, 100, "a number in 0..100"},
		{"top_p", p.TopP, math.SmallestNonzeroFloat32, 1, "a number above 0 and at most 1"},
		{"min_p", p.MinP, 0, 1, "a number in 0..1"},
		{"repetition_penalty", p.RepetitionPenalty, math.SmallestNonzeroFloat32, 100, "a number above 0 and at most 100"},
		{"presence_penalty", p.PresencePenalty, -2, 2, "a number in -2..2"},
		{"frequency_penalty", p.FrequencyPenalty, -2, 2, "a number in -2..2"},
	} {
		if !within(n.value, n.low, n.high) {
			return bad(n.field, "%v: want %s", n.value, n.want)
		}
	}
	return nil
}

// within is false for a NaN.
func within(v, low, high float32) bool { return v >= low && v <= high }

// clip keeps an error to one short line.
func clip(s string) string {
	const most = 40
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

// Validate returns the first option whose value cannot be used, as an *[OptionError]. What only the model or the device can
// tell is checked by [Open].
func (o *Options) Validate() error {
	for _, row := range o.Table() {
		if v, ok := row.Value.(*string); ok && len(row.Choices) > 0 && !slices.Contains(row.Choices, *v) {
			return &OptionError{row.Name, *v, "one of " + strings.Join(quoted(row.Choices), ", ")}
		}
	}
	for _, n := range []struct {
		name  string
		value int
		low   int
		want  string
	}{
		{"context-length", o.ContextLength, 0, "tokens, or 0 for the model's"},
		{"max-running-requests", o.MaxRunningRequests, 0, "requests, or 0 to let the backend choose"},
		{"max-queued-requests", o.MaxQueuedRequests, 1, "at least 1"},
		{"max-total-tokens", o.MaxTotalTokens, 0, "tokens, or 0 for what memory allows"},
		{"chunked-prefill-size", o.ChunkedPrefillSize, -1, "tokens, 0 to let the engine choose, or -1 to switch it off"},
		{"max-mixed-prefill-tokens", o.MaxMixedTokens, 0, "tokens, or 0 for no bound"},
		{"max-prefill-tokens", o.MaxPrefillTokens, 0, "tokens, or 0 to let the engine choose"},
		{"page-size", o.PageSize, 0, "tokens, or 0 for the backend's"},
		{"threads", o.Threads, 0, "threads, or 0 for one a processor"},
	} {
		if n.value < n.low {
			return &OptionError{n.name, fmt.Sprint(n.value), n.want}
		}
	}
	switch {
	case !(o.MemFractionStatic > 0 && o.MemFractionStatic <= 1):
		return &OptionError{"mem-fraction-static", fmt.Sprint(o.MemFractionStatic), "a number above 0 and at most 1"}
	case o.MaxPrefillTokens > 0 && o.MaxPrefillTokens < o.MaxRunningRequests:
		return &OptionError{"max-prefill-tokens", fmt.Sprint(o.MaxPrefillTokens),
			fmt.Sprintf("at least one token for each of --max-running-requests %d", o.MaxRunningRequests)}
	case o.MaxMixedTokens > 0 && o.ChunkedPrefillSize < 0:
		return &OptionError{"max-mixed-prefill-tokens", fmt.Sprint(o.MaxMixedTokens), "0 with --chunked-prefill-size -1, which cuts no prompt"}
	case o.SpeculativeNumTokens < 1 || o.SpeculativeNumTokens > backend.MaxRowDrafts:
		return &OptionError{"speculative-num-draft-tokens", fmt.Sprint(o.SpeculativeNumTokens), fmt.Sprintf("1 to %d", backend.MaxRowDrafts)}
	case o.SpeculativeNumSteps < 1 || o.SpeculativeNumSteps > backend.MaxRowDrafts:
		return &OptionError{"speculative-num-steps", fmt.Sprint(o.SpeculativeNumSteps), fmt.Sprintf("1 to %d", backend.MaxRowDrafts)}
	case o.SpeculativeEagleTopK != 1:
		return &OptionError{"speculative-eagle-topk", fmt.Sprint(o.SpeculativeEagleTopK), "1: trees of guesses are not supported"}
	case o.SpeculativeAlgorithm == eagle3 && o.SpeculativeDraftModel == "":
		return &OptionError{"speculative-draft-model-path", "", "the directory of an EAGLE-3 head, as --speculative-algorithm is EAGLE3"}
	case o.SpeculativeAlgorithm != eagle3 && o.SpeculativeDraftModel != "":
		return &OptionError{"speculative-draft-model-path", o.SpeculativeDraftModel, "nothing, or --speculative-algorithm EAGLE3"}
	case o.SpeculativeNgramMin < 1 || o.SpeculativeNgramMin > o.SpeculativeNgramMax:
		return &OptionError{"speculative-ngram-min-match-window-size", fmt.Sprint(o.SpeculativeNgramMin),
			fmt.Sprintf("at least 1, and at most --speculative-ngram-max-match-window-size (%d)", o.SpeculativeNgramMax)}
	}
	return nil
}

// quoted shows the empty choice.
func quoted(choices []string) []string {
	shown := make([]string, len(choices))
	for i, c := range choices {
		if shown[i] = c; c == "" {
			shown[i] = `""`
		}
	}
	return shown
}
