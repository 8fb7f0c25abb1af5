package load

import (
	"testing"
)

// FuzzRead feeds every kind's reader with events of any content: it may refuse them, but must come to terms with them.
func FuzzRead(f *testing.F) {
	for _, seed := range []string{
		`{"text":"t ","output_ids":[1],"meta_info":{"finish_reason":{"type":"length"},"prompt_tokens":3,"completion_tokens":1,"cached_tokens":0}}`,
		`{"choices":[{"index":0,"text":"t ","finish_reason":null}],"usage":{"prompt_tokens":1,"completion_tokens":1}}`,
		`{"choices":[{"delta":{"content":"x","reasoning_content":"y"}}]}`,
		`{"choices":[],"usage":null}`, `{"error":{"message":"m"}}`, `{"error":"m"}`, `[DONE]`, `null`, `[1]`, `"s"`, `{}`,
		`{"content":"c","tokens":[1,2],"stop":true,"stop_type":"limit","tokens_predicted":2}`,
		`{"response":"r","done":true,"eval_count":-5}`, `{"text_output":"t"}`, `{"choices":{"0":{"text":[1]}},"meta_info":7}`,
	} {
		f.Add([]byte(seed), []byte(seed))
	}
	f.Fuzz(func(t *testing.T, first, second []byte) {
		for _, k := range Kinds() {
			c := &Client{Kind: k}
			r := Result{WantOutput: 2}
			var s reply
			for _, data := range [][]byte{first, second} {
				d, failure := c.event(data)
				if failure != nil {
					break
				}
				r.take(d, 1, &s, true)
			}
			r.finish(&s, true)
			r.settle()
			_ = r.check(k, &Sampling{IgnoreEOS: true})
			for _, chunk := range r.Chunks {
				if chunk.Tokens < 0 {
					t.Fatalf("%s: a chunk of %d tokens from %q, %q", k.Name, chunk.Tokens, first, second)
				}
			}
		}
	})
}
