package load

import (
	"bytes"
	"math"

	"github.com/tidwall/gjson"

	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// fields is a JSON object; encoding/json sorts its keys, so bodies are the same from run to run.
type fields map[string]any

// generateBody is SGLang's native form, which Tokamak's own server takes, too.
func generateBody(p *prompt, s *Sampling) any {
	sampling := fields{"temperature": s.Temperature, "max_new_tokens": p.outputLen, "ignore_eos": s.IgnoreEOS}
	if s.TopP != 1 {
		sampling["top_p"] = s.TopP
	}
	body := fields{"sampling_params": sampling, "stream": s.Stream}
	if p.ids != nil {
		body["input_ids"] = p.ids
	} else {
		body["text"] = p.text
	}
	return body
}

// deltaBody asks Tokamak's own server for streams that do not repeat all the text so far with every token.
func deltaBody(p *prompt, s *Sampling) any {
	body := generateBody(p, s).(fields)
	if s.Stream {
		body["stream_mode"] = "delta"
	}
	return body
}

func openAIBody(p *prompt, s *Sampling) fields {
	body := fields{"model": s.Model, "temperature": s.Temperature, "stream": s.Stream, "ignore_eos": s.IgnoreEOS}
	if s.TopP != 1 {
		body["top_p"] = s.TopP
	}
	if s.Stream {
		// The running count tells how many tokens a chunk holds; chunks of several would read as slow tokens without it.
		body["stream_options"] = fields{"include_usage": true, "continuous_usage_stats": true}
	}
	return body
}

func completionsBody(p *prompt, s *Sampling) any {
	body := openAIBody(p, s)
	body["prompt"] = p.idsOrText()
	body["max_tokens"] = p.outputLen
	return body
}

func chatBody(p *prompt, s *Sampling) any {
	body := openAIBody(p, s)
	body["messages"] = p.messages
	if p.messages == nil {
		body["messages"] = []datasets.Message{{Role: "user", Content: p.text}}
	}
	body["max_completion_tokens"] = p.outputLen
	return body
}

// strictly leaves out what is not in OpenAI's own API, which refuses fields it does not know.
func strictly(body func(*prompt, *Sampling) any) func(*prompt, *Sampling) any {
	return func(p *prompt, s *Sampling) any {
		b := body(p, s).(fields)
		delete(b, "ignore_eos")
		if s.Stream {
			b["stream_options"] = fields{"include_usage": true}
		}
		return b
	}
}

// llamaBody is llama.cpp's native form.
func llamaBody(p *prompt, s *Sampling) any {
	return fields{
		"prompt": p.idsOrText(), "n_predict": p.outputLen, "temperature": s.Temperature, "top_p": s.TopP, "ignore_eos": s.IgnoreEOS,
		"stream": s.Stream, "return_tokens": true, "cache_prompt": true,
	}
}

func ollamaBody(p *prompt, s *Sampling) any {
	return fields{
		"model": s.Model, "prompt": p.text, "raw": true, "stream": s.Stream,
		"options": fields{"num_predict": p.outputLen, "temperature": s.Temperature, "top_p": s.TopP},
	}
}

// tritonBody is the generate extension of Triton in front of TensorRT-LLM.
func tritonBody(p *prompt, s *Sampling) any {
	body := fields{
		"text_input": p.text, "max_tokens": p.outputLen, "temperature": s.Temperature, "top_p": s.TopP, "stream": s.Stream,
		"accumulate_tokens": false,
	}
	if s.IgnoreEOS {
		body["min_length"] = p.outputLen
	}
	return body
}

var doneMark = []byte("[DONE]")

// text returns a string's value; the usual one, without escapes, costs no copy of its own.
func text(r gjson.Result) []byte { return []byte(r.String()) }

// count reads a number of tokens; what cannot be one is not known.
func count(r gjson.Result) Count {
	n := r.Int()
	if r.Type != gjson.Number || n < 0 || n > math.MaxInt32 {
		return Count{}
	}
	return known(int(n))
}

// readDelta is [readGenerate] for a stream of deltas.
func readDelta(data []byte, d *delta) {
	readGenerate(data, d)
	d.cumulative = false
}

// problem gives the message of an "error" field in any of the forms servers use.
func problem(r gjson.Result) string {
	if !r.Exists() || r.Type == gjson.Null {
		return ""
	}
	if message := r.Get("message"); message.Exists() {
		return message.String()
	}
	return r.String()
}

func readGenerate(data []byte, d *delta) {
	if bytes.Equal(data, doneMark) {
		d.end = true
		return
	}
	gjson.ParseBytes(data).ForEach(func(key, value gjson.Result) bool {
		switch key.Str {
		case "text":
			d.text, d.cumulative = text(value), true
		case "output_ids":
			d.outputIDs = value
		case "error":
			d.err = problem(value)
		case "meta_info":
			value.ForEach(func(key, value gjson.Result) bool {
				switch key.Str {
				case "completion_tokens":
					d.completion = count(value)
				case "prompt_tokens":
					d.prompt = count(value)
				case "cached_tokens":
					d.cached = count(value)
				case "finish_reason":
					if value.IsObject() {
						d.finish = value.Get("type").String()
						if message := value.Get("message"); d.finish == "abort" && message.Exists() {
							d.err = message.String()
						}
					} else {
						d.finish = value.String()
					}
				}
				return true
			})
		}
		return true
	})
}

func readOpenAI(data []byte, d *delta) {
	if bytes.Equal(data, doneMark) {
		d.end = true
		return
	}
	gjson.ParseBytes(data).ForEach(func(key, value gjson.Result) bool {
		switch key.Str {
		case "choices":
			first := value.Get("0")
			d.total = !first.Exists()
			first.ForEach(func(key, value gjson.Result) bool {
				switch key.Str {
				case "text":
					d.text = text(value)
				case "delta", "message":
					// A thinking model's thoughts are tokens as well.
					for _, name := range [...]string{"reasoning_content", "reasoning", "content"} {
						d.text = append(d.text, text(value.Get(name))...)
					}
				case "finish_reason":
					d.finish = value.String()
				}
				return true
			})
			d.content = len(d.text) > 0
		case "usage":
			d.completion, d.prompt = count(value.Get("completion_tokens")), count(value.Get("prompt_tokens"))
			d.cached = count(value.Get("prompt_tokens_details.cached_tokens"))
		case "error":
			d.err = problem(value)
		}
		return true
	})
}

func readLlama(data []byte, d *delta) {
	if bytes.Equal(data, doneMark) {
		d.end = true
		return
	}
	r := gjson.ParseBytes(data)
	d.err = problem(r.Get("error"))
	d.text = text(r.Get("content"))
	ids := r.Get("tokens")
	ids.ForEach(func(_, _ gjson.Result) bool { d.tokens++; return true })
	d.content = d.tokens > 0 || len(d.text) > 0
	if !r.Get("stop").Bool() {
		return
	}
	d.end, d.total = true, true
	d.completion = count(r.Get("tokens_predicted"))
	d.prompt = count(r.Get("tokens_evaluated"))
	d.cached = count(r.Get("timings.cache_n"))
	d.finish = r.Get("stop_type").String()
	switch d.finish {
	case "limit":
		d.finish = "length"
	case "word":
		d.finish = "stop"
	}
}

func readOllama(data []byte, d *delta) {
	r := gjson.ParseBytes(data)
	d.err = problem(r.Get("error"))
	d.text = append(text(r.Get("thinking")), text(r.Get("response"))...)
	d.content = len(d.text) > 0
	if r.Get("done").Bool() {
		d.end, d.total = true, true
		d.finish = r.Get("done_reason").String()
		d.completion, d.prompt = count(r.Get("eval_count")), count(r.Get("prompt_eval_count"))
	}
}

func readTriton(data []byte, d *delta) {
	r := gjson.ParseBytes(data)
	d.err = problem(r.Get("error"))
	d.text = text(r.Get("text_output"))
	d.content = len(d.text) > 0
}
