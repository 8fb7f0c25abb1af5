package server

import (
	"math"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// messages answers Anthropic's Messages API: text in, text out.
func (c *call) messages() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	m := c.live.model
	s, stream := newSampling(0), false
	w := &work{id: "msg_" + c.s.newID()}
	c.checkModel(o)
	o.integer("max_tokens", &s.MaxNewTokens, 1, math.MaxInt32)
	if s.MaxNewTokens == 0 {
		o.fail("max_tokens", "missing_field", "want a number of tokens")
	}
	o.number("temperature", &s.Temperature, 0, 100)
	o.number("top_p", &s.TopP, 1e-6, 1)
	o.integer("top_k", &s.TopK, 0, math.MaxInt32)
	o.texts("stop_sequences", &s.Stop, maxStops, maxStopBytes)
	o.boolean("stream", &stream)
	var system string
	if raw, ok := o.take("system"); ok {
		if raw[0] == '[' {
			system = o.textParts("system", raw)
		} else {
			o.textOf("system", raw, &system, len(raw))
		}
	}
	conversation := o.chatMessages()
	o.refuse("only text is served here", "tools", "mcp_servers", "container")
	o.ignore("metadata", "service_tier", "thinking", "tool_choice", "context_management")
	o.strict()
	if o.err != nil {
		return o.err
	}
	if system != "" {
		conversation = append([]tokenizer.Message{{Role: "system", Content: system}}, conversation...)
	}
	ids, err := m.encodeChat(conversation, tokenizer.ChatOptions{AddGenerationPrompt: true})
	if err != nil {
		return err
	}
	w.add(engine.Request{InputIDs: ids, Sampling: s}, 1)
	enc := &messagesEncoder{c: c, w: w}
	if stream {
		return c.stream(w, enc)
	}
	outputs, err := c.collect(w)
	if err != nil {
		return err
	}
	c.tokens = len(outputs[0].TokenIDs)
	return c.answer(append(enc.message(nil, outputs[0]), '\n'))
}

// messagesEncoder writes Anthropic's messages and their events.
type messagesEncoder struct {
	c         *call
	w         *work
	begun     bool
	completed int
	done      *engine.Output
}

func (e *messagesEncoder) contentType() string { return eventStream }

// message adds the message object: finished, or empty at the beginning of a stream if out is nil.
func (e *messagesEncoder) message(buf []byte, out *engine.Output) []byte {
	buf = append(buf, `{"id":`...)
	buf = appendString(buf, e.w.id)
	buf = append(buf, `,"type":"message","role":"assistant","model":`...)
	buf = appendString(buf, e.c.live.model.name)
	buf = append(buf, `,"content":[`...)
	if out != nil {
		buf = append(buf, `{"type":"text","text":`...)
		buf = appendString(buf, out.Text)
		buf = append(buf, '}')
	}
	buf = append(buf, `],`...)
	buf = appendStopReason(buf, out)
	buf = append(buf, `,"usage":{"input_tokens":`...)
	buf = appendInt(buf, len(e.w.requests[0].InputIDs))
	buf = append(buf, `,"output_tokens":`...)
	if out != nil {
		buf = appendInt(buf, len(out.TokenIDs))
		buf = append(buf, `,"cache_read_input_tokens":`...)
		buf = appendInt(buf, out.CachedTokens)
		return append(buf, "}}"...)
	}
	return append(buf, "0}}"...)
}

func appendStopReason(buf []byte, out *engine.Output) []byte {
	reason := "null"
	switch {
	case out == nil:
	case out.Finish == engine.FinishLength:
		reason = `"max_tokens"`
	case out.MatchedString != "":
		buf = append(buf, `"stop_reason":"stop_sequence","stop_sequence":`...)
		return appendString(buf, out.MatchedString)
	default:
		reason = `"end_turn"`
	}
	buf = append(buf, `"stop_reason":`...)
	buf = append(buf, reason...)
	return append(buf, `,"stop_sequence":null`...)
}

func (e *messagesEncoder) event(buf []byte, _ int, ev *engine.Event) []byte {
	if !e.begun {
		e.begun = true
		buf = append(buf, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":"...)
		buf = e.message(buf, nil)
		buf = append(buf, "}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n"...)
	}
	e.completed += len(ev.TokenIDs)
	e.done = ev.Done
	buf = append(buf, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":"...)
	buf = appendString(buf, ev.Text)
	return append(buf, "}}\n\n"...)
}

func (e *messagesEncoder) finish(buf []byte) []byte {
	buf = append(buf, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":0}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{"...)
	buf = appendStopReason(buf, e.done)
	buf = append(buf, `},"usage":{"output_tokens":`...)
	buf = appendInt(buf, e.completed)
	return append(buf, "}}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"...)
}

func (e *messagesEncoder) fail(buf []byte, err *apiError) []byte {
	buf = append(buf, "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":"...)
	buf = appendString(buf, err.kind)
	buf = append(buf, `,"message":`...)
	buf = appendString(buf, err.message)
	return append(buf, "}}\n\n"...)
}
