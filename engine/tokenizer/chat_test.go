package tokenizer

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// chatGoldens is chat.json: what transformers renders (see chat.py beside it).
type chatGoldens struct {
	Tokens        map[string]string
	Conversations [][]map[string]json.RawMessage
	Options       []map[string]json.RawMessage
	Cases         []struct {
		Template             string
		Conversation, Option int
		Want, Error          *string
	}
}

func toMessage(tb testing.TB, fields map[string]json.RawMessage) (m Message) {
	tb.Helper()
	get := func(key string, v any) {
		if raw, ok := fields[key]; ok {
			require.NoError(tb, json.Unmarshal(raw, v))
		}
	}
	get("role", &m.Role)
	m.Content = fields["content"]
	get("name", &m.Name)
	get("tool_call_id", &m.ToolCallID)
	var calls []struct {
		ID       string
		Function struct {
			Name      string
			Arguments json.RawMessage
		}
	}
	get("tool_calls", &calls)
	for _, c := range calls {
		m.ToolCalls = append(m.ToolCalls, ToolCall{ID: c.ID, Name: c.Function.Name, Arguments: string(c.Function.Arguments)})
	}
	if raw, ok := fields["reasoning_content"]; ok {
		m.Extra = map[string]any{"reasoning_content": raw}
	}
	return m
}

func TestChatEqualToTransformers(t *testing.T) {
	var golden chatGoldens
	data, err := os.ReadFile(filepath.Join(goldens, "chat.json"))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &golden))
	templates := map[string]*Tokenizer{}
	load := func(t *testing.T, name string) *Tokenizer {
		if tk, ok := templates[name]; ok {
			return tk
		}
		tk := &Tokenizer{specialTexts: golden.Tokens}
		if model, ok := strings.CutPrefix(name, "models/"); ok {
			tk.chat = realTokenizer(t, model).chat
		} else {
			source, err := os.ReadFile(filepath.Join(goldens, "templates", name+".jinja"))
			require.NoError(t, err)
			require.NoError(t, tk.SetChatTemplate(string(source)))
		}
		templates[name] = tk
		return tk
	}
	byTemplate := map[string][]int{}
	for i, c := range golden.Cases {
		byTemplate[c.Template] = append(byTemplate[c.Template], i)
	}
	for name, cases := range byTemplate {
		t.Run(name, func(t *testing.T) {
			tk := load(t, name)
			for _, i := range cases {
				c := golden.Cases[i]
				var messages []Message
				for _, fields := range golden.Conversations[c.Conversation] {
					messages = append(messages, toMessage(t, fields))
				}
				o := ChatOptions{Now: time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC), Extra: map[string]any{}}
				for key, raw := range golden.Options[c.Option] {
					switch key {
					case "tools":
						require.NoError(t, json.Unmarshal(raw, &o.Tools))
					case "add_generation_prompt":
						o.AddGenerationPrompt = true
					default:
						o.Extra[key] = raw
					}
				}
				got, err := tk.ApplyChatTemplate(messages, o)
				if c.Want == nil {
					var failed *TemplateError
					require.ErrorAs(t, err, &failed, "case %d", i)
					if !strings.Contains(*c.Error, "object' has no attribute") { // Jinja's own words
						assert.Equal(t, "chat template: "+*c.Error, err.Error())
					}
					continue
				}
				require.NoError(t, err, "case %d: %+v", i, c)
				require.Equal(t, *c.Want, got, "case %d: conversation %d, options %d", i, c.Conversation, c.Option)
			}
		})
	}
}

func TestChatTemplateErrors(t *testing.T) {
	apply := func(source string) error {
		tk := &Tokenizer{}
		if err := tk.SetChatTemplate(source); err != nil {
			return err
		}
		_, err := tk.ApplyChatTemplate([]Message{{Role: "user", Content: "hi"}}, ChatOptions{})
		return err
	}
	for name, test := range map[string]struct{ source, want string }{
		"unclosed":    {"{% for m in messages %}", "cannot be compiled"},
		"raises":      {"{{ raise_exception('no ' + messages[0].role) }}", "chat template: no user"},
		"recursive":   {"{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "deep"},
		"huge range":  {"{% for i in range(10000000000) %}{% endfor %}", "range"},
		"bad filter":  {"{{ [1] | selectattr('x', 'nope') }}", "failed"},
		"no argument": {"{{ [1] | selectattr }}", "failed"},
		"unknown":     {"{{ 1 | nofilter }}", "nofilter"},
		"no callable": {"{{ messages() }}", "not callable"},
	} {
		t.Run(name, func(t *testing.T) {
			err := apply(test.source)
			var failed *TemplateError
			require.ErrorAs(t, err, &failed)
			assert.Contains(t, err.Error(), test.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
	_, err := (&Tokenizer{}).ApplyChatTemplate(nil, ChatOptions{})
	require.ErrorContains(t, err, "has none")
	tk := &Tokenizer{chat: newChatTemplates(map[string]string{"default": "d", "tool_use": "t"})}
	for want, o := range map[string]ChatOptions{"d": {}, "t": {Tools: []json.RawMessage{[]byte(`{}`)}}} {
		got, err := tk.ApplyChatTemplate(nil, o)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	_, err = tk.ApplyChatTemplate(nil, ChatOptions{Template: "rag"})
	require.ErrorContains(t, err, `no template "rag", only [default tool_use]`)
	_, err = tk.ApplyChatTemplate(nil, ChatOptions{Tools: []json.RawMessage{[]byte(`{`)}})
	require.ErrorContains(t, err, "tool 0 is not valid JSON")
}

func TestStrftime(t *testing.T) {
	at := time.Date(2026, 2, 3, 4, 5, 6, 7000, time.UTC)
	assert.Equal(t, "03 Feb 2026|4|05:06 AM|Tuesday|%|%Q|2026-02-03|000007|", strftime(at, "%d %b %Y|%-H|%M:%S %p|%A|%%|%Q|%F|%f|"))
}
