package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/ardanlabs/jinja"
)

// Message is one turn of a conversation.
type Message struct {
	Role string
	// Content is a string, or a list of parts such as {"type": "text", "text": "…"} as json.RawMessage, []any or
	// []map[string]any; nil for none. A template that does not know parts gets the text parts as one string, a line each.
	Content    any
	Name       string
	ToolCalls  []ToolCall // of an assistant
	ToolCallID string     // of a tool's answer
	// Extra holds further fields that a template may ask for, such as reasoning_content.
	Extra map[string]any
}

// ToolCall is a call that an assistant made.
type ToolCall struct {
	ID, Name string
	// Arguments is a JSON object. Templates see it as an object, key order kept; if it is no JSON object, as a string.
	Arguments string
}

// ChatOptions says how a conversation is rendered.
type ChatOptions struct {
	AddGenerationPrompt bool
	// Tools holds each tool's JSON, as in the OpenAI API.
	Tools []json.RawMessage
	// Template names one of several templates; "" is the default one, or "tool_use" if there are tools and it exists.
	Template string
	// Extra holds further variables for the template, such as enable_thinking: plain Go values or json.RawMessage.
	Extra map[string]any
	// Now is the time that strftime_now tells; the zero time means the time of the call.
	Now time.Time
}

// Limits of one rendering. A template comes with the model and is trusted as far as the model is; the limits keep a broken
// one from taking the process along.
const (
	renderTime      = 5 * time.Second
	maxRenderOutput = 64 << 20
	maxRange        = 100_000
	maxMacroDepth   = 100
)

const defaultTemplate = "default"

// chatTemplates are a model's templates by name, compiled on first use.
type chatTemplates struct {
	sources map[string]string
	limit   time.Duration // of one rendering

	mu       sync.Mutex
	compiled map[string]*jinja.Template
}

func newChatTemplates(sources map[string]string) *chatTemplates {
	return &chatTemplates{sources: sources, limit: renderTime, compiled: map[string]*jinja.Template{}}
}

// HasChatTemplate tells if the model came with a chat template.
func (t *Tokenizer) HasChatTemplate() bool { return t.chat != nil && len(t.chat.sources) > 0 }

// SetChatTemplate puts source, a Jinja template, in the place of the model's default one.
func (t *Tokenizer) SetChatTemplate(source string) error {
	templates := newChatTemplates(map[string]string{defaultTemplate: source})
	if _, err := templates.get(defaultTemplate); err != nil {
		return err
	}
	t.chat = templates
	return nil
}

// ApplyChatTemplate renders messages to the text that the model expects. The text holds its special tokens already: encode it
// with addSpecial false. Errors are *TemplateError; a template's own raise_exception is one.
func (t *Tokenizer) ApplyChatTemplate(messages []Message, o ChatOptions) (string, error) {
	if !t.HasChatTemplate() {
		return "", &TemplateError{Problem: "the model has none: use completions, not chat"}
	}
	name := o.Template
	if name == "" {
		name = defaultTemplate
		if _, ok := t.chat.sources["tool_use"]; ok && len(o.Tools) > 0 {
			name = "tool_use"
		}
	}
	template, err := t.chat.get(name)
	if err != nil {
		return "", err
	}
	data, err := t.chatData(messages, o, readsParts.MatchString(t.chat.sources[name]))
	if err != nil {
		return "", err
	}
	return render(template, data, o.Now, t.chat.limit)
}

func (c *chatTemplates) get(name string) (*jinja.Template, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if template, ok := c.compiled[name]; ok {
		return template, nil
	}
	source, ok := c.sources[name]
	if !ok {
		return nil, &TemplateError{Problem: fmt.Sprintf("the model has no template %q, only %v", name, sortedKeys(c.sources))}
	}
	rewritten, err := instrument(source)
	if err != nil {
		return nil, err
	}
	template, err := jinja.Compile(rewritten)
	if err != nil {
		return nil, &TemplateError{Problem: "cannot be compiled", Err: err}
	}
	c.compiled[name] = template
	return template, nil
}

// render runs the template with the functions it may call.
func render(template *jinja.Template, data map[string]jinja.Value, now time.Time, limit time.Duration) (out string, err error) {
	defer func() {
		if r := recover(); r != nil { // the library indexes arguments of some filters unchecked
			out, err = "", &TemplateError{Problem: fmt.Sprintf("failed: %v", r)}
		}
	}()
	if now.IsZero() {
		now = time.Now()
	}
	deadline, depth := time.Now().Add(limit), 0
	function := func(name string, fn func(args []jinja.Value, kwargs map[string]jinja.Value) (jinja.Value, error)) {
		data[name] = jinja.NewCallable(name, fn)
	}
	function(tickName, func([]jinja.Value, map[string]jinja.Value) (jinja.Value, error) {
		if time.Now().After(deadline) {
			return jinja.None(), fmt.Errorf("ran longer than %v", limit)
		}
		return jinja.None(), nil
	})
	function(enterName, func([]jinja.Value, map[string]jinja.Value) (jinja.Value, error) {
		if depth++; depth > maxMacroDepth {
			return jinja.None(), fmt.Errorf("macros call each other more than %d deep", maxMacroDepth)
		}
		return jinja.None(), nil
	})
	function(leaveName, func([]jinja.Value, map[string]jinja.Value) (jinja.Value, error) {
		depth--
		return jinja.None(), nil
	})
	function(toJSONName, toJSON)
	function("range", boundedRange)
	function("raise_exception", func(args []jinja.Value, _ map[string]jinja.Value) (jinja.Value, error) {
		message := "the conversation is not one the template can render"
		if len(args) > 0 && args[0].IsString() {
			message = args[0].AsString()
		}
		return jinja.None(), &TemplateError{Problem: message}
	})
	function("strftime_now", func(args []jinja.Value, _ map[string]jinja.Value) (jinja.Value, error) {
		if len(args) != 1 || !args[0].IsString() {
			return jinja.None(), errors.New("strftime_now wants a format")
		}
		return jinja.NewString(strftime(now, args[0].AsString())), nil
	})
	out, err = template.RenderValues(data)
	var own *TemplateError
	switch {
	case errors.As(err, &own):
		return "", own
	case err != nil:
		return "", &TemplateError{Problem: "failed", Err: err}
	case len(out) > maxRenderOutput:
		return "", &TemplateError{Problem: fmt.Sprintf("made %d bytes, more than %d", len(out), maxRenderOutput)}
	}
	return out, nil
}

// chatData makes the variables of a template.
func (t *Tokenizer) chatData(messages []Message, o ChatOptions, parts bool) (map[string]jinja.Value, error) {
	data := map[string]jinja.Value{
		"add_generation_prompt": jinja.NewBool(o.AddGenerationPrompt), "tools": jinja.None(), "documents": jinja.None(),
	}
	for name, text := range t.specialTexts {
		data[name] = jinja.NewString(text)
	}
	if len(o.Tools) > 0 {
		tools := make([]jinja.Value, len(o.Tools))
		for i, raw := range o.Tools {
			v, err := jsonValue(raw)
			if err != nil {
				return nil, &TemplateError{Problem: fmt.Sprintf("tool %d is not valid JSON", i), Err: err}
			}
			tools[i] = v
		}
		data["tools"] = jinja.NewList(tools)
	}
	for name, v := range o.Extra {
		var err error
		if data[name], err = goValue(v); err != nil {
			return nil, &TemplateError{Problem: fmt.Sprintf("variable %q is not valid JSON", name), Err: err}
		}
	}
	list := make([]jinja.Value, len(messages))
	for i := range messages {
		v, err := messages[i].value(parts)
		if err != nil {
			return nil, &TemplateError{Problem: fmt.Sprintf("message %d", i), Err: err}
		}
		list[i] = v
	}
	data["messages"] = jinja.NewList(list)
	return data, nil
}

// value makes the object that templates see. Without parts, content is a string.
func (m *Message) value(parts bool) (jinja.Value, error) {
	v := jinja.NewDict()
	d := v.AsDict()
	d.Set("role", jinja.NewString(m.Role))
	content, err := goValue(m.Content)
	if err != nil {
		return v, err
	}
	if content.IsList() && !parts {
		if content, err = joinParts(content.AsList()); err != nil {
			return v, err
		}
	}
	d.Set("content", content)
	if m.Name != "" {
		d.Set("name", jinja.NewString(m.Name))
	}
	if len(m.ToolCalls) > 0 {
		calls := make([]jinja.Value, len(m.ToolCalls))
		for i, c := range m.ToolCalls {
			function := jinja.NewDict()
			function.AsDict().Set("name", jinja.NewString(c.Name))
			arguments, err := jsonValue([]byte(c.Arguments))
			if err != nil || !arguments.IsDict() {
				arguments = jinja.NewString(c.Arguments)
			}
			function.AsDict().Set("arguments", arguments)
			call := jinja.NewDict()
			if c.ID != "" {
				call.AsDict().Set("id", jinja.NewString(c.ID))
			}
			call.AsDict().Set("type", jinja.NewString("function"))
			call.AsDict().Set("function", function)
			calls[i] = call
		}
		d.Set("tool_calls", jinja.NewList(calls))
	}
	if m.ToolCallID != "" {
		d.Set("tool_call_id", jinja.NewString(m.ToolCallID))
	}
	for _, name := range sortedKeys(m.Extra) {
		extra, err := goValue(m.Extra[name])
		if err != nil {
			return v, err
		}
		d.Set(name, extra)
	}
	return v, nil
}

// joinParts makes one string of text parts.
func joinParts(parts *jinja.List) (jinja.Value, error) {
	var lines []string
	for _, part := range parts.Items {
		text := jinja.Undefined()
		if part.IsDict() {
			text, _ = part.AsDict().Get("text")
		}
		if !text.IsString() {
			return text, errors.New("content has a part that is no text, which the template does not know")
		}
		lines = append(lines, text.AsString())
	}
	return jinja.NewString(strings.Join(lines, "\n")), nil
}
