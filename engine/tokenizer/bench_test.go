package tokenizer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// benchTexts are about a megabyte each.
func benchTexts() map[string]string {
	english := `We have been measuring how long the engine takes to read a prompt, and it's clear that most of the time is spent in the
first few layers. The scheduler, which doesn't know anything about the device, decides what runs next; "that's the point", she said.
In 2024 they'd found 1,234 cases (about 12.5%) where nothing at all had changed between the two runs.
`
	code := "func (s *Server) Close() error {\n\ts.mu.Lock()\n\tdefer s.mu.Unlock()\n\tif s.closed { return nil }\n\tfor _, c := range s.conns {\n\t\t_ = c.Close()\n\t}\n\treturn nil\n}\n"
	chinese := "今天天气很好，我们一起去公园散步吧。人工智能正在改变世界的各个方面，包括医疗、教育和交通。"
	texts := map[string]string{}
	for name, s := range map[string]string{"english": english, "code": code, "chinese": chinese, "letter": "a", "spaces": " "} {
		texts[name] = strings.Repeat(s, 1<<20/len(s))
	}
	return texts
}

func BenchmarkEncode(b *testing.B) {
	for name, tk := range map[string]func(testing.TB) *Tokenizer{
		"smollm2": smolLM2,
		"llama3":  func(tb testing.TB) *Tokenizer { return realTokenizer(tb, "llama3_1") },
		"qwen3":   func(tb testing.TB) *Tokenizer { return realTokenizer(tb, "qwen3") },
		"llama2":  func(tb testing.TB) *Tokenizer { return small(tb, "llama2") },
	} {
		b.Run("model="+name, func(b *testing.B) {
			tk := tk(b)
			for text, s := range benchTexts() {
				b.Run("text="+text, func(b *testing.B) {
					b.SetBytes(int64(len(s)))
					b.ReportAllocs()
					want := len(tk.Encode(s, false))
					b.ResetTimer()
					for range b.N {
						if len(tk.Encode(s, false)) != want {
							b.Fatal("ids changed")
						}
					}
				})
			}
		})
	}
}

// BenchmarkEncodePrompt is a chat-sized text: what a request costs.
func BenchmarkEncodePrompt(b *testing.B) {
	tk := smolLM2(b)
	s := benchTexts()["english"][:2000]
	b.SetBytes(int64(len(s)))
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		tk.Encode(s, true)
	}
}

func BenchmarkDecodeStream(b *testing.B) {
	tk := smolLM2(b)
	s := benchTexts()["english"]
	ids := tk.Encode(s, false)
	b.ReportAllocs()
	d := tk.NewDecoder(true)
	n := 0
	b.ResetTimer()
	for i := range b.N {
		n += len(d.Add(ids[i%len(ids)]))
	}
	if b.N > 100 && n == 0 {
		b.Fatal("nothing decoded")
	}
}

func BenchmarkLoad(b *testing.B) {
	for _, name := range []string{"llama3_1", "qwen3"} {
		b.Run("model="+name, func(b *testing.B) {
			realTokenizer(b, name)
			for range b.N {
				realTokenizer(b, name)
			}
		})
	}
}

// BenchmarkChat renders a conversation of 20 messages of 400 bytes.
func BenchmarkChat(b *testing.B) {
	var messages []Message
	for i := range 20 {
		messages = append(messages, Message{Role: []string{"user", "assistant"}[i%2], Content: strings.Repeat("What is it? ", 33)})
	}
	for _, name := range []string{"llama31", "qwen3"} {
		b.Run("template="+name, func(b *testing.B) {
			source, err := os.ReadFile(filepath.Join(goldens, "templates", name+".jinja"))
			require.NoError(b, err)
			tk := &Tokenizer{specialTexts: map[string]string{"bos_token": "<s>"}}
			require.NoError(b, tk.SetChatTemplate(string(source)))
			b.ReportAllocs()
			for b.Loop() {
				out, err := tk.ApplyChatTemplate(messages, ChatOptions{AddGenerationPrompt: true})
				require.NoError(b, err)
				require.Greater(b, len(out), 20*396)
			}
		})
	}
}
