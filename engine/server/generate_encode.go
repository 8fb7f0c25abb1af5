package server

import (
	"github.com/tokamak-engine/tokamak/engine"
)

// generateEncoder writes the native API's answers. In a cumulative stream every event repeats all text and ids so far, as
// SGLang's clients expect; they are kept in their encoded form, so that an event costs a copy and no second encoding.
type generateEncoder struct {
	c      *call
	q      *generateRequest
	states []generateState
}

type generateState struct {
	text      []byte // escaped
	ids       []byte
	logProbs  []byte
	top       []byte
	completed int
}

func newGenerateEncoder(c *call, q *generateRequest) *generateEncoder {
	return &generateEncoder{c: c, q: q, states: make([]generateState, len(q.work.requests))}
}

func (e *generateEncoder) contentType() string { return eventStream }

func (e *generateEncoder) event(buf []byte, index int, ev *engine.Event) []byte {
	st := &e.states[index]
	if e.q.delta {
		st.text, st.ids, st.logProbs, st.top = st.text[:0], st.ids[:0], st.logProbs[:0], st.top[:0]
	}
	st.text = appendEscaped(st.text, ev.Text)
	st.ids = appendMoreIDs(st.ids, ev.TokenIDs)
	st.completed += len(ev.TokenIDs)
	e.addLogProbs(st, ev.LogProbs)
	buf = append(buf, "data: "...)
	buf = e.object(buf, index, st, ev.Done)
	return append(buf, "\n\n"...)
}

func (e *generateEncoder) finish(buf []byte) []byte { return appendDone(buf) }

func (e *generateEncoder) fail(buf []byte, err *apiError) []byte { return appendError(buf, err) }

// whole adds a finished generation that was not streamed.
func (e *generateEncoder) whole(buf []byte, index int, out *engine.Output) []byte {
	st := &e.states[index]
	st.text = appendEscaped(st.text, out.Text)
	st.ids = appendMoreIDs(st.ids, out.TokenIDs)
	st.completed = len(out.TokenIDs)
	e.addLogProbs(st, out.LogProbs)
	return e.object(buf, index, st, out)
}

func appendMoreIDs(buf []byte, ids []int32) []byte {
	if len(buf) > 0 && len(ids) > 0 {
		buf = append(buf, ',')
	}
	return appendIDs(buf, ids)
}

func (e *generateEncoder) addLogProbs(st *generateState, list []engine.TokenLogProb) {
	for i := range list {
		st.logProbs = e.appendTriple(sep(st.logProbs), &list[i])
		if e.q.topLogProbs > 0 {
			st.top = append(sep(st.top), '[')
			for k := range list[i].Top {
				if k > 0 {
					st.top = append(st.top, ',')
				}
				st.top = e.appendTriple(st.top, &list[i].Top[k])
			}
			st.top = append(st.top, ']')
		}
	}
}

func sep(buf []byte) []byte {
	if len(buf) > 0 {
		buf = append(buf, ',')
	}
	return buf
}

// appendTriple adds [logprob, id, text]; text is null unless it was asked for.
func (e *generateEncoder) appendTriple(buf []byte, t *engine.TokenLogProb) []byte {
	buf = append(buf, '[')
	buf = appendLogProb(buf, t.LogProb)
	return e.appendToken(buf, t.Token)
}

func (e *generateEncoder) appendToken(buf []byte, id int32) []byte {
	buf = append(buf, ',')
	buf = appendInt(buf, id)
	if e.q.textInLogProbs {
		buf = append(buf, ',')
		buf = appendString(buf, e.c.live.model.tokenText(id))
		return append(buf, ']')
	}
	return append(buf, ",null]"...)
}

// object adds one generation: what its state holds, and how it ended if done is set.
func (e *generateEncoder) object(buf []byte, index int, st *generateState, done *engine.Output) []byte {
	request := &e.q.work.requests[index]
	buf = append(buf, `{"text":"`...)
	buf = append(buf, st.text...)
	buf = append(buf, `","output_ids":[`...)
	buf = append(buf, st.ids...)
	buf = append(buf, `],"meta_info":{"id":`...)
	buf = appendString(buf, request.ID)
	buf = append(buf, `,"finish_reason":`...)
	buf = appendFinish(buf, done)
	buf = append(buf, `,"prompt_tokens":`...)
	buf = appendInt(buf, len(request.InputIDs))
	buf = append(buf, `,"completion_tokens":`...)
	buf = appendInt(buf, st.completed)
	if done != nil { // not known before
		buf = append(buf, `,"cached_tokens":`...)
		buf = appendInt(buf, done.CachedTokens)
		buf = append(buf, `,"e2e_latency":`...)
		buf = appendSeconds(buf, done.Finished.Sub(e.c.start).Seconds())
		buf = append(buf, `,"queue_time":`...)
		buf = appendSeconds(buf, done.Scheduled.Sub(done.Arrived).Seconds())
		if request.PromptLogProbs {
			buf = e.appendPromptLogProbs(buf, request.InputIDs, done.PromptLogProbs)
		}
	}
	if e.q.logProbs {
		buf = append(buf, `,"output_token_logprobs":[`...)
		buf = append(buf, st.logProbs...)
		buf = append(buf, ']')
		if e.q.topLogProbs > 0 {
			buf = append(buf, `,"output_top_logprobs":[`...)
			buf = append(buf, st.top...)
			buf = append(buf, ']')
		}
	}
	buf = append(buf, '}')
	if e.q.batch {
		buf = append(buf, `,"index":`...)
		buf = appendInt(buf, index)
	}
	return append(buf, '}')
}

// appendPromptLogProbs adds the prompt's tokens from logprob_start_len on. The first token of a prompt follows nothing, so it
// has no probability.
func (e *generateEncoder) appendPromptLogProbs(buf []byte, ids []int32, list []engine.TokenLogProb) []byte {
	buf = append(buf, `,"input_token_logprobs":[`...)
	for i := e.q.promptLogProbs; i < len(ids) && i <= len(list); i++ {
		if i > e.q.promptLogProbs {
			buf = append(buf, ',')
		}
		if i == 0 {
			buf = e.appendToken(append(buf, "[null"...), ids[0])
			continue
		}
		buf = e.appendTriple(buf, &list[i-1])
	}
	return append(buf, ']')
}

// appendFinish adds SGLang's finish_reason.
func appendFinish(buf []byte, out *engine.Output) []byte {
	switch {
	case out == nil:
		return append(buf, "null"...)
	case out.Finish == engine.FinishLength:
		buf = append(buf, `{"type":"length","length":`...)
		buf = appendInt(buf, len(out.TokenIDs))
		return append(buf, '}')
	case out.Finish == engine.FinishAbort:
		return append(buf, `{"type":"abort","message":"Aborted"}`...)
	}
	buf = append(buf, `{"type":"stop","matched":`...)
	return append(appendMatched(buf, out), '}')
}

// appendMatched adds the stop string or stop token that ended a generation.
func appendMatched(buf []byte, out *engine.Output) []byte {
	switch {
	case out.MatchedString != "":
		return appendString(buf, out.MatchedString)
	case out.MatchedToken != nil:
		return appendInt(buf, *out.MatchedToken)
	}
	return append(buf, "null"...)
}
