package tokenizer

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/tokamak-engine/tokamak/engine/tokenizer/jinja"
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

// A rendering may do this much for the template, whatever is said, and this much for each byte of the conversation: see [jinja.Limits].
// Real templates need less than an eighth of it.
const (
	renderWork, renderWorkEach   = 256 << 20, 256
	renderBytes, renderBytesEach = 16 << 20, 64
)

const defaultTemplate = "default"

// chatTemplates are a model's templates by name, compiled on first use.
type chatTemplates struct {
	sources map[string]string

	mu       sync.Mutex
	compiled map[string]compiledTemplate
}

type compiledTemplate struct {
	*jinja.Template
	parts bool // it knows messages whose content is a list of parts
}

func newChatTemplates(sources map[string]string) *chatTemplates {
	return &chatTemplates{sources: sources, compiled: map[string]compiledTemplate{}}
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
	data, err := t.chatData(messages, o, template.parts)
	if err != nil {
		return "", err
	}
	return render(template.Template, data, o.Now, renderLimits(data))
}

func (c *chatTemplates) get(name string) (t compiledTemplate, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if template, ok := c.compiled[name]; ok {
		return template, nil
	}
	source, ok := c.sources[name]
	if !ok {
		return t, &TemplateError{Problem: fmt.Sprintf("the model has no template %q, only %v", name, sortedKeys(c.sources))}
	}
	t.parts = readsParts.MatchString(source)
	if t.Template, err = jinja.Parse(source); err != nil {
		return t, &TemplateError{Problem: "cannot be compiled", Err: err}
	}
	c.compiled[name] = t
	return t, nil
}

// render runs the template with the functions it may call.
func render(template *jinja.Template, data map[string]jinja.Value, now time.Time, limits jinja.Limits) (string, error) {
	if now.IsZero() {
		now = time.Now()
	}
	data["raise_exception"] = &jinja.Function{Name: "raise_exception", Call: func(c *jinja.Call) (jinja.Value, error) {
		v, _ := c.Arg(0, "message")
		message, ok := v.(string)
		if !ok {
			message = "the conversation is not one the template can render"
		}
		return nil, &TemplateError{Problem: message}
	}}
	data["strftime_now"] = &jinja.Function{Name: "strftime_now", Call: func(c *jinja.Call) (jinja.Value, error) {
		v, _ := c.Arg(0, "format")
		format, ok := v.(string)
		if !ok {
			return nil, errors.New("strftime_now wants a format")
		}
		if err := c.Pay(32 * len(format)); err != nil {
			return nil, err
		}
		return strftime(now, format), nil
	}}
	out, err := template.Render(data, limits)
	var own *TemplateError
	switch {
	case errors.As(err, &own):
		return "", own
	case err != nil:
		return "", &TemplateError{Problem: "failed", Err: err}
	}
	return out, nil
}

// renderLimits grow with what is to be rendered.
func renderLimits(data map[string]jinja.Value) jinja.Limits {
	size := int64(0)
	for _, v := range data {
		size += int64(sizeOf(v))
	}
	return jinja.Limits{Work: renderWork + size*renderWorkEach, Bytes: renderBytes + size*renderBytesEach}
}

// sizeOf is about the number of bytes that v takes in a request.
func sizeOf(v jinja.Value) int {
	size := 8
	switch v := v.(type) {
	case string:
		size += len(v)
	case *jinja.List:
		for _, item := range v.Items {
			size += sizeOf(item)
		}
	case *jinja.Dict:
		for _, key := range v.Keys() {
			item, _ := v.Get(key)
			size += len(key) + sizeOf(item)
		}
	}
	return size
}

// chatData makes the variables of a template.
func (t *Tokenizer) chatData(messages []Message, o ChatOptions, parts bool) (map[string]jinja.Value, error) {
	data := map[string]jinja.Value{
		"add_generation_prompt": o.AddGenerationPrompt, "tools": nil, "documents": nil,
	}
	for name, text := range t.specialTexts {
		data[name] = text
	}
	if len(o.Tools) > 0 {
		tools := jinja.NewList()
		for i, raw := range o.Tools {
			v, err := jsonValue(raw)
			if err != nil {
				return nil, &TemplateError{Problem: fmt.Sprintf("tool %d is not valid JSON", i), Err: err}
			}
			tools.Items = append(tools.Items, v)
		}
		data["tools"] = tools
	}
	for name, v := range o.Extra {
		var err error
		if data[name], err = goValue(v); err != nil {
			return nil, &TemplateError{Problem: fmt.Sprintf("variable %q is not valid JSON", name), Err: err}
		}
	}
	list := jinja.NewList()
	for i := range messages {
		v, err := messages[i].value(parts)
		if err != nil {
			return nil, &TemplateError{Problem: fmt.Sprintf("message %d", i), Err: err}
		}
		list.Items = append(list.Items, v)
	}
	data["messages"] = list
	return data, nil
}

// value makes the object that templates see. Without parts, content is a string.
func (m *Message) value(parts bool) (jinja.Value, error) {
	d := jinja.NewDict()
	d.Set("role", m.Role)
	content, err := goValue(m.Content)
	if err != nil {
		return nil, err
	}
	if l, ok := content.(*jinja.List); ok && !parts {
		if content, err = joinParts(l); err != nil {
			return nil, err
		}
	}
	d.Set("content", content)
	if m.Name != "" {
		d.Set("name", m.Name)
	}
	if len(m.ToolCalls) > 0 {
		calls := jinja.NewList()
		for _, c := range m.ToolCalls {
			arguments, err := jsonValue([]byte(c.Arguments))
			if _, ok := arguments.(*jinja.Dict); err != nil || !ok {
				arguments = c.Arguments
			}
			function, call := jinja.NewDict(), jinja.NewDict()
			function.Set("name", c.Name)
			function.Set("arguments", arguments)
			if c.ID != "" {
				call.Set("id", c.ID)
			}
			call.Set("type", "function")
			call.Set("function", function)
			calls.Items = append(calls.Items, call)
		}
		d.Set("tool_calls", calls)
	}
	if m.ToolCallID != "" {
		d.Set("tool_call_id", m.ToolCallID)
	}
	for _, name := range sortedKeys(m.Extra) {
		extra, err := goValue(m.Extra[name])
		if err != nil {
			return nil, err
		}
		d.Set(name, extra)
	}
	return d, nil
}

// joinParts makes one string of text parts.
func joinParts(parts *jinja.List) (jinja.Value, error) {
	var lines []string
	for _, part := range parts.Items {
		var text jinja.Value
		if d, ok := part.(*jinja.Dict); ok {
			text, _ = d.Get("text")
		}
		line, ok := text.(string)
		if !ok {
			return nil, errors.New("content has a part that is no text, which the template does not know")
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n"), nil
}

// readsParts finds what a template does if it knows messages whose content is a list of parts.
var readsParts = regexp.MustCompile(`\bin\s+[\w.]*(\[['"]content['"]\]|\bcontent)\b|content['"\]]*\s+is\s+(not\s+)?(string|iterable|sequence|mapping)`)
