package server

import (
	"encoding/json"
	"math"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
)

// FuzzDecode feeds bodies to every generating route's decoder. Whatever comes in, the answer is one of OpenAI's errors or a
// request within the bounds, and all of it is valid JSON.
func FuzzDecode(f *testing.F) {
	for _, body := range []string{
		`{"text":"hi","sampling_params":{"max_new_tokens":3,"stop":["a"],"n":2},"stream":true}`,
		`{"input_ids":[[1,2],[3]],"sampling_params":[{"top_p":0},{"json_schema":"{}"}],"return_logprob":true}`,
		`{"model":"tiny","prompt":"a","max_tokens":2,"logit_bias":{"1":5},"echo":true,"logprobs":1,"stream":true}`,
		`{"messages":[{"role":"user","content":[{"type":"text","text":"x"}]}],"tools":[{"type":"function","function":{"name":"f"}}],"response_format":{"type":"json_object"}}`,
		`{"prompt":[1,2.5],"temperature":1e999}`, `{"prompt":"\ud800","seed":-1}`, `{"max_tokens":1,"messages":[]}`, `[]`, "{\"a\":\"\xff\"}",
	} {
		for route := range uint8(5) {
			f.Add(route, []byte(body))
		}
	}
	paths := []string{"/generate", "/v1/completions", "/v1/chat/completions", "/v1/messages", "/api/chat"}
	engines := newFake()
	engines.before = func(r engine.Request) error {
		if err := withinBounds(r); err != "" {
			panic(err)
		}
		return engine.ErrQueueFull // decoding is what is tested
	}
	s, _ := testServer(f, engines, nil)
	f.Fuzz(func(t *testing.T, route uint8, body []byte) {
		w := do(s, "POST", paths[int(route)%len(paths)], string(body))
		require.True(t, w.Code == 429 || w.Code >= 400 && w.Code < 500, "status %d: %s", w.Code, w.Body)
		require.True(t, json.Valid(w.Body.Bytes()), "%q", w.Body)
		require.True(t, utf8.Valid(w.Body.Bytes()), "%q", w.Body)
		require.Less(t, w.Body.Len(), 4096)
	})
}

// withinBounds says what is wrong with a request that a decoder let pass.
func withinBounds(r engine.Request) string {
	p := r.Sampling
	for _, v := range []float32{p.Temperature, p.TopP, p.MinP, p.PresencePenalty, p.FrequencyPenalty, p.RepetitionPenalty} {
		if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
			return "a number that is none"
		}
	}
	for _, id := range append(append([]int32(nil), r.InputIDs...), p.StopTokenIDs...) {
		if id < 0 || id >= fakeVocab {
			return "an id outside the vocabulary"
		}
	}
	switch {
	case len(r.InputIDs) == 0 || len(r.InputIDs) >= fakeContext:
		return "a prompt of no length or too much"
	case p.MaxNewTokens < 0 || p.MinNewTokens < 0 || p.TopK < 0 || p.TopP <= 0 || p.TopP > 1 || p.RepetitionPenalty <= 0:
		return "a sampling field out of range"
	case len(p.Stop) > maxStops || len(p.LogitBias) > maxLogitBias || len(p.Regex) > maxRegexBytes || len(p.JSONSchema) > maxSchemaBytes:
		return "a list that is too long"
	}
	return ""
}

// FuzzAppendString checks the encoder of strings against the decoder of the standard library.
func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "plain", "\"\\\n\r\t\x00\x1f\x7f", "é中😀", "\xff\xfe", "\u2028\u2029", "</script>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var back string
		require.NoError(t, json.Unmarshal(appendString(nil, s), &back))
		want := string([]rune(s)) // invalid bytes become U+FFFD
		require.Equal(t, want, back)
	})
}
