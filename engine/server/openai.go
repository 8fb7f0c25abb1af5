package server

import (
	"math"
	"strconv"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/metrics"
)

// openAIRequest is what completions and chat completions share.
type openAIRequest struct {
	work     *work
	stream   bool
	usage    bool // stream_options.include_usage: a last chunk with usage
	eachOwn  bool // stream_options.continuous_usage_stats: usage in every chunk
	tokenIDs bool // return_token_ids
	logProbs bool
	top      int
	model    string
	created  int64
}

// openAIFields are names of fields that clients may send; a name one slip away from one of them is taken for a mistake.
var openAIFields = []string{"model", "prompt", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "stream",
	"stream_options", "stop", "stop_token_ids", "seed", "logprobs", "top_logprobs", "echo", "suffix", "best_of", "presence_penalty",
	"frequency_penalty", "repetition_penalty", "logit_bias", "ignore_eos", "min_tokens", "response_format", "tools", "tool_choice",
	"regex", "json_schema", "skip_special_tokens", "return_token_ids", "request_timeout", "chat_template_kwargs"}

// openAICommon reads the fields of both APIs. maxTokens is the default of max_tokens.
func (c *call) openAICommon(o *object, maxTokens int) (*openAIRequest, engine.Sampling, int) {
	m := c.live.model
	q := &openAIRequest{work: &work{}, model: m.name, created: c.start.Unix()}
	s, n := newSampling(maxTokens), 1
	c.checkModel(o)
	least := 0
	if maxTokens == 0 { // no default: 0 stands for "not set" and cannot be asked for
		least = 1
	}
	o.integer("max_tokens", &s.MaxNewTokens, least, math.MaxInt32)
	o.integer("max_completion_tokens", &s.MaxNewTokens, least, math.MaxInt32)
	o.integer("min_tokens", &s.MinNewTokens, 0, math.MaxInt32)
	o.integer("n", &n, 1, maxChoices)
	o.seed("seed", &s.Seed)
	o.sampling(&s, m)
	o.responseFormat(&s)
	o.schema("guided_json", &s.JSONSchema)
	o.text("guided_regex", &s.Regex, maxRegexBytes)
	o.structuredOutputs(&s)
	o.boolean("stream", &q.stream)
	o.boolean("return_token_ids", &q.tokenIDs)
	o.number("request_timeout", &q.work.timeout, 0, 1e9)
	q.streamOptions(o)
	rids := o.rids(1, false)
	if len(rids) > 0 {
		q.work.id = rids[0]
	}
	o.refuse("use regex or response_format", "ebnf", "structural_tag", "guided_choice", "guided_grammar", "stop_regex")
	o.refuse("stop strings are always cut off", "no_stop_trim", "include_stop_str_in_output")
	o.refuse("not part of this server", "lora_path", "prompt_logprobs", "logits_processors", "custom_logit_processor", "prompt_embeds",
		"return_hidden_states", "allowed_token_ids", "bad_words", "use_beam_search", "truncate_prompt_tokens", "min_logprob")
	o.consistent(&s, m, "min_tokens")
	return q, s, n
}

// checkModel refuses a model that is not the one being served. The path it was loaded from and "default" mean it too.
func (c *call) checkModel(o *object) {
	var name string
	o.text("model", &name, maxNameBytes)
	if o.err != nil || c.live.model.answersTo(name) {
		return
	}
	o.fail("model", "model_not_found", "there is no model %q here: GET /v1/models lists what is", name)
	o.err.status, o.err.kind = 404, "not_found_error"
}

func (m *modelInfo) answersTo(name string) bool {
	return name == "" || name == "default" || name == m.name || name == m.path
}

// streamOptions reads stream_options.
func (q *openAIRequest) streamOptions(o *object) {
	so := o.child("stream_options")
	if so == nil {
		return
	}
	so.boolean("include_usage", &q.usage)
	so.boolean("continuous_usage_stats", &q.eachOwn)
	so.ignore("include_obfuscation")
	so.strict()
	o.join(so)
	if !q.stream {
		o.fail("stream_options", "invalid_value", "is only allowed with stream: true")
	}
}

// structuredOutputs reads vLLM's structured_outputs.
func (o *object) structuredOutputs(s *engine.Sampling) {
	so := o.child("structured_outputs")
	if so == nil {
		return
	}
	so.schema("json", &s.JSONSchema)
	so.text("regex", &s.Regex, maxRegexBytes)
	var object bool
	so.boolean("json_object", &object)
	if object {
		s.JSONSchema = `{"type":"object"}`
	}
	so.refuse("use json or regex", "choice", "grammar", "structural_tag")
	so.strict()
	o.join(so)
}

// models lists the model.
func (c *call) models() error {
	m := c.live.model
	buf := []byte(`{"object":"list","data":[`)
	buf = m.appendCard(buf)
	return c.answer(append(buf, "]}\n"...))
}

// model describes one model: GET /v1/models/NAME.
func (c *call) model() error {
	name := c.r.URL.Path[len(modelPrefix):]
	if !c.live.model.answersTo(name) || name == "" {
		return &apiError{status: 404, kind: "not_found_error", code: "model_not_found", param: "model", outcome: metrics.OutcomeInvalid,
			message: "there is no such model here: GET /v1/models lists what is"}
	}
	return c.answer(append(c.live.model.appendCard(nil), '\n'))
}

func (m *modelInfo) appendCard(buf []byte) []byte {
	buf = append(buf, `{"id":`...)
	buf = appendString(buf, m.name)
	buf = append(buf, `,"object":"model","created":`...)
	buf = appendInt(buf, m.loaded.Unix())
	buf = append(buf, `,"owned_by":"tokamak","root":`...)
	buf = appendString(buf, m.path)
	buf = append(buf, `,"parent":null,"max_model_len":`...)
	buf = appendInt(buf, m.maxContext)
	return append(buf, '}')
}

// usage counts tokens over all choices of a request. A prompt counts once, however many choices it has.
type usage struct {
	prompt, completion, cached int
}

func (u usage) append(buf []byte) []byte {
	buf = append(buf, `{"prompt_tokens":`...)
	buf = appendInt(buf, u.prompt)
	buf = append(buf, `,"completion_tokens":`...)
	buf = appendInt(buf, u.completion)
	buf = append(buf, `,"total_tokens":`...)
	buf = appendInt(buf, u.prompt+u.completion)
	buf = append(buf, `,"prompt_tokens_details":{"cached_tokens":`...)
	buf = appendInt(buf, u.cached)
	return append(buf, "}}"...)
}

// promptUsage is the usage of work before any token.
func promptUsage(w *work) usage {
	var u usage
	for i := 0; i < len(w.requests); i += max(1, w.n) {
		u.prompt += len(w.requests[i].InputIDs)
	}
	return u
}

// add counts a finished choice. Cached tokens are those of a prompt's first choice: the others find what it has computed.
func (u *usage) add(out *engine.Output, firstChoice bool) {
	if firstChoice {
		u.cached += out.CachedTokens
	}
}

// finishReason is OpenAI's word for the end of a generation.
func finishReason(out *engine.Output) string {
	switch out.Finish {
	case engine.FinishLength, engine.FinishStop:
		return string(out.Finish)
	}
	return "abort"
}

// appendFinishReason adds finish_reason and SGLang's matched_stop.
func appendFinishReason(buf []byte, done *engine.Output) []byte {
	buf = append(buf, `,"finish_reason":`...)
	if done == nil {
		return append(buf, "null"...)
	}
	buf = appendString(buf, finishReason(done))
	buf = append(buf, `,"matched_stop":`...)
	return appendMatched(buf, done)
}

// appendTokenIDs adds what return_token_ids asks for: a choice's new ids and, with its first ones, those of the prompt.
func appendTokenIDs(buf []byte, ids, prompt []int32) []byte {
	buf = append(buf, `,"token_ids":[`...)
	buf = appendIDs(buf, ids)
	buf = append(buf, ']')
	if prompt != nil {
		buf = append(buf, `,"prompt_token_ids":[`...)
		buf = appendIDs(buf, prompt)
		buf = append(buf, ']')
	}
	return buf
}

// label names a token in lists of log probabilities: its text, or token_id:N without a tokenizer.
func (m *modelInfo) label(id int32) string {
	if m.codec == nil {
		return "token_id:" + strconv.Itoa(int(id))
	}
	return m.tokenText(id)
}

// unusedOpenAI are known fields that change nothing here.
func unusedOpenAI(o *object) {
	o.ignore("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
		"priority", "reasoning_effort", "verbosity", "spaces_between_special_tokens", "add_special_tokens", "rid", "cache_salt", "extra_key")
}

// lenientOpenAI ends the reading of an OpenAI request.
func lenientOpenAI(o *object) {
	unusedOpenAI(o)
	o.lenient(openAIFields)
}

func isFirstChoice(index, n int) bool { return index%max(1, n) == 0 }
