package engine

import (
	"strings"
	"time"

	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// assembler makes events and the output from a request's tokens, in its reader's goroutine: text, and the stop strings in it.
type assembler struct {
	out      *Output
	request  *Request
	prompt   []int32
	decoder  *tokenizer.Decoder // nil without a tokenizer
	text     strings.Builder    // what was given out
	held     string             // text that may be the beginning of a stop string
	minToken int                // stop strings count after this many tokens
}

func newAssembler(e *Engine, r *Request, s *stream) *assembler {
	a := &assembler{
		request: r, prompt: s.req.Prompt, minToken: r.Sampling.MinNewTokens,
		out: &Output{ID: s.id, PromptTokens: len(s.req.Prompt), Arrived: s.arrived},
	}
	if e.tokenizer != nil {
		a.decoder = e.tokenizer.NewDecoder(r.Sampling.SkipSpecialTokens)
	}
	return a
}

// note takes over what f tells of the request as a whole.
func (a *assembler) note(f *feed) {
	a.out.Scheduled, a.out.CachedTokens = f.scheduled, f.cached
	for _, p := range f.promptLogProbs {
		token := a.prompt[len(a.out.PromptLogProbs)+1]
		a.out.PromptLogProbs = append(a.out.PromptLogProbs, TokenLogProb{Token: token, LogProb: p})
	}
}

// add takes f's token i and returns its event, and whether it completed a stop string. The text of a token that stops the
// request is left out.
func (a *assembler) add(f *feed, i int, stops bool) (Event, bool) {
	token, at := f.tokens[i], f.at[i]
	out := a.out
	if len(out.TokenIDs) == 0 {
		out.FirstToken = at
	}
	n := len(out.TokenIDs)
	out.TokenIDs = append(out.TokenIDs, token)
	// The caller may keep the slices: nobody writes below their capacity again.
	ev := Event{TokenIDs: out.TokenIDs[n : n+1 : n+1], At: at}
	if len(f.logProbs) > 0 {
		out.LogProbs = append(out.LogProbs, f.logProbs[i])
		ev.LogProbs = out.LogProbs[n : n+1 : n+1]
	}
	if stops {
		out.MatchedToken = &out.TokenIDs[n]
		return ev, false
	}
	if a.decoder == nil {
		return ev, false
	}
	text, matched := a.scan(a.decoder.Add(token))
	ev.Text = text
	return ev, matched
}

// scan adds text to what is held and returns the part that no stop string can reach any more, or what precedes a stop string
// and true.
func (a *assembler) scan(text string) (string, bool) {
	stops := a.request.Sampling.Stop
	a.held += text
	if len(a.out.TokenIDs) <= a.minToken {
		return a.release(len(a.held)), false
	}
	first := -1
	for _, stop := range stops {
		if i := strings.Index(a.held, stop); i >= 0 && (first < 0 || i < first) {
			first, a.out.MatchedString = i, stop
		}
	}
	if first >= 0 {
		text := a.release(first)
		a.held = ""
		return text, true
	}
	return a.release(len(a.held) - beginning(a.held, stops)), false
}

// release gives out the first n bytes of what is held.
func (a *assembler) release(n int) string {
	text := a.held[:n]
	a.held = a.held[n:]
	a.text.WriteString(text)
	return text
}

// beginning is the length of the longest end of text that a stop string begins with.
func beginning(text string, stops []string) int {
	longest := 0
	for _, stop := range stops {
		for n := min(len(stop)-1, len(text)); n > longest; n-- {
			if strings.HasSuffix(text, stop[:n]) {
				longest = n
				break
			}
		}
	}
	return longest
}

// flush returns the text that was held back, once no token follows.
func (a *assembler) flush() string {
	if a.decoder == nil {
		return ""
	}
	text, matched := a.scan(a.decoder.Flush())
	if matched {
		return text
	}
	return text + a.release(len(a.held))
}

func (a *assembler) finish(reason FinishReason, at time.Time) *Output {
	out := a.out
	if out.MatchedString != "" && reason != FinishAbort {
		reason = FinishStop
	}
	out.Finish, out.Finished, out.Text = reason, at, a.text.String()
	return out
}
