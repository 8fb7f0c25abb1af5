package server

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "rewrite testdata/wire from what the server answers now")

// TestWire compares whole answers with transcripts. Clients depend on each byte: read the diff before -update.
func TestWire(t *testing.T) {
	const hello = `"messages":[{"role":"system","content":"be brief"},{"role":"user","content":[{"type":"text","text":"hi"}]}]`
	tests := []struct{ name, method, path, body string }{
		{"generate", "POST", "/generate", `{"text":"hi","sampling_params":{"max_new_tokens":3}}`},
		{"generate_ids", "POST", "/generate", `{"input_ids":[104,105],"sampling_params":{"max_new_tokens":2},"rid":"mine"}`},
		{"generate_batch", "POST", "/generate", `{"text":["a","b"],"sampling_params":[{"max_new_tokens":1},{"max_new_tokens":2}]}`},
		{"generate_n", "POST", "/generate", `{"text":"a","sampling_params":{"max_new_tokens":1,"n":2}}`},
		{"generate_logprobs", "POST", "/generate", `{"text":"ab","sampling_params":{"max_new_tokens":2},"return_logprob":true,"top_logprobs_num":2,"logprob_start_len":0,"return_text_in_logprobs":true}`},
		{"generate_stop", "POST", "/generate", `{"text":"a","sampling_params":{"max_new_tokens":50,"stop":"lo"}}`},
		{"generate_stream", "POST", "/generate", `{"text":"hi","sampling_params":{"max_new_tokens":4,"stop":["l"]},"stream":true}`},
		{"generate_stream_delta", "POST", "/generate", `{"text":"hi","sampling_params":{"max_new_tokens":3},"stream":true,"stream_mode":"delta","return_logprob":true}`},
		{"generate_put", "PUT", "/generate", `{"text":"hi","sampling_params":{"max_new_tokens":1}}`},
		{"completions", "POST", "/v1/completions", `{"model":"tiny","prompt":"hi","max_tokens":3}`},
		{"completions_echo_logprobs", "POST", "/v1/completions", `{"model":"tiny","prompt":"hi","max_tokens":2,"echo":true,"logprobs":1}`},
		{"completions_score", "POST", "/v1/completions", `{"model":"tiny","prompt":[104,105],"max_tokens":0,"echo":true,"logprobs":0}`},
		{"completions_batch_n", "POST", "/v1/completions", `{"model":"tiny","prompt":[[1,2],[3]],"max_tokens":1,"n":2,"return_token_ids":true}`},
		{"completions_stream", "POST", "/v1/completions", `{"model":"tiny","prompt":"hi","max_tokens":2,"stream":true,"stream_options":{"include_usage":true}}`},
		{"completions_stream_continuous", "POST", "/v1/completions", `{"model":"tiny","prompt":"hi","max_tokens":2,"stream":true,"echo":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`},
		{"chat", "POST", "/v1/chat/completions", `{"model":"tiny",` + hello + `,"max_tokens":3}`},
		{"chat_logprobs", "POST", "/v1/chat/completions", `{"model":"tiny",` + hello + `,"max_completion_tokens":1,"logprobs":true,"top_logprobs":2}`},
		{"chat_tools", "POST", "/v1/chat/completions", `{"model":"tiny",` + hello + `,"max_tokens":1,"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"auto"}`},
		{"chat_stream", "POST", "/v1/chat/completions", `{"model":"tiny",` + hello + `,"max_tokens":3,"stream":true,"stream_options":{"include_usage":true},"stop":["l"]}`},
		{"chat_n", "POST", "/v1/chat/completions", `{"model":"tiny",` + hello + `,"max_tokens":1,"n":2,"seed":5}`},
		{"messages", "POST", "/v1/messages", `{"model":"tiny","system":"be brief","max_tokens":3,"messages":[{"role":"user","content":"hi"}]}`},
		{"messages_stream", "POST", "/v1/messages", `{"model":"tiny","max_tokens":8,"stop_sequences":["lo"],"stream":true,"messages":[{"role":"user","content":"hi"}]}`},
		{"ollama_generate", "POST", "/api/generate", `{"model":"tiny","prompt":"hi","options":{"num_predict":2}}`},
		{"ollama_chat", "POST", "/api/chat", `{"model":"tiny","stream":false,"messages":[{"role":"user","content":"hi"}],"options":{"num_predict":2,"num_ctx":2048}}`},
		{"ollama_tags", "GET", "/api/tags", ""},
		{"models", "GET", "/v1/models", ""},
		{"model", "GET", "/v1/models/tiny", ""},
		{"model_info", "GET", "/get_model_info", ""},
		{"load", "GET", "/get_load", ""},
		{"flush_cache", "POST", "/flush_cache", ""},
		{"abort_unknown", "POST", "/abort_request", `{"rid":"nobody"}`},
		{"tokenize", "POST", "/tokenize", `{"prompt":"hi"}`},
		{"tokenize_batch", "POST", "/tokenize", `{"text":["hi","a"],"add_special_tokens":false}`},
		{"detokenize", "POST", "/detokenize", `{"tokens":[256,104,105]}`},
		{"profile_absent", "POST", "/start_profile", ``},
		{"health", "GET", "/health", ""},
		{"health_generate", "GET", "/health_generate", ""},
		{"not_found", "GET", "/v2/models", ""},
		{"method_not_allowed", "GET", "/v1/completions", ""},
	}
	at := time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newFake()
			f.clock = func() time.Time { return at }
			s, _ := testServer(t, f, nil)
			s.now = f.clock
			s.newID = func() string { return "id0" }
			w := do(s, tt.method, tt.path, tt.body)

			var b strings.Builder
			fmt.Fprintf(&b, "%s %s\n%s\n\n%d\n", tt.method, tt.path, tt.body, w.Code)
			names := make([]string, 0, len(w.Header()))
			for name := range w.Header() {
				names = append(names, name)
			}
			sort.Strings(names)
			for _, name := range names {
				fmt.Fprintf(&b, "%s: %s\n", name, w.Header().Get(name))
			}
			b.WriteString("\n" + w.Body.String())

			file := filepath.Join("testdata", "wire", tt.name+".txt")
			if *update {
				require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o755))
				require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err, "run with -update to make it")
			assert.Equal(t, string(want), b.String())
		})
	}
}
