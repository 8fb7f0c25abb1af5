package server

import (
	"encoding/json"
	"math"
	"strconv"

	"github.com/tokamak-engine/tokamak/engine"
)

// newSampling is what APIs start from when a client sets nothing: plain sampling from the model's distribution.
func newSampling(maxNewTokens int) engine.Sampling {
	s := engine.DefaultSampling(maxNewTokens)
	s.Temperature = 1
	return s
}

// sampling reads the fields that have one name and meaning in SGLang's and OpenAI's APIs.
func (o *object) sampling(s *engine.Sampling, m *modelInfo) {
	o.number("temperature", &s.Temperature, 0, 100)
	o.number("top_p", &s.TopP, 0, 1)
	o.integer("top_k", &s.TopK, -1, math.MaxInt32)
	o.number("min_p", &s.MinP, 0, 1)
	o.number("frequency_penalty", &s.FrequencyPenalty, -2, 2)
	o.number("presence_penalty", &s.PresencePenalty, -2, 2)
	o.number("repetition_penalty", &s.RepetitionPenalty, 1e-3, 1e3)
	o.texts("stop", &s.Stop, maxStops, maxStopBytes)
	o.ids("stop_token_ids", &s.StopTokenIDs, maxStopTokens, m.vocabSize)
	o.boolean("ignore_eos", &s.IgnoreEOS)
	o.boolean("skip_special_tokens", &s.SkipSpecialTokens)
	o.logitBias(s, m.vocabSize)
	o.text("regex", &s.Regex, maxRegexBytes)
	o.schema("json_schema", &s.JSONSchema)

	s.TopK = max(0, s.TopK)
	if s.TopP == 0 { // nothing but the likeliest token
		s.TopK, s.TopP = 1, 1
	}
	for i, stop := range s.Stop {
		if stop == "" {
			o.fail(at("stop", i), "invalid_value", "is empty: a stop string needs a character")
		}
	}
	if m.codec == nil && len(s.Stop) > 0 {
		o.fail("stop", "unsupported_parameter", "the server runs without a tokenizer: use stop_token_ids")
	}
}

// consistent checks, after all fields were read, what they are together. minimum names the field of MinNewTokens.
func (o *object) consistent(s *engine.Sampling, m *modelInfo, minimum string) {
	switch {
	case s.MaxNewTokens > 0 && s.MinNewTokens > s.MaxNewTokens:
		o.fail(minimum, "invalid_value", "is %d, above the %d tokens asked for at most", s.MinNewTokens, s.MaxNewTokens)
	case s.JSONSchema != "" && s.Regex != "":
		o.fail("regex", "invalid_value", "regex and a JSON schema exclude each other")
	case m.codec == nil && (s.JSONSchema != "" || s.Regex != ""):
		o.fail("response_format", "unsupported_parameter", "the server runs without a tokenizer: it cannot constrain text")
	}
}

// seed reads a 64-bit integer; negative ones count as their two's complement.
func (o *object) seed(name string, dst **uint64) {
	raw, ok := o.take(name)
	if !ok {
		return
	}
	if n, err := strconv.ParseUint(string(raw), 10, 64); err == nil {
		*dst = &n
		return
	}
	n, ok := wholeNumber(raw)
	if !ok {
		o.fail(name, "invalid_type", "is %s: want a 64-bit integer", clip(raw))
		return
	}
	seed := uint64(n)
	*dst = &seed
}

func (o *object) logitBias(s *engine.Sampling, vocab int) {
	c := o.child("logit_bias")
	if c == nil {
		return
	}
	defer o.join(c)
	if len(c.fields) > maxLogitBias {
		o.fail("logit_bias", "too_large", "has %d entries: want at most %d", len(c.fields), maxLogitBias)
		return
	}
	if len(c.fields) == 0 {
		return
	}
	s.LogitBias = make(map[int32]float32, len(c.fields))
	for key, raw := range c.fields {
		id, err := strconv.ParseInt(key, 10, 32)
		if err != nil || id < 0 || id >= int64(vocab) {
			c.fail(clip(json.RawMessage(key)), "invalid_token_id", "is not a token id: want 0 to %d", vocab-1)
			return
		}
		if v, ok := c.numberOf(key, raw, -100, 100); ok {
			s.LogitBias[int32(id)] = float32(v)
		}
	}
}

// schema reads a JSON schema given as an object, as SGLang's string of one, or as true: any value.
func (o *object) schema(name string, dst *string) {
	if raw, ok := o.take(name); ok {
		o.schemaOf(name, raw, dst)
	}
}

func (o *object) schemaOf(name string, raw json.RawMessage, dst *string) {
	if raw[0] == '"' {
		var s string
		o.textOf(name, raw, &s, maxSchemaBytes)
		if o.err != nil || s == "" {
			return
		}
		raw = json.RawMessage(s)
	}
	var fields map[string]json.RawMessage
	switch {
	case len(raw) > maxSchemaBytes:
		o.fail(name, "too_large", "has %d bytes: want at most %d", len(raw), maxSchemaBytes)
	case string(raw) == "true":
		*dst = "{}"
	case json.Unmarshal(raw, &fields) != nil || fields == nil:
		o.fail(name, "invalid_value", "is not a JSON schema: want an object")
	default:
		*dst = string(raw)
	}
}

// responseFormat reads OpenAI's response_format.
func (o *object) responseFormat(s *engine.Sampling) {
	c := o.child("response_format")
	if c == nil {
		return
	}
	defer o.join(c)
	var kind string
	c.text("type", &kind, maxNameBytes)
	switch kind {
	case "text", "":
	case "json_object":
		s.JSONSchema = `{"type":"object"}`
	case "json_schema":
		inner := c.child("json_schema")
		if inner == nil {
			c.fail("json_schema", "missing_field", "want an object with name and schema")
			return
		}
		s.JSONSchema = "{}"
		inner.schema("schema", &s.JSONSchema)
		inner.ignore("name", "description", "strict")
		inner.strict()
		c.join(inner)
	default:
		c.fail("type", "invalid_value", "is %q: want text, json_object or json_schema", kind)
	}
	if c.err == nil && kind == "" {
		c.fail("type", "missing_field", "want text, json_object or json_schema")
	}
	c.strict()
}
