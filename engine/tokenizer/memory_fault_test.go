package tokenizer

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/tokenizer/jinja"
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

// hostileTemplates try to take what they can. What each would make of a machine without a budget is in its name.
func hostileTemplates() map[string]string {
	double := func(op string) string {
		return `{% set ns = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set ns.x = ` + op + ` %}{% endfor %}{{ ns.x | length }}`
	}
	return map[string]string{
		"10 GB string":              `{{ 'a' * 10**10 }}`,
		"10 GB string, turned":      `{{ 10**10 * 'a' }}`,
		"huge number of bytes":      `{{ 'abc' * 9223372036854775807 }}`,
		"160 GB list":               `{{ ([0] * 10**10) | length }}`,
		"list of lists":             `{% set x = [[0] * 1000] * 1000 %}{{ (x * 1000) | tojson | length }}`,
		"a big power":               `{{ 10 ** 100 ** 100 }}`,
		"doubled with +":            double(`ns.x + ns.x`),
		"doubled with ~":            double(`ns.x ~ ns.x`),
		"doubled with %":            double(`'%s%s' % (ns.x, ns.x)`),
		"doubled with format":       double(`'%s%s' | format(ns.x, ns.x)`),
		"doubled with str.format":   double(`'{0}{0}'.format(ns.x)`),
		"doubled with join":         double(`[ns.x, ns.x] | join`),
		"doubled with str.join":     double(`''.join([ns.x, ns.x])`),
		"squared with join":         double(`[1, 2, 3, 4] | join(ns.x)`),
		"doubled with replace":      double(`ns.x | replace('a', 'aa')`),
		"squared with replace":      double(`ns.x.replace('a', ns.x)`),
		"every gap with replace":    double(`ns.x.replace('', ns.x)`),
		"doubled as a list":         double(`(ns.x | list) + (ns.x | list)`),
		"doubled in a list":         double(`[ns.x, ns.x]`) + `{{ ns.x }}`,
		"doubled in a dict":         double(`{'a': ns.x, 'b': ns.x}`) + `{{ ns.x | tojson }}`,
		"compared in pairs":         double(`[ns.x, ns.x]`) + double(`[ns.x, ns.x]`) + `{{ ns.x == [ns.x[0], ns.x[1]] }}`,
		"a deep list":               `{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}`,
		"a deep list as JSON":       `{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}`,
		"10 GB of blanks, center":   `{{ 'a' | center(10**10) }}`,
		"10 GB of blanks, ljust":    `{{ 'a'.ljust(10**10) }}`,
		"10 GB of zeros":            `{{ '1'.zfill(10**10) }}`,
		"10 GB of indent":           `{{ 'a\nb' | indent(10**10) }}`,
		"indent of many lines":      `{{ ('\n' * 10**6) | indent(10**6, blank=true) }}`,
		"a wide batch":              `{{ [1] | batch(10**10, 0) | length }}`,
		"a long range":              `{% for a in range(10**9) %}{% endfor %}`,
		"a range without end":       `{{ range(-9223372036854775807, 9223372036854775807) | length }}`,
		"loops in loops":            `{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}`,
		"loops in macros":           `{% macro m(n) %}{% for i in range(9) %}{{ m(n) }}{% endfor %}{% endmacro %}{{ m(1) }}`,
		"deep macros":               `{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}`,
		"macros that double":        `{% macro a(n) %}{% if n %}{{ a(n - 1) }}{{ a(n - 1) }}{% endif %}x{% endmacro %}{{ a(60) }}`,
		"callers that call":         `{% macro a() %}{% call a() %}{{ caller() }}{% endcall %}{% endmacro %}{{ a() }}`,
		"a recursive loop":          `{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}`,
		"long output":               `{% for a in range(99999) %}{{ 'aaaaaaaaaa' * 100 }}{% endfor %}`,
		"long output of text":       `{% for a in range(99999) %}{% for b in range(999) %}` + strings.Repeat("a", 100) + `{% endfor %}{% endfor %}`,
		"blocks in blocks":          `{% for a in range(99999) %}{% set x %}{{ x }}{{ 'a' * 1000 }}{% endset %}{% endfor %}`,
		"many characters":           `{{ ('a' * 10**6) | list | sort | unique | map('upper') | join | length }}{{ ('a' * 10**7) | list | length }}`,
		"a long search":             `{% set s = 'a' * 10**6 %}{% for a in range(99999) %}{{ 'b' in s }}{{ s.find('b') }}{{ s[0] }}{{ s | length }}{% endfor %}`,
		"strftime of a long format": `{{ strftime_now('%A' * 10**7) }}`,
		"nested parentheses":        `{{ ` + strings.Repeat("(", 250_000) + `1` + strings.Repeat(")", 250_000) + ` }}`,
		"nested lists":              `{{ ` + strings.Repeat("[", 250_000) + strings.Repeat("]", 250_000) + ` }}`,
		"nested blocks":             strings.Repeat(`{% if 1 %}`, 50_000) + strings.Repeat(`{% endif %}`, 50_000),
		"2 MB of template":          strings.Repeat(`{{ 1 }}`, 300_000),
		"a row of operators":        `{{ 1` + strings.Repeat(` + 1`, 250_000) + ` }}`,
		"a row of nots":             `{{ ` + strings.Repeat(`not `, 200_000) + `1 }}`,
		"a row of signs":            `{{ ` + strings.Repeat(`-`, 250_000) + `1 }}`,
		"a row of attributes":       `{{ x` + strings.Repeat(`.x`, 250_000) + ` }}`,
		"a row of filters":          `{{ 'a'` + strings.Repeat(`|string`, 140_000) + ` }}`,
		"a row of conditions":       `{{ 1` + strings.Repeat(` if 1`, 200_000) + ` }}`,
	}
}

// TestTemplatesMemory holds what a template that a model brings may take: a second or so, and memory within its budget, whatever it tries.
func TestTemplatesMemory(t *testing.T) {
	for name, source := range hostileTemplates() {
		t.Run(name, func(t *testing.T) {
			tk := &Tokenizer{}
			start := time.Now()
			var err error
			spent := allocated(func() {
				if err = tk.SetChatTemplate(source); err == nil {
					_, err = tk.ApplyChatTemplate([]Message{{Role: "user", Content: "hi"}}, ChatOptions{})
				}
			})
			require.Error(t, err)
			assert.NotContains(t, err.Error(), "\n")
			assert.Less(t, len(err.Error()), 400)
			assert.Less(t, spent, uint64(4*renderBytes+200*len(source)), "bytes allocated: %v", err)
			assert.Less(t, time.Since(start), 20*time.Second, "a second on a machine of its own: %v", err)
			t.Logf("%d MB, %v: %v", spent>>20, time.Since(start).Round(time.Millisecond), err)
		})
	}
}

// TestTemplatesNeedLittle renders long conversations with real templates within an eighth of what they may take.
func TestTemplatesNeedLittle(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(goldens, "templates", "*.jinja"))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	var short, long []Message
	for i := range 2000 {
		short = append(short, Message{Role: []string{"user", "assistant"}[i%2], Content: "hi"})
	}
	for i := range 20 {
		long = append(long, Message{Role: []string{"user", "assistant"}[i%2], Content: strings.Repeat("What <b>is</b> it?\n", 10_000)})
	}
	for _, file := range files {
		source, err := os.ReadFile(file)
		require.NoError(t, err)
		template, err := jinja.Parse(string(source))
		require.NoError(t, err)
		for name, messages := range map[string][]Message{"short": short, "long": long} {
			tk := &Tokenizer{specialTexts: map[string]string{"bos_token": "<s>", "eos_token": "</s>"}}
			data, err := tk.chatData(messages, ChatOptions{AddGenerationPrompt: true}, false)
			require.NoError(t, err)
			l := renderLimits(data)
			out, err := render(template, data, time.Time{}, jinja.Limits{Work: l.Work / 8, Bytes: l.Bytes / 8})
			require.NoError(t, err, "%s, %s messages", filepath.Base(file), name)
			require.Greater(t, len(out), 4*len(messages))
		}
	}
}
