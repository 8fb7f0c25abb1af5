package server

import (
	"encoding/json"
	"errors"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

func (c *call) chatCompletions() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	q, err := c.decodeChat(o)
	if err != nil {
		return err
	}
	enc := newChatEncoder(c, q)
	if q.stream {
		return c.stream(q.work, enc)
	}
	outputs, err := c.collect(q.work)
	if err != nil {
		return err
	}
	return c.answer(enc.whole(outputs))
}

func (c *call) decodeChat(o *object) (*openAIRequest, error) {
	m := c.live.model
	q, s, n := c.openAICommon(o, 0)
	conversation := o.chatMessages()
	var options tokenizer.ChatOptions
	o.chatOptions(&options)
	o.boolean("logprobs", &q.logProbs)
	o.integer("top_logprobs", &q.top, 0, maxTopLogProbs)
	if q.top > 0 && !q.logProbs {
		o.fail("top_logprobs", "invalid_value", "needs logprobs: true")
	}
	salt := o.cacheSalt()
	o.refuse("only text is served here", "audio", "functions", "function_call", "web_search_options", "prediction")
	o.ignore("modalities", "separate_reasoning", "stream_reasoning", "include_reasoning")
	lenientOpenAI(o)
	if o.err != nil {
		return nil, o.err
	}
	ids, err := m.encodeChat(conversation, options)
	if err != nil {
		return nil, err
	}
	if s.MaxNewTokens == 0 {
		s.MaxNewTokens = m.room(len(ids))
	}
	if q.work.id == "" {
		q.work.id = "chatcmpl-" + c.s.newID()
	}
	s.LogProbs, s.TopLogProbs = q.logProbs, q.top
	q.work.add(engine.Request{InputIDs: ids, Sampling: s, CacheSalt: salt}, n)
	return q, nil
}

// encodeChat renders a conversation with the model's template and makes token ids of it. The template writes special tokens
// itself, so the tokenizer adds none.
func (m *modelInfo) encodeChat(conversation []tokenizer.Message, options tokenizer.ChatOptions) ([]int32, error) {
	if m.codec == nil {
		return nil, badRequest("messages", "unsupported_parameter", "messages: the server runs without a tokenizer: send token ids to /generate or /v1/completions")
	}
	text, err := m.codec.ApplyChatTemplate(conversation, options)
	if err != nil {
		var template *tokenizer.TemplateError
		if errors.As(err, &template) {
			return nil, badRequest("messages", "chat_template", "messages: %s", template.Error())
		}
		return nil, err
	}
	ids, err := m.encode("messages", text, false)
	if err != nil {
		return nil, err
	}
	return ids, m.checkLength("messages", ids)
}

// chatOptions reads what the template is told besides the messages.
func (o *object) chatOptions(options *tokenizer.ChatOptions) {
	options.AddGenerationPrompt = true
	o.boolean("add_generation_prompt", &options.AddGenerationPrompt)
	o.refuse("send the beginning of the answer as a last assistant message to /v1/completions", "continue_final_message")
	o.refuse("the model's own template is used", "chat_template", "documents")
	if raw, ok := o.take("tools"); ok {
		tools, ok := o.listOf("tools", raw, maxMessages, "a list of tools")
		for i := 0; ok && i < len(tools); i++ {
			o.checkTool(at("tools", i), tools[i])
		}
		options.Tools = tools
	}
	if raw, ok := o.take("tool_choice"); ok {
		switch string(raw) {
		case `"none"`:
			options.Tools = nil
		case `"auto"`:
		default:
			o.fail("tool_choice", "unsupported_parameter", "is %s: want none or auto", clip(raw))
		}
	}
	if raw, ok := o.take("chat_template_kwargs"); ok {
		if json.Unmarshal(raw, &options.Extra) != nil {
			o.wantType("chat_template_kwargs", "an object", raw)
		}
	}
}

// checkTool checks a tool's shape as far as templates rely on it.
func (o *object) checkTool(name string, raw json.RawMessage) {
	tool := o.childOf(name, raw)
	if tool == nil {
		return
	}
	var kind string
	tool.text("type", &kind, maxNameBytes)
	if tool.err == nil && kind != "function" {
		tool.fail("type", "invalid_value", "is %q: want function", kind)
	}
	if f := tool.child("function"); f != nil {
		var fn string
		f.text("name", &fn, maxNameBytes)
		if f.err == nil && fn == "" {
			f.fail("name", "missing_field", "want the function's name")
		}
		tool.join(f)
	} else {
		tool.fail("function", "missing_field", "want an object")
	}
	o.join(tool)
}

// chatMessages reads the conversation.
func (o *object) chatMessages() []tokenizer.Message {
	raw, ok := o.take("messages")
	if !ok {
		o.fail("messages", "missing_field", "want a list of messages")
		return nil
	}
	items, ok := o.listOf("messages", raw, maxMessages, "a list of messages")
	if ok && len(items) == 0 {
		o.fail("messages", "invalid_value", "is an empty list: want at least one message")
	}
	out := make([]tokenizer.Message, len(items))
	for i, item := range items {
		m := o.childOf(at("messages", i), item)
		if m == nil {
			return nil
		}
		out[i] = m.chatMessage()
		o.join(m)
	}
	return out
}

func (o *object) chatMessage() (msg tokenizer.Message) {
	o.text("role", &msg.Role, maxNameBytes)
	switch msg.Role {
	case "system", "developer", "user", "assistant", "tool":
	default:
		o.fail("role", "invalid_value", "is %q: want system, developer, user, assistant or tool", msg.Role)
	}
	if msg.Role == "developer" { // OpenAI's newer word; templates know the older one
		msg.Role = "system"
	}
	o.text("name", &msg.Name, maxNameBytes)
	o.text("tool_call_id", &msg.ToolCallID, maxNameBytes)
	if raw, ok := o.take("content"); ok {
		var text string
		if raw[0] == '[' {
			text = o.textParts("content", raw)
		} else {
			o.textOf("content", raw, &text, len(raw))
		}
		msg.Content = text
	}
	msg.ToolCalls = o.toolCalls()
	if msg.Content == nil && len(msg.ToolCalls) == 0 {
		if msg.Role != "assistant" {
			o.fail("content", "missing_field", "want a string or a list of text parts")
		}
		msg.Content = ""
	}
	var reasoning string
	if o.text("reasoning_content", &reasoning, len(o.fields["reasoning_content"])); reasoning != "" {
		msg.Extra = map[string]any{"reasoning_content": reasoning}
	}
	o.refuse("only text is served here", "audio")
	return msg
}

// textParts joins a list of text parts.
func (o *object) textParts(name string, raw json.RawMessage) (text string) {
	items, _ := o.listOf(name, raw, maxMessages, "a list of text parts")
	for i, item := range items {
		part := o.childOf(at(name, i), item)
		if part == nil {
			return ""
		}
		var kind, piece string
		part.text("type", &kind, maxNameBytes)
		if part.err == nil && kind != "text" {
			part.fail("type", "unsupported_parameter", "is %q: only text is served here", kind)
		}
		part.text("text", &piece, len(item))
		text += piece
		o.join(part)
	}
	return text
}

func (o *object) toolCalls() []tokenizer.ToolCall {
	raw, ok := o.take("tool_calls")
	if !ok {
		return nil
	}
	items, _ := o.listOf("tool_calls", raw, maxMessages, "a list of tool calls")
	calls := make([]tokenizer.ToolCall, len(items))
	for i, item := range items {
		tc := o.childOf(at("tool_calls", i), item)
		if tc == nil {
			return nil
		}
		tc.text("id", &calls[i].ID, maxNameBytes)
		f := tc.child("function")
		if f == nil {
			tc.fail("function", "missing_field", "want an object")
			o.join(tc)
			return nil
		}
		f.text("name", &calls[i].Name, maxNameBytes)
		f.text("arguments", &calls[i].Arguments, len(item))
		tc.join(f)
		o.join(tc)
	}
	return calls
}
