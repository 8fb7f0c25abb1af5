package server

import (
	"github.com/tokamak-engine/tokamak/engine"
)

// chatEncoder writes answers of /v1/chat/completions. A stream has one chunk for each step of a choice: the role stands in the
// first and the finish reason in the last, so that a client which times chunks times tokens.
type chatEncoder struct {
	c      *call
	q      *openAIRequest
	total  usage
	states []chatState
}

type chatState struct {
	begun     bool
	completed int
}

func newChatEncoder(c *call, q *openAIRequest) *chatEncoder {
	return &chatEncoder{c: c, q: q, total: promptUsage(q.work), states: make([]chatState, len(q.work.requests))}
}

func (e *chatEncoder) contentType() string { return eventStream }

func (e *chatEncoder) head(buf []byte, object string) []byte {
	buf = append(buf, `{"id":`...)
	buf = appendString(buf, e.q.work.id)
	buf = append(buf, `,"object":"`...)
	buf = append(buf, object...)
	buf = append(buf, `","created":`...)
	buf = appendInt(buf, e.q.created)
	buf = append(buf, `,"model":`...)
	buf = appendString(buf, e.q.model)
	return append(buf, `,"choices":[`...)
}

const chatChunk = "chat.completion.chunk"

func (e *chatEncoder) event(buf []byte, index int, ev *engine.Event) []byte {
	st := &e.states[index]
	e.total.completion += len(ev.TokenIDs)
	st.completed += len(ev.TokenIDs)
	buf = e.head(append(buf, "data: "...), chatChunk)
	buf = append(buf, `{"index":`...)
	buf = appendInt(buf, index)
	buf = append(buf, `,"delta":{`...)
	if !st.begun {
		buf = append(buf, `"role":"assistant",`...)
	}
	buf = append(buf, `"content":`...)
	buf = appendString(buf, ev.Text)
	buf = append(buf, `},"logprobs":`...)
	buf = e.appendLogProbs(buf, ev.LogProbs)
	buf = appendFinishReason(buf, ev.Done)
	if e.q.tokenIDs {
		buf = e.appendIDs(buf, index, ev.TokenIDs, !st.begun)
	}
	st.begun = true
	buf = append(buf, "}]"...)
	if ev.Done != nil {
		e.total.add(ev.Done, isFirstChoice(index, e.q.work.n))
	}
	switch {
	case e.q.eachOwn:
		buf = append(buf, `,"usage":`...)
		buf = usage{prompt: len(e.q.work.requests[index].InputIDs), completion: st.completed}.append(buf)
	case e.q.usage:
		buf = append(buf, `,"usage":null`...)
	}
	return append(buf, "}\n\n"...)
}

func (e *chatEncoder) appendIDs(buf []byte, index int, ids []int32, first bool) []byte {
	if first {
		return appendTokenIDs(buf, ids, e.q.work.requests[index].InputIDs)
	}
	return appendTokenIDs(buf, ids, nil)
}

func (e *chatEncoder) finish(buf []byte) []byte {
	if e.q.usage {
		buf = e.head(append(buf, "data: "...), chatChunk)
		buf = append(buf, `],"usage":`...)
		buf = e.total.append(buf)
		buf = append(buf, "}\n\n"...)
	}
	return appendDone(buf)
}

func (e *chatEncoder) fail(buf []byte, err *apiError) []byte { return appendError(buf, err) }

// whole is the answer to a request that did not ask for a stream.
func (e *chatEncoder) whole(outputs []*engine.Output) []byte {
	buf := e.head(nil, "chat.completion")
	for i, out := range outputs {
		if i > 0 {
			buf = append(buf, ',')
		}
		e.total.completion += len(out.TokenIDs)
		e.c.tokens += len(out.TokenIDs)
		e.total.add(out, i == 0)
		buf = append(buf, `{"index":`...)
		buf = appendInt(buf, i)
		buf = append(buf, `,"message":{"role":"assistant","content":`...)
		buf = appendString(buf, out.Text)
		buf = append(buf, `,"refusal":null},"logprobs":`...)
		buf = e.appendLogProbs(buf, out.LogProbs)
		buf = appendFinishReason(buf, out)
		if e.q.tokenIDs {
			buf = e.appendIDs(buf, i, out.TokenIDs, true)
		}
		buf = append(buf, '}')
	}
	buf = append(buf, `],"usage":`...)
	buf = e.total.append(buf)
	return append(buf, "}\n"...)
}

func (e *chatEncoder) appendLogProbs(buf []byte, list []engine.TokenLogProb) []byte {
	if !e.q.logProbs {
		return append(buf, "null"...)
	}
	buf = append(buf, `{"content":[`...)
	for i := range list {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = e.appendToken(buf, &list[i])
		buf = append(buf, `,"top_logprobs":[`...)
		for k := range list[i].Top {
			if k > 0 {
				buf = append(buf, ',')
			}
			buf = append(e.appendToken(buf, &list[i].Top[k]), '}')
		}
		buf = append(buf, "]}"...)
	}
	return append(buf, `],"refusal":null}`...)
}

// appendToken adds a token with its bytes, for characters that span tokens, and leaves the object open.
func (e *chatEncoder) appendToken(buf []byte, t *engine.TokenLogProb) []byte {
	m := e.c.live.model
	buf = append(buf, `{"token":`...)
	buf = appendString(buf, m.label(t.Token))
	buf = append(buf, `,"logprob":`...)
	buf = appendLogProb(buf, t.LogProb)
	buf = append(buf, `,"bytes":`...)
	if m.codec == nil {
		return append(buf, "null"...)
	}
	buf = append(buf, '[')
	for i, b := range m.codec.TokenBytes(t.Token) {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = appendInt(buf, int(b))
	}
	return append(buf, ']')
}
