package tokenizer

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestHostileTokenizersMemory bounds what a tokenizer.json may allocate by its size.
func TestHostileTokenizersMemory(t *testing.T) {
	entries := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `,"t%d":%d`, i, i+5)
		}
		return b.String()
	}
	with := func(old, new string) string { return strings.Replace(tiny, old, new, 1) }
	for name, text := range map[string]string{
		"deep":            strings.Repeat(`{"model":`, 100_000),
		"large":           with(`"Ġ":3`, `"Ġ":3`+entries(50_000)),
		"highest id":      with(`"b":1`, `"b":4194303`),
		"many merges":     with(`"a b"`, strings.Repeat(`"a b",`, 50_000)+`"a b"`),
		"long token":      with(`"Ġ":3`, `"Ġ":3,"`+strings.Repeat("a", 1<<20)+`":5`),
		"long regex":      with(`{"type":"ByteLevel","add_prefix_space":false}`, `{"type":"Split","behavior":"Isolated","pattern":{"Regex":"`+strings.Repeat("(a|b)*", 2000)+`"}}`),
		"counted regex":   with(`{"type":"ByteLevel","add_prefix_space":false}`, `{"type":"Split","behavior":"Isolated","pattern":{"Regex":"((a{1,1000}){1,1000}){1,1000}"}}`),
		"many processors": with(`"decoder":{"type":"ByteLevel"}`, `"decoder":{"type":"Sequence","decoders":[`+strings.Repeat(`{"type":"ByteLevel"},`, 20_000)+`{"type":"ByteLevel"}]}`),
	} {
		start := time.Now()
		spent := allocated(func() { _, _ = parse("f", []byte(text)) })
		assert.Less(t, spent, uint64(400*len(text)+16<<20), "%s: %d bytes allocated for %d", name, spent, len(text))
		assert.Less(t, time.Since(start), 5*time.Second, name)
	}
}

// TestHostileConversationsMemory renders what clients send, not what a model brings, with a template of the usual form: time and
// memory follow the size of the conversation.
func TestHostileConversationsMemory(t *testing.T) {
	tk := &Tokenizer{}
	require.NoError(t, tk.SetChatTemplate(`{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}{% endfor %}`+
		`{% if tools %}{% for t in tools %}{{ t | tojson(indent=4) }}{% endfor %}{% endif %}`))
	many := make([]Message, 8192)
	for i := range many {
		many[i] = Message{Role: "user", Content: "hi"}
	}
	deep := json.RawMessage(strings.Repeat(`{"a":`, 2000) + "1" + strings.Repeat("}", 2000))
	for name, c := range map[string]struct {
		messages []Message
		options  ChatOptions
		size     int
	}{
		"long":          {[]Message{{Role: "user", Content: strings.Repeat("{{ 'a' * 9 }} ", 200_000)}}, ChatOptions{}, 14 * 200_000},
		"many messages": {many, ChatOptions{}, 40 * len(many)},
		"deep tool":     {many[:1], ChatOptions{Tools: []json.RawMessage{deep}}, len(deep)},
	} {
		start := time.Now()
		var out string
		spent := allocated(func() { out, _ = tk.ApplyChatTemplate(c.messages, c.options) })
		// An indented tool 2,000 deep is 4,000 lines of up to 8,000 blanks.
		assert.Less(t, spent, uint64(100*c.size+16*len(out)+4<<20), "%s: %d bytes allocated for %d", name, spent, c.size)
		assert.Less(t, time.Since(start), 5*time.Second, name)
		assert.NotContains(t, out, "aaaaaaaaa", "%s: a client's text was run", name)
	}
}

// TestTemplatesMemory bounds the output and the loops of a template that a model brings.
func TestTemplatesMemory(t *testing.T) {
	for name, source := range map[string]string{
		"loops in loops": `{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}`,
		"deep macros":    `{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}`,
		"long range":     `{% for a in range(100001) %}{% endfor %}`,
		"long output":    `{% for a in range(99999) %}{{ 'aaaaaaaaaa' * 100 }}{% endfor %}`,
	} {
		tk := &Tokenizer{}
		require.NoError(t, tk.SetChatTemplate(source), name)
		tk.chat.limit = 200 * time.Millisecond
		start := time.Now()
		_, err := tk.ApplyChatTemplate(nil, ChatOptions{})
		require.Error(t, err, name)
		assert.Less(t, time.Since(start), 5*time.Second, name)
	}
}
