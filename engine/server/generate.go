package server

import (
	"encoding/json"
	"math"

	"github.com/tokamak-engine/tokamak/engine"
)

// generateRequest is a decoded POST /generate.
type generateRequest struct {
	work           *work
	batch          bool
	stream         bool
	delta          bool // stream_mode "delta": each event holds new text and ids alone
	logProbs       bool
	topLogProbs    int
	promptLogProbs int // first prompt token to report; -1 reports none
	textInLogProbs bool
}

const defaultNewTokens = 128 // of the native API, as SGLang's

// generate answers SGLang's native API.
func (c *call) generate() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	q, err := decodeGenerate(o, c.live.model, c.s.newID)
	if err != nil {
		return err
	}
	enc := newGenerateEncoder(c, q)
	if q.stream {
		return c.stream(q.work, enc)
	}
	outputs, err := c.collect(q.work)
	if err != nil {
		return err
	}
	var buf []byte
	if q.batch {
		buf = append(buf, '[')
	}
	for i, out := range outputs {
		if i > 0 {
			buf = append(buf, ',')
		}
		c.tokens += len(out.TokenIDs)
		buf = enc.whole(buf, i, out)
	}
	if q.batch {
		buf = append(buf, ']')
	}
	return c.answer(append(buf, '\n'))
}

// decodeGenerate reads a native request. What is unknown is refused: a field that SGLang heeds and this server silently does not
// would give another answer than was asked for.
func decodeGenerate(o *object, m *modelInfo, newID func() string) (*generateRequest, error) {
	q := &generateRequest{work: &work{}, promptLogProbs: -1}
	list, batch := o.nativePrompts(m)
	q.batch = batch

	rids := o.rids(len(list), batch)
	o.boolean("stream", &q.stream)
	mode := "cumulative"
	o.text("stream_mode", &mode, maxNameBytes)
	if mode != "cumulative" && mode != "delta" {
		o.fail("stream_mode", "invalid_value", "is %q: want cumulative or delta", mode)
	}
	q.delta = mode == "delta"
	o.boolean("return_logprob", &q.logProbs)
	o.integer("top_logprobs_num", &q.topLogProbs, 0, maxTopLogProbs)
	o.integer("logprob_start_len", &q.promptLogProbs, -1, math.MaxInt32)
	o.boolean("return_text_in_logprobs", &q.textInLogProbs)
	o.number("request_timeout", &q.work.timeout, 0, 1e9)
	var salt string
	o.text("extra_key", &salt, maxNameBytes)
	o.text("cache_salt", &salt, maxNameBytes)

	samplings, n := o.samplingParams(max(1, len(list)), m)
	o.refuse("this server has text models without adapters", "input_embeds", "image_data", "video_data", "audio_data", "lora_path", "lora_id")
	o.refuse("not part of this server", "token_ids_logprob", "return_hidden_states", "session_params", "custom_logit_processor",
		"return_entropy", "return_routed_experts", "return_bytes", "session_id")
	o.ignore("log_metrics", "modalities", "priority", "background", "conversation_id", "no_logs", "custom_labels", "data_parallel_rank",
		"bootstrap_host", "bootstrap_port", "bootstrap_room", "return_prompt_token_ids", "stream_options", "model", "require_reasoning",
		"label", "routing_key", "return_meta_info")
	o.strict()
	if o.err != nil {
		return nil, o.err
	}
	field := "input_ids"
	if len(list) > 0 && list[0].isText {
		field = "text"
	}
	if err := m.resolve(field, list); err != nil {
		return nil, err
	}
	if len(list)*n > maxGenerations {
		return nil, badRequest("sampling_params.n", "too_large", "%d prompts of %d generations each: want at most %d together", len(list), n, maxGenerations)
	}
	q.batch = q.batch || n > 1
	q.work.id = newID()
	if len(rids) > 0 {
		q.work.id = rids[0]
	}
	for i, p := range list {
		s := samplings[min(i, len(samplings)-1)]
		s.LogProbs, s.TopLogProbs = q.logProbs, 0
		if q.logProbs {
			s.TopLogProbs = q.topLogProbs
		}
		q.work.add(engine.Request{InputIDs: p.ids, Sampling: s, CacheSalt: salt, PromptLogProbs: q.logProbs && q.promptLogProbs >= 0}, n)
	}
	return q, nil
}

// nativePrompts reads text or input_ids.
func (o *object) nativePrompts(m *modelInfo) (list []prompt, batch bool) {
	if o.has("text") && o.has("input_ids") {
		o.fail("input_ids", "invalid_value", "text and input_ids exclude each other")
		return nil, false
	}
	if raw, ok := o.take("text"); ok {
		return o.textPrompts("text", raw)
	}
	if raw, ok := o.take("input_ids"); ok {
		return o.idPrompts("input_ids", raw, m)
	}
	o.fail("text", "missing_field", "want text or input_ids")
	return nil, false
}

// rids reads the client's own id, or one for each prompt of a batch, of which the first names the whole.
func (o *object) rids(prompts int, batch bool) []string {
	var rids []string
	o.texts("rid", &rids, maxBatchPrompts, maxIDBytes)
	if len(rids) > 1 && (!batch || len(rids) != prompts) {
		o.fail("rid", "invalid_value", "has %d ids for %d prompts", len(rids), prompts)
	}
	if len(rids) > 0 && rids[0] == "" {
		return nil
	}
	return rids
}

// samplingParams reads one object for all prompts or a list with one for each. n must be the same in all.
func (o *object) samplingParams(prompts int, m *modelInfo) (list []engine.Sampling, n int) {
	raw, ok := o.take("sampling_params")
	if !ok {
		return []engine.Sampling{newSampling(defaultNewTokens)}, 1
	}
	items := []json.RawMessage{raw}
	if raw[0] == '[' {
		if items, ok = o.listOf("sampling_params", raw, maxBatchPrompts, "an object"); !ok {
			return nil, 1
		}
		if len(items) != prompts {
			o.fail("sampling_params", "invalid_value", "has %d items for %d prompts", len(items), prompts)
			return nil, 1
		}
	}
	for i, item := range items {
		c := o.childOf("sampling_params", item)
		if c == nil {
			return nil, 1
		}
		s, choices := c.nativeSampling(m)
		o.join(c)
		if i > 0 && choices != n {
			o.fail("sampling_params", "invalid_value", "n differs between prompts")
		}
		n = choices
		list = append(list, s)
	}
	return list, n
}

func (o *object) nativeSampling(m *modelInfo) (s engine.Sampling, n int) {
	s, n = newSampling(defaultNewTokens), 1
	o.integer("max_new_tokens", &s.MaxNewTokens, 0, math.MaxInt32)
	o.integer("min_new_tokens", &s.MinNewTokens, 0, math.MaxInt32)
	o.integer("n", &n, 1, maxChoices)
	o.seed("sampling_seed", &s.Seed)
	o.seed("seed", &s.Seed)
	o.sampling(&s, m)
	o.refuse("use regex or json_schema", "ebnf", "structural_tag", "stop_regex")
	o.refuse("the stop string is always cut off", "no_stop_trim")
	o.ignore("spaces_between_special_tokens", "stream_interval", "custom_params")
	o.strict()
	o.consistent(&s, m, "min_new_tokens")
	return s, n
}
