package stub

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/tidwall/gjson"
)

// answer is the state of one reply.
type answer struct {
	wire    *wire
	request *Request
	reply   *Reply
	prompt  int // prompt tokens told
	done    int // tokens sent, the current chunk's included
	fresh   int // tokens of the current chunk
}

// text is n tokens' text: two bytes each.
func text(n int) string { return strings.Repeat("t ", n) }

// finish is the current chunk's finish reason as JSON.
func (a *answer) finish(last bool) string {
	if !last {
		return "null"
	}
	return fmt.Sprintf("%q", a.reply.Finish)
}

// wire is one server's form of requests and answers.
type wire struct {
	prompts []string // paths of the field that holds the prompt
	limits  []string // paths of the field that holds the number of tokens to generate
	lines   bool     // JSON lines
	chunk   func(a *answer, last bool) []byte
	end     func(a *answer) [][]byte // events after the last chunk
	whole   func(a *answer) []byte   // an answer that is not streamed
}

var wires = map[string]*wire{
	"/generate": {
		prompts: []string{"input_ids", "text"}, limits: []string{"sampling_params.max_new_tokens"},
		chunk: generateChunk, end: doneEvent, whole: func(a *answer) []byte {
			a.done, a.fresh = a.reply.Tokens, a.reply.Tokens
			return generateChunk(a, true)
		},
	},
	"/v1/completions": {
		prompts: []string{"prompt"}, limits: []string{"max_tokens"},
		chunk: func(a *answer, last bool) []byte { return openAIChunk(a, last, `"text":"`+text(a.fresh)+`"`) },
		end:   openAIEnd,
		whole: func(a *answer) []byte { return openAIWhole(a, `"text":"`+text(a.reply.Tokens)+`"`) },
	},
	"/v1/chat/completions": {
		prompts: []string{"messages.#.content"}, limits: []string{"max_completion_tokens", "max_tokens"},
		chunk: func(a *answer, last bool) []byte {
			return openAIChunk(a, last, `"delta":{"content":"`+text(a.fresh)+`"}`)
		},
		end:   openAIEnd,
		whole: func(a *answer) []byte { return openAIWhole(a, `"message":{"content":"`+text(a.reply.Tokens)+`"}`) },
	},
	"/completion": {
		prompts: []string{"prompt"}, limits: []string{"n_predict"},
		chunk: func(a *answer, _ bool) []byte {
			return fmt.Appendf(nil, `{"content":"%s","tokens":[1%s],"stop":false}`, text(a.fresh), strings.Repeat(",1", a.fresh-1))
		},
		end:   func(a *answer) [][]byte { return [][]byte{llamaEnd(a, "")} },
		whole: func(a *answer) []byte { return llamaEnd(a, text(a.reply.Tokens)) },
	},
	"/api/generate": {
		prompts: []string{"prompt"}, limits: []string{"options.num_predict"}, lines: true,
		chunk: func(a *answer, _ bool) []byte {
			return fmt.Appendf(nil, `{"response":"%s","done":false}`, text(a.fresh))
		},
		end:   func(a *answer) [][]byte { return [][]byte{ollamaEnd(a, "")} },
		whole: func(a *answer) []byte { return ollamaEnd(a, text(a.reply.Tokens)) },
	},
	"/v2/models/ensemble/generate_stream": {
		prompts: []string{"text_input"}, limits: []string{"max_tokens"},
		chunk: func(a *answer, _ bool) []byte { return fmt.Appendf(nil, `{"text_output":"%s"}`, text(a.fresh)) },
		end:   func(*answer) [][]byte { return nil },
		whole: func(a *answer) []byte { return fmt.Appendf(nil, `{"text_output":"%s"}`, text(a.reply.Tokens)) },
	},
}

// size gives the number of prompt tokens (ids, or words) and of tokens to generate.
func (w *wire) size(body []byte) (prompt, limit int) {
	for _, path := range w.prompts {
		value := gjson.GetBytes(body, path)
		value.ForEach(func(_, v gjson.Result) bool {
			if v.Type == gjson.String {
				prompt += len(strings.Fields(v.Str))
			} else {
				prompt++
			}
			return true
		})
		if prompt > 0 {
			break
		}
	}
	for _, path := range w.limits {
		if value := gjson.GetBytes(body, path); value.Exists() {
			return prompt, int(value.Int())
		}
	}
	return prompt, 16
}

// frame wraps an event for the stream.
func (w *wire) frame(buf, event []byte) []byte {
	if w.lines {
		return append(append(buf, event...), '\n')
	}
	return append(append(append(buf, "data: "...), event...), "\n\n"...)
}

func doneEvent(*answer) [][]byte { return [][]byte{[]byte("[DONE]")} }

// generateChunk holds the text so far, as SGLang's does, or only what is new if that was asked for.
func generateChunk(a *answer, last bool) []byte {
	finish := "null"
	if last {
		finish = fmt.Sprintf(`{"type":%q,"length":%d}`, a.reply.Finish, a.done)
	}
	n := a.done
	if bytes.Contains(a.request.Body, []byte(`"stream_mode":"delta"`)) {
		n = a.fresh
	}
	return fmt.Appendf(nil, `{"text":"%s","meta_info":{"id":"stub","finish_reason":%s,"prompt_tokens":%d,"completion_tokens":%d,"cached_tokens":%d}}`,
		text(n), finish, a.prompt, a.done, a.reply.CachedTokens)
}

func usage(a *answer) string {
	return fmt.Sprintf(`"usage":{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}`,
		a.prompt, a.done, a.prompt+a.done, a.reply.CachedTokens)
}

func openAIChunk(a *answer, last bool, content string) []byte {
	tail := ""
	if bytes.Contains(a.request.Body, []byte(`"continuous_usage_stats":true`)) {
		tail = "," + usage(a)
	}
	return fmt.Appendf(nil, `{"id":"stub","object":"chunk","created":1,"model":"stub","choices":[{"index":0,%s,"finish_reason":%s}]%s}`,
		content, a.finish(last), tail)
}

func openAIEnd(a *answer) [][]byte {
	var events [][]byte
	if gjson.GetBytes(a.request.Body, "stream_options.include_usage").Bool() {
		events = append(events, fmt.Appendf(nil, `{"id":"stub","object":"chunk","created":1,"model":"stub","choices":[],%s}`, usage(a)))
	}
	return append(events, []byte("[DONE]"))
}

func openAIWhole(a *answer, content string) []byte {
	a.done = a.reply.Tokens
	return fmt.Appendf(nil, `{"id":"stub","choices":[{"index":0,%s,"finish_reason":%s}],%s}`, content, a.finish(true), usage(a))
}

func llamaEnd(a *answer, content string) []byte {
	stop := map[string]string{"length": "limit", "stop": "word"}[a.reply.Finish]
	return fmt.Appendf(nil, `{"content":"%s","tokens":[],"stop":true,"stop_type":"%s","tokens_predicted":%d,"tokens_evaluated":%d,"timings":{"cache_n":%d}}`,
		content, stop, a.reply.Tokens, a.prompt, a.reply.CachedTokens)
}

func ollamaEnd(a *answer, response string) []byte {
	return fmt.Appendf(nil, `{"response":"%s","done":true,"done_reason":%q,"prompt_eval_count":%d,"eval_count":%d}`,
		response, a.reply.Finish, a.prompt, a.reply.Tokens)
}
