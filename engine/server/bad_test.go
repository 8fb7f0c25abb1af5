package server

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// openAIError is the shape that every refusal must have.
type openAIError struct {
	Error struct {
		Message string
		Type    string
		Param   *string
		Code    string
	}
}

func decodeError(t *testing.T, body string) openAIError {
	t.Helper()
	var e openAIError
	require.NoError(t, json.Unmarshal([]byte(body), &e), "not JSON: %.200s", body)
	require.NotEmpty(t, e.Error.Message)
	require.NotEmpty(t, e.Error.Type)
	require.NotEmpty(t, e.Error.Code)
	return e
}

func TestBadInput(t *testing.T) {
	const (
		gen  = "/generate"
		comp = "/v1/completions"
		chat = "/v1/chat/completions"
		user = `"messages":[{"role":"user","content":"hi"}]`
	)
	long := strings.Repeat("1,", fakeContext) + "1"
	tests := []struct {
		name, path, body string
		status           int
		code, param      string
	}{
		{"empty body", comp, ``, 400, "invalid_json", ""},
		{"malformed JSON", comp, `{"model":"tiny","prompt":`, 400, "invalid_json", ""},
		{"trailing data", comp, `{"model":"tiny","prompt":"a"} {}`, 400, "invalid_json", ""},
		{"array body", comp, `[]`, 400, "invalid_type", ""},
		{"null body", comp, `null`, 400, "invalid_json", ""},
		{"NaN literal", comp, `{"prompt":"a","temperature":NaN}`, 400, "invalid_json", ""},
		{"NaN string", comp, `{"prompt":"a","temperature":"NaN"}`, 400, "invalid_type", "temperature"},
		{"infinite temperature", comp, `{"prompt":"a","temperature":1e999}`, 400, "invalid_value", "temperature"},
		{"negative temperature", comp, `{"prompt":"a","temperature":-1}`, 400, "invalid_value", "temperature"},
		{"invalid UTF-8", comp, "{\"prompt\":\"a\xff\"}", 400, "invalid_utf8", ""},
		{"unknown model", comp, `{"model":"gpt-4","prompt":"a"}`, 404, "model_not_found", "model"},
		{"model of wrong type", comp, `{"model":4,"prompt":"a"}`, 400, "invalid_type", "model"},
		{"no prompt", comp, `{"model":"tiny"}`, 400, "missing_field", "prompt"},
		{"null prompt", comp, `{"model":"tiny","prompt":null}`, 400, "missing_field", "prompt"},
		{"empty prompt", comp, `{"prompt":""}`, 400, "invalid_value", "prompt"},
		{"empty id list", comp, `{"prompt":[]}`, 400, "invalid_value", "prompt"},
		{"empty prompt in a batch", comp, `{"prompt":["a",""]}`, 400, "invalid_value", "prompt[1]"},
		{"prompt of wrong type", comp, `{"prompt":{"a":1}}`, 400, "invalid_type", "prompt"},
		{"mixed prompt", comp, `{"prompt":["a",1]}`, 400, "invalid_type", "prompt[1]"},
		{"mixed ids", comp, `{"prompt":[1,"a"]}`, 400, "invalid_type", "prompt[1]"},
		{"float id", comp, `{"prompt":[1,2.5]}`, 400, "invalid_type", "prompt[1]"},
		{"id outside the vocabulary", comp, `{"prompt":[1,257]}`, 400, "invalid_token_id", "prompt[1]"},
		{"huge id", comp, `{"prompt":[99999999999999999999999]}`, 400, "invalid_token_id", "prompt[0]"},
		{"negative id", comp, `{"prompt":[-1]}`, 400, "invalid_token_id", "prompt[0]"},
		{"prompt too long", comp, `{"prompt":[` + long + `]}`, 400, "context_length_exceeded", "prompt"},
		{"text too long", comp, `{"prompt":"` + strings.Repeat("a", 4*fakeContext) + `"}`, 400, "context_length_exceeded", "prompt"},
		{"negative max_tokens", comp, `{"prompt":"a","max_tokens":-1}`, 400, "invalid_value", "max_tokens"},
		{"zero max_tokens", comp, `{"prompt":"a","max_tokens":0}`, 400, "invalid_value", "max_tokens"},
		{"fractional max_tokens", comp, `{"prompt":"a","max_tokens":1.5}`, 400, "invalid_value", "max_tokens"},
		{"max_tokens as text", comp, `{"prompt":"a","max_tokens":"12"}`, 400, "invalid_type", "max_tokens"},
		{"misspelt field", comp, `{"prompt":"a","max_token":5}`, 400, "unknown_parameter", "max_token"},
		{"misspelt case", comp, `{"prompt":"a","Max_Tokens":5}`, 400, "unknown_parameter", "Max_Tokens"},
		{"suffix", comp, `{"prompt":"a","suffix":"b"}`, 400, "unsupported_parameter", "suffix"},
		{"best_of", comp, `{"prompt":"a","best_of":3}`, 400, "unsupported_parameter", "best_of"},
		{"zero n", comp, `{"prompt":"a","n":0}`, 400, "invalid_value", "n"},
		{"huge n", comp, `{"prompt":"a","n":100000}`, 400, "invalid_value", "n"},
		{"too many generations", comp, `{"prompt":[` + strings.Repeat(`[1],`, 99) + `[1]],"n":100}`, 400, "too_large", "n"},
		{"top_p", comp, `{"prompt":"a","top_p":1.5}`, 400, "invalid_value", "top_p"},
		{"penalty", comp, `{"prompt":"a","presence_penalty":9}`, 400, "invalid_value", "presence_penalty"},
		{"too many stops", comp, `{"prompt":"a","stop":["` + strings.Repeat(`a","`, 40) + `b"]}`, 400, "too_large", "stop"},
		{"long stop", comp, `{"prompt":"a","stop":"` + strings.Repeat("a", 2000) + `"}`, 400, "too_large", "stop"},
		{"empty stop", comp, `{"prompt":"a","stop":["x",""]}`, 400, "invalid_value", "stop[1]"},
		{"stop of wrong type", comp, `{"prompt":"a","stop":5}`, 400, "invalid_type", "stop"},
		{"logit_bias id", comp, `{"prompt":"a","logit_bias":{"999":1}}`, 400, "invalid_token_id", "logit_bias.999"},
		{"logit_bias value", comp, `{"prompt":"a","logit_bias":{"1":"x"}}`, 400, "invalid_type", "logit_bias.1"},
		{"logit_bias size", comp, `{"prompt":"a","logit_bias":` + manyBiases(2000) + `}`, 400, "too_large", "logit_bias"},
		{"many logprobs", comp, `{"prompt":"a","logprobs":50}`, 400, "invalid_value", "logprobs"},
		{"seed as text", comp, `{"prompt":"a","seed":"x"}`, 400, "invalid_type", "seed"},
		{"long regex", comp, `{"prompt":"a","regex":"` + strings.Repeat("a", 9000) + `"}`, 400, "too_large", "regex"},
		{"long schema", comp, `{"prompt":"a","json_schema":{"x":"` + strings.Repeat("a", 70000) + `"}}`, 400, "too_large", "json_schema"},
		{"schema and regex", comp, `{"prompt":"a","json_schema":{},"regex":"a"}`, 400, "invalid_value", "regex"},
		{"schema is no schema", comp, `{"prompt":"a","json_schema":[1]}`, 400, "invalid_value", "json_schema"},
		{"stream_options without stream", comp, `{"prompt":"a","stream_options":{"include_usage":true}}`, 400, "invalid_value", "stream_options"},
		{"unknown stream option", comp, `{"prompt":"a","stream":true,"stream_options":{"usage":true}}`, 400, "unknown_parameter", "stream_options.usage"},
		{"stream as text", comp, `{"prompt":"a","stream":"yes"}`, 400, "invalid_type", "stream"},
		{"echo logprobs stream", comp, `{"prompt":"a","stream":true,"echo":true,"logprobs":1}`, 400, "unsupported_parameter", "echo"},
		{"negative timeout", comp, `{"prompt":"a","request_timeout":-1}`, 400, "invalid_value", "request_timeout"},

		{"no messages", chat, `{"model":"tiny"}`, 400, "missing_field", "messages"},
		{"empty messages", chat, `{"messages":[]}`, 400, "invalid_value", "messages"},
		{"messages of wrong type", chat, `{"messages":"hi"}`, 400, "invalid_type", "messages"},
		{"message of wrong type", chat, `{"messages":["hi"]}`, 400, "invalid_type", "messages[0]"},
		{"unknown role", chat, `{"messages":[{"role":"robot","content":"hi"}]}`, 400, "invalid_value", "messages[0].role"},
		{"no content", chat, `{"messages":[{"role":"user"}]}`, 400, "missing_field", "messages[0].content"},
		{"image", chat, `{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`, 400, "unsupported_parameter", "messages[0].content[0].type"},
		{"template refuses", chat, `{"messages":[{"role":"user","content":"refuse me"}]}`, 400, "chat_template", "messages"},
		{"conversation too long", chat, `{"messages":[{"role":"user","content":"` + strings.Repeat("a", fakeContext) + `"}]}`, 400, "context_length_exceeded", "prompt"},
		{"chat zero max_tokens", chat, `{` + user + `,"max_tokens":0}`, 400, "invalid_value", "max_tokens"},
		{"top_logprobs alone", chat, `{` + user + `,"top_logprobs":2}`, 400, "invalid_value", "top_logprobs"},
		{"tool_choice", chat, `{` + user + `,"tool_choice":"required"}`, 400, "unsupported_parameter", "tool_choice"},
		{"tool without function", chat, `{` + user + `,"tools":[{"type":"function"}]}`, 400, "missing_field", "tools[0].function"},
		{"response_format type", chat, `{` + user + `,"response_format":{"type":"xml"}}`, 400, "invalid_value", "response_format.type"},
		{"response_format without type", chat, `{` + user + `,"response_format":{}}`, 400, "missing_field", "response_format.type"},
		{"response_format without schema", chat, `{` + user + `,"response_format":{"type":"json_schema"}}`, 400, "missing_field", "response_format.json_schema"},
		{"response_format unknown", chat, `{` + user + `,"response_format":{"type":"text","strict":1}}`, 400, "unknown_parameter", "response_format.strict"},
		{"functions", chat, `{` + user + `,"functions":[{"name":"f"}]}`, 400, "unsupported_parameter", "functions"},

		{"nothing to generate from", gen, `{}`, 400, "missing_field", "text"},
		{"text and ids", gen, `{"text":"a","input_ids":[1]}`, 400, "invalid_value", "input_ids"},
		{"text of wrong type", gen, `{"text":5}`, 400, "invalid_type", "text"},
		{"unknown field", gen, `{"text":"a","max_tokens":5}`, 400, "unknown_parameter", "max_tokens"},
		{"unknown sampling field", gen, `{"text":"a","sampling_params":{"max_tokens":5}}`, 400, "unknown_parameter", "sampling_params.max_tokens"},
		{"sampling of wrong type", gen, `{"text":"a","sampling_params":"greedy"}`, 400, "invalid_type", "sampling_params"},
		{"sampling list length", gen, `{"text":["a","b"],"sampling_params":[{}]}`, 400, "invalid_value", "sampling_params"},
		{"n differs", gen, `{"text":["a","b"],"sampling_params":[{"n":1},{"n":2}]}`, 400, "invalid_value", "sampling_params"},
		{"negative max_new_tokens", gen, `{"text":"a","sampling_params":{"max_new_tokens":-1}}`, 400, "invalid_value", "sampling_params.max_new_tokens"},
		{"ids outside the vocabulary", gen, `{"input_ids":[[1],[2,300]]}`, 400, "invalid_token_id", "input_ids[1][1]"},
		{"stream mode", gen, `{"text":"a","stream_mode":"both"}`, 400, "invalid_value", "stream_mode"},
		{"adapter", gen, `{"text":"a","lora_path":"/etc/passwd"}`, 400, "unsupported_parameter", "lora_path"},
		{"image data", gen, `{"text":"a","image_data":["x"]}`, 400, "unsupported_parameter", "image_data"},
		{"rid too long", gen, `{"text":"a","rid":"` + strings.Repeat("r", 200) + `"}`, 400, "too_large", "rid"},
		{"rids of one prompt", gen, `{"text":"a","rid":["x","y"]}`, 400, "invalid_value", "rid"},

		{"anthropic without max_tokens", "/v1/messages", `{` + user + `}`, 400, "missing_field", "max_tokens"},
		{"ollama unknown option", "/api/generate", `{"prompt":"a","sampling":{}}`, 400, "unknown_parameter", "sampling"},
		{"ollama empty prompt", "/api/generate", `{"prompt":""}`, 400, "invalid_value", "prompt"},
		{"abort nothing", "/abort_request", `{}`, 400, "missing_field", "rid"},
		{"detokenize range", "/detokenize", `{"tokens":[999]}`, 400, "invalid_token_id", "tokens[0]"},
		{"tokenize nothing", "/tokenize", `{}`, 400, "missing_field", "prompt"},
		{"no such route", "/v1/embeddings", `{}`, 404, "not_found", ""},
	}
	f := newFake()
	s, _ := testServer(t, f, nil)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := do(s, "POST", tt.path, tt.body)
			e := decodeError(t, w.Body.String())
			assert.Equal(t, tt.status, w.Code, e.Error.Message)
			assert.Equal(t, tt.code, e.Error.Code, e.Error.Message)
			if tt.param == "" {
				assert.Nil(t, e.Error.Param)
			} else if assert.NotNil(t, e.Error.Param, e.Error.Message) {
				assert.Equal(t, tt.param, *e.Error.Param)
			}
			assert.Less(t, len(e.Error.Message), 400, "a message must not echo what was sent at length")
			assert.NotContains(t, w.Body.String(), "/secret/path")
		})
	}
	assert.Empty(t, f.requests(), "a bad request reached the engine")
}

// manyBiases makes a map that is larger than the vocabulary needs: the size must be refused before the ids.
func manyBiases(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"%d":1`, i)
	}
	return "{" + b.String()[1:] + "}"
}

func TestAcceptedInput(t *testing.T) {
	const user = `"messages":[{"role":"user","content":"hi"}]`
	tests := []struct{ name, path, body string }{
		{"nulls count as absent", "/v1/completions", `{"model":null,"prompt":"a","max_tokens":null,"stop":null,"logprobs":null,"suffix":null,"stream_options":null}`},
		{"integral float", "/v1/completions", `{"prompt":"a","max_tokens":3.0}`},
		{"unknown field of another server", "/v1/completions", `{"prompt":"a","mirostat":1}`},
		{"top_k -1", "/v1/completions", `{"prompt":"a","top_k":-1,"top_p":0,"min_p":0.1,"repetition_penalty":1.1,"ignore_eos":true,"min_tokens":1}`},
		{"negative seed", "/v1/completions", `{"prompt":"a","seed":-3}`},
		{"path as model", "/v1/completions", `{"model":"/secret/path/tiny","prompt":"a"}`},
		{"spaced ids", "/v1/completions", "{\"prompt\":[ 1 ,\n\t2 ]}"},
		{"lone surrogate", "/v1/completions", `{"prompt":"\ud800"}`},
		{"object format", "/v1/chat/completions", `{` + user + `,"response_format":{"type":"json_object"}}`},
		{"schema format", "/v1/chat/completions", `{` + user + `,"response_format":{"type":"json_schema","json_schema":{"name":"x","strict":true,"schema":{"type":"object"}}}}`},
		{"assistant with tool calls", "/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":null,"tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]},{"role":"tool","tool_call_id":"1","content":"ok"}]}`},
		{"developer role", "/v1/chat/completions", `{"messages":[{"role":"developer","content":"x"},{"role":"user","content":"hi"}],"user":"me","store":false,"metadata":{}}`},
		{"what bench_serving sends", "/generate", `{"input_ids":[1,2],"sampling_params":{"temperature":0.0,"max_new_tokens":8,"ignore_eos":true},"stream":false,"lora_path":null,"return_logprob":false,"logprob_start_len":-1,"top_logprobs_num":0,"token_ids_logprob":null,"image_data":[]}`},
		{"schema as text", "/generate", `{"text":"a","sampling_params":{"json_schema":"{\"type\":\"object\"}"}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := testServer(t, newFake(), nil)
			w := do(s, "POST", tt.path, tt.body)
			assert.Equal(t, 200, w.Code, w.Body.String())
		})
	}
}

func TestSamplingReachesTheEngine(t *testing.T) {
	f := newFake()
	s, _ := testServer(t, f, nil)
	w := do(s, "POST", "/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}],"max_tokens":7,"min_tokens":2,"temperature":0.25,"top_p":0.5,"top_k":9,
		"min_p":0.125,"presence_penalty":1,"frequency_penalty":-1,"repetition_penalty":1.5,"seed":11,"stop":["zz"],"stop_token_ids":[3],"ignore_eos":true,
		"logit_bias":{"5":-100},"logprobs":true,"top_logprobs":3,"n":2,"skip_special_tokens":false,"cache_salt":"s","response_format":{"type":"json_schema","json_schema":{"schema":{"type":"string"}}}}`)
	require.Equal(t, 200, w.Code, w.Body.String())
	got := f.requests()
	require.Len(t, got, 2)
	seeds := []uint64{*got[0].Sampling.Seed, *got[1].Sampling.Seed}
	assert.ElementsMatch(t, []uint64{11, 12}, seeds, "choices of one seed must differ, and repeat")
	p := got[0].Sampling
	assert.Equal(t, 7, p.MaxNewTokens)
	assert.Equal(t, 2, p.MinNewTokens)
	assert.Equal(t, []float32{0.25, 0.5, 0.125, 1, -1, 1.5}, []float32{p.Temperature, p.TopP, p.MinP, p.PresencePenalty, p.FrequencyPenalty, p.RepetitionPenalty})
	assert.Equal(t, 9, p.TopK)
	assert.Equal(t, []string{"zz"}, p.Stop)
	assert.Equal(t, []int32{3}, p.StopTokenIDs)
	assert.Equal(t, map[int32]float32{5: -100}, p.LogitBias)
	assert.True(t, p.IgnoreEOS && p.LogProbs && !p.SkipSpecialTokens)
	assert.Equal(t, 3, p.TopLogProbs)
	assert.Equal(t, `{"type":"string"}`, p.JSONSchema)
	assert.Equal(t, "s", got[0].CacheSalt)
	assert.Equal(t, "<user>hi<assistant>", fakeCodec{}.Decode(got[0].InputIDs, false), "no second beginning of sequence")
}

func TestWithoutTokenizer(t *testing.T) {
	f := newFake()
	s, _ := testServer(t, nil, nil)
	m := fakeModel()
	m.codec = nil
	s.start(f, m)
	for _, tt := range []struct{ path, body string }{
		{"/generate", `{"text":"a"}`},
		{"/v1/completions", `{"prompt":"a"}`},
		{"/v1/chat/completions", `{"messages":[{"role":"user","content":"hi"}]}`},
		{"/generate", `{"input_ids":[1],"sampling_params":{"stop":"x"}}`},
		{"/generate", `{"input_ids":[1],"sampling_params":{"regex":"x"}}`},
		{"/tokenize", `{"prompt":"a"}`},
		{"/detokenize", `{"tokens":[1]}`},
	} {
		w := do(s, "POST", tt.path, tt.body)
		assert.Equal(t, 400, w.Code)
		assert.Contains(t, decodeError(t, w.Body.String()).Error.Message, "tokenizer")
	}
	w := do(s, "POST", "/v1/completions", `{"prompt":[1,2],"max_tokens":2,"logprobs":1,"echo":true}`)
	require.Equal(t, 200, w.Code, w.Body.String())
	assert.Contains(t, w.Body.String(), `"token_id:104"`)
}
