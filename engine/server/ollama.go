package server

import (
	"math"
	"time"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// ollamaVersion is what Ollama's clients ask for first. They compare it with the least version they work with.
func (c *call) ollamaVersion() error {
	return c.answerJSON(map[string]any{"version": "0.12.0", "server": "tokamak " + Version()})
}

func (c *call) ollamaTags() error {
	m := c.live.model
	return c.answerJSON(map[string]any{"models": []any{map[string]any{
		"name": m.name, "model": m.name, "modified_at": m.loaded.UTC().Format(time.RFC3339),
		"details": map[string]any{"family": "tokamak", "format": m.options.LoadFormat},
	}}})
}

// ollamaGenerate answers Ollama's completion of one prompt, which goes through the chat template unless raw is set.
func (c *call) ollamaGenerate() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	var text, system string
	var raw bool
	o.text("prompt", &text, math.MaxInt)
	o.text("system", &system, math.MaxInt)
	o.boolean("raw", &raw)
	o.refuse("text models continue text, they do not fill gaps", "suffix", "images", "template", "context")
	e, s := c.ollamaCommon(o, "response")
	if o.err != nil {
		return o.err
	}
	m := c.live.model
	var ids []int32
	if raw {
		list := []prompt{{text: text, isText: true}}
		err = m.resolve("prompt", list)
		ids = list[0].ids
	} else {
		var conversation []tokenizer.Message
		if system != "" {
			conversation = append(conversation, tokenizer.Message{Role: "system", Content: system})
		}
		if text == "" {
			return badRequest("prompt", "invalid_value", "prompt: is empty: want at least one character")
		}
		ids, err = m.encodeChat(append(conversation, tokenizer.Message{Role: "user", Content: text}), tokenizer.ChatOptions{AddGenerationPrompt: true})
	}
	if err != nil {
		return err
	}
	return c.ollamaRun(e, s, ids)
}

// ollamaChat answers Ollama's chat.
func (c *call) ollamaChat() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	conversation := o.chatMessages()
	options := tokenizer.ChatOptions{AddGenerationPrompt: true}
	if raw, ok := o.take("tools"); ok {
		options.Tools, _ = o.listOf("tools", raw, maxMessages, "a list of tools")
	}
	e, s := c.ollamaCommon(o, "message")
	if o.err != nil {
		return o.err
	}
	ids, err := c.live.model.encodeChat(conversation, options)
	if err != nil {
		return err
	}
	return c.ollamaRun(e, s, ids)
}

// ollamaCommon reads what both routes share. Ollama streams unless told not to, and has its sampling fields in options.
func (c *call) ollamaCommon(o *object, field string) (*ollamaEncoder, engine.Sampling) {
	m := c.live.model
	e := &ollamaEncoder{c: c, w: &work{id: "ollama-" + c.s.newID()}, field: field, stream: true}
	s := newSampling(0)
	c.checkModel(o)
	o.boolean("stream", &e.stream)
	if raw, ok := o.take("format"); ok {
		if string(raw) == `"json"` {
			s.JSONSchema = `{"type":"object"}`
		} else {
			o.schemaOf("format", raw, &s.JSONSchema)
		}
	}
	if p := o.child("options"); p != nil {
		limit := -1
		p.integer("num_predict", &limit, -2, math.MaxInt32)
		s.MaxNewTokens = max(0, limit)
		p.number("repeat_penalty", &s.RepetitionPenalty, 1e-3, 1e3)
		p.seed("seed", &s.Seed)
		p.sampling(&s, m)
		p.consistent(&s, m, "num_predict")
		o.join(p) // the rest tunes Ollama's own engine
	}
	o.ignore("keep_alive", "think", "truncate", "shift")
	o.strict()
	return e, s
}

func (c *call) ollamaRun(e *ollamaEncoder, s engine.Sampling, ids []int32) error {
	if s.MaxNewTokens == 0 {
		s.MaxNewTokens = c.live.model.room(len(ids))
	}
	e.w.add(engine.Request{InputIDs: ids, Sampling: s}, 1)
	if e.stream {
		return c.stream(e.w, e)
	}
	outputs, err := c.collect(e.w)
	if err != nil {
		return err
	}
	c.tokens = len(outputs[0].TokenIDs)
	return c.answer(e.line(nil, outputs[0].Text, outputs[0]))
}

// ollamaEncoder writes Ollama's lines of JSON.
type ollamaEncoder struct {
	c      *call
	w      *work
	field  string // "response" or "message"
	stream bool
}

func (e *ollamaEncoder) contentType() string { return "application/x-ndjson" }

func (e *ollamaEncoder) event(buf []byte, _ int, ev *engine.Event) []byte {
	if ev.Done == nil {
		return e.line(buf, ev.Text, nil)
	}
	if ev.Text != "" {
		buf = e.line(buf, ev.Text, nil)
	}
	return e.line(buf, "", ev.Done)
}

func (e *ollamaEncoder) finish(buf []byte) []byte { return buf }

func (e *ollamaEncoder) fail(buf []byte, err *apiError) []byte {
	buf = append(buf, `{"error":`...)
	buf = appendString(buf, err.message)
	return append(buf, "}\n"...)
}

func (e *ollamaEncoder) line(buf []byte, text string, done *engine.Output) []byte {
	buf = append(buf, `{"model":`...)
	buf = appendString(buf, e.c.live.model.name)
	buf = append(buf, `,"created_at":"`...)
	buf = e.c.s.now().UTC().AppendFormat(buf, time.RFC3339Nano)
	buf = append(buf, `",`...)
	if e.field == "message" {
		buf = append(buf, `"message":{"role":"assistant","content":`...)
		buf = append(appendString(buf, text), '}')
	} else {
		buf = append(buf, `"response":`...)
		buf = appendString(buf, text)
	}
	if done == nil {
		return append(buf, ",\"done\":false}\n"...)
	}
	buf = append(buf, `,"done":true,"done_reason":`...)
	buf = appendString(buf, finishReason(done))
	buf = append(buf, `,"total_duration":`...)
	buf = appendInt(buf, int64(done.Finished.Sub(e.c.start)))
	buf = append(buf, `,"load_duration":0,"prompt_eval_count":`...)
	buf = appendInt(buf, done.PromptTokens)
	buf = append(buf, `,"prompt_eval_duration":`...)
	buf = appendInt(buf, int64(done.FirstToken.Sub(done.Scheduled)))
	buf = append(buf, `,"eval_count":`...)
	buf = appendInt(buf, len(done.TokenIDs))
	buf = append(buf, `,"eval_duration":`...)
	buf = appendInt(buf, int64(done.Finished.Sub(done.FirstToken)))
	return append(buf, "}\n"...)
}
