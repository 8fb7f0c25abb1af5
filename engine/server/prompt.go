package server

import (
	"encoding/json"
	"math"

	"github.com/tokamak-engine/tokamak/engine"
)

// prompt is one prompt as the client sent it.
type prompt struct {
	text   string
	ids    []int32
	isText bool
}

// prompts reads a prompt, or a batch of them, in OpenAI's four forms: "text", ["text", …], [1, 2, …], [[1, 2, …], …].
func (o *object) prompts(name string, m *modelInfo) (list []prompt, batch bool) {
	raw, ok := o.take(name)
	if !ok {
		return nil, false
	}
	switch first := firstOf(raw); {
	case raw[0] == '"':
		return o.textPrompts(name, raw)
	case raw[0] != '[':
		o.wantType(name, "a string, a list of strings, token ids or a list of lists of token ids", raw)
	case first == '"':
		return o.textPrompts(name, raw)
	default:
		return o.idPrompts(name, raw, m)
	}
	return nil, false
}

// firstOf is the first byte of an array's first item, or ']' if it has none.
func firstOf(raw json.RawMessage) byte {
	for _, c := range raw[1:] {
		if c > ' ' {
			return c
		}
	}
	return 0
}

// textPrompts reads "text" or ["text", …].
func (o *object) textPrompts(name string, raw json.RawMessage) (list []prompt, batch bool) {
	if raw[0] == '"' {
		p := prompt{isText: true}
		o.textOf(name, raw, &p.text, math.MaxInt)
		return []prompt{p}, false
	}
	items, ok := o.listOf(name, raw, maxBatchPrompts, "a string or a list of strings")
	if !ok {
		return nil, true
	}
	list = make([]prompt, len(items))
	for i, item := range items {
		list[i].isText = true
		o.textOf(at(name, i), item, &list[i].text, math.MaxInt)
	}
	return list, true
}

// idPrompts reads [1, 2, …] or [[1, 2, …], …].
func (o *object) idPrompts(name string, raw json.RawMessage, m *modelInfo) (list []prompt, batch bool) {
	if raw[0] != '[' || firstOf(raw) != '[' {
		var p prompt
		o.idsOf(name, raw, &p.ids, math.MaxInt, m.vocabSize)
		return []prompt{p}, false
	}
	items, ok := o.listOf(name, raw, maxBatchPrompts, "a list of token ids or a list of such lists")
	if !ok {
		return nil, true
	}
	list = make([]prompt, len(items))
	for i, item := range items {
		o.idsOf(at(name, i), item, &list[i].ids, math.MaxInt, m.vocabSize)
	}
	return list, true
}

// resolve turns prompts into token ids that the model's context has room for.
func (m *modelInfo) resolve(name string, list []prompt) error {
	if len(list) == 0 {
		return badRequest(name, "invalid_value", "%s: is an empty list: want at least one prompt", name)
	}
	for i := range list {
		p := &list[i]
		field := name
		if len(list) > 1 {
			field = at(name, i)
		}
		if p.isText {
			ids, err := m.encode(field, p.text, true)
			if err != nil {
				return err
			}
			p.ids = ids
		}
		if err := m.checkLength(field, p.ids); err != nil {
			return err
		}
	}
	return nil
}

// encode makes token ids of a text. A text that must be too long whatever its tokens are is refused before the work.
func (m *modelInfo) encode(field, text string, addSpecial bool) ([]int32, error) {
	if m.codec == nil {
		return nil, badRequest(field, "unsupported_parameter", "%s: the server runs without a tokenizer: send token ids", field)
	}
	if text == "" {
		return nil, badRequest(field, "invalid_value", "%s: is empty: want at least one character", field)
	}
	if least := len(text) / max(1, m.maxToken); least > m.maxContext {
		return nil, &engine.ContextError{PromptTokens: least, Limit: m.maxContext - 1}
	}
	return m.codec.Encode(text, addSpecial), nil
}

// checkLength refuses a prompt without tokens, or one that leaves no room for an answer.
func (m *modelInfo) checkLength(field string, ids []int32) error {
	if len(ids) == 0 {
		return badRequest(field, "invalid_value", "%s: is empty: want at least one token", field)
	}
	if len(ids) >= m.maxContext {
		return &engine.ContextError{PromptTokens: len(ids), Limit: m.maxContext - 1}
	}
	return nil
}

// room is how many tokens fit behind a prompt.
func (m *modelInfo) room(promptTokens int) int { return m.maxContext - promptTokens }

// tokenText is a token as text, for lists of log probabilities. Bytes that are no whole character become U+FFFD.
func (m *modelInfo) tokenText(id int32) string {
	if m.codec == nil {
		return ""
	}
	return string(m.codec.TokenBytes(id))
}
