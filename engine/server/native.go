package server

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"runtime/debug"
	"strings"
	"time"

	"github.com/tokamak-engine/tokamak/engine"
)

// plain answers with one line of text.
func (c *call) plain(status int, line string) error {
	c.w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	c.w.WriteHeader(status)
	c.w.Write([]byte(line + "\n"))
	return nil
}

// health answers 200 when requests would be served: model loaded, backend working, not shutting down.
func (c *call) health() error {
	if err := c.s.health().err(); err != nil {
		return err
	}
	return c.plain(http.StatusOK, "ok")
}

// healthz answers 200 as long as a restart would not help: also while the model loads and while requests drain.
func (c *call) healthz() error {
	if c.s.health() == failed {
		return errUnhealthy
	}
	return c.plain(http.StatusOK, "alive")
}

// readyz answers 200 when new requests should be sent here.
func (c *call) readyz() error { return c.health() }

// healthGenerate answers 200 when a token has been generated.
func (c *call) healthGenerate() error {
	const within = 20 * time.Second
	s := engine.DefaultSampling(1)
	s.IgnoreEOS = true
	ctx, cancel := context.WithTimeoutCause(c.r.Context(), within, errDeadline)
	defer cancel()
	_, err := c.live.gen.Generate(ctx, engine.Request{ID: "health-" + c.s.newID(), InputIDs: []int32{0}, Sampling: s, CacheSalt: "health"})
	if err != nil {
		return apiErrorOf(ctx, err).because(err)
	}
	return c.plain(http.StatusOK, "ok")
}

func (c *call) metrics() error {
	c.s.metrics.Handler().ServeHTTP(c.w, c.r)
	return nil
}

// flushCache empties the prefix cache; with ?timeout=SECONDS it waits that long for running requests to end.
func (c *call) flushCache() error {
	const poll = 10 * time.Millisecond
	wait, err := time.Duration(0), error(nil)
	if t := c.r.URL.Query().Get("timeout"); t != "" {
		if wait, err = parseSeconds(t); err != nil {
			return badRequest("timeout", "invalid_value", "timeout: %s", err)
		}
	}
	deadline := time.Now().Add(wait)
	for {
		err := c.live.gen.FlushCache()
		if err == nil {
			return c.plain(http.StatusOK, "Cache flushed.")
		}
		if !errors.Is(err, engine.ErrBusy) {
			return err
		}
		if time.Now().After(deadline) {
			return badRequest("", "busy", "the cache was not flushed: %s", err)
		}
		select {
		case <-c.r.Context().Done():
			return c.r.Context().Err()
		case <-time.After(poll):
		}
		c.extendWrite()
	}
}

// abortRequest ends the request with the id that the client gave (rid) or was given (id), or all of them.
func (c *call) abortRequest() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	var rid string
	var all bool
	o.text("rid", &rid, maxIDBytes)
	o.boolean("abort_all", &all)
	o.ignore("finished_reason", "abort_message", "abort_reason")
	o.strict()
	if o.err == nil && rid == "" && !all {
		o.fail("rid", "missing_field", "want a request's id, or abort_all: true")
	}
	if o.err != nil {
		return o.err
	}
	aborted := 0
	for _, id := range c.s.active.find(rid, all) {
		if c.live.gen.Abort(id) {
			aborted++
		}
	}
	return c.answerJSON(map[string]any{"success": true, "aborted": aborted})
}

func (c *call) answerJSON(v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return c.answer(append(body, '\n'))
}

func (c *call) getModelInfo() error {
	m := c.live.model
	return c.answerJSON(map[string]any{
		"model_path": m.path, "tokenizer_path": m.tokenizerPath, "served_model_name": m.name, "is_generation": true,
		"has_image_understanding": false, "has_audio_understanding": false,
		"preferred_sampling_params": nil, "weight_version": "default",
		"vocab_size": m.vocabSize, "context_length": m.maxContext,
	})
}

// getServerInfo tells all options, as SGLang does, and the engine's state. The API key is not among the options.
func (c *call) getServerInfo() error {
	m, st := c.live.model, c.live.gen.Stats()
	info := map[string]any{}
	options, server := m.options, c.s.options
	for _, row := range append(options.Table(), server.Table()...) {
		if _, hidden := row.Value.(*secret); hidden {
			continue
		}
		info[strings.ReplaceAll(row.Name, "-", "_")] = optionValue(row.Value)
	}
	info["served_model_name"] = m.name
	info["version"] = Version()
	info["backend"], info["device_name"] = m.backend, m.device
	info["max_total_num_tokens"], info["context_len"], info["max_running_requests"] = m.capacity, m.maxContext, m.maxRunning
	acceptLength, _ := st.AcceptLength()
	info["internal_states"] = []any{map[string]any{
		"avg_spec_accept_length":                acceptLength,
		"last_gen_throughput":                   st.OutputTokRate,
		"effective_max_running_requests_per_dp": m.maxRunning,
		"memory_usage":                          map[string]any{"token_capacity": m.capacity},
		"num_running_reqs":                      st.Running,
		"num_waiting_reqs":                      st.Waiting,
		"num_used_tokens":                       st.UsedTokens,
		"prompt_tokens_total":                   st.PromptTokensTotal,
		"cached_tokens_total":                   st.CachedTokensTotal,
		"output_tokens_total":                   st.OutputTokensTotal,
		"preemptions_total":                     st.PreemptionsTotal,
		"spec_verifications_total":              st.DraftedRowsTotal,
		"spec_draft_tokens_total":               st.DraftTokensTotal,
		"spec_accepted_tokens_total":            st.AcceptedTotal,
		"steps_total":                           st.StepsTotal,
		"last_batch_rows":                       st.LastBatchRows,
		"healthy":                               c.live.gen.Err() == nil,
	}}
	return c.answerJSON(info)
}

// optionValue is an option's value as JSON shows it.
func optionValue(v any) any {
	switch v := v.(type) {
	case *string:
		return *v
	case *bool:
		return *v
	case *int:
		return *v
	case *int64:
		return *v
	case *float64:
		return *v
	case *seconds:
		return time.Duration(*v).Seconds()
	}
	return nil
}

// Version is the module's version as the build recorded it.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// getLoad tells routers how busy the engine is.
func (c *call) getLoad() error {
	st := c.live.gen.Stats()
	return c.answerJSON([]any{map[string]any{
		"dp_rank": 0, "num_reqs": st.Running + st.Waiting, "num_waiting_reqs": st.Waiting, "num_tokens": st.UsedTokens,
	}})
}

// tokenize turns text into token ids.
func (c *call) tokenize() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	m := c.live.model
	var list []prompt
	batch, special := false, true
	name := "prompt"
	if o.has("text") {
		name = "text"
	}
	if raw, ok := o.take(name); ok {
		list, batch = o.textPrompts(name, raw)
	} else {
		o.fail("prompt", "missing_field", "want a string or a list of strings")
	}
	o.boolean("add_special_tokens", &special)
	c.checkModel(o)
	o.strict()
	if o.err != nil {
		return o.err
	}
	all, counts := make([][]int32, len(list)), make([]int, len(list))
	for i, p := range list {
		if all[i], err = m.encode(name, p.text, special); err != nil {
			return err
		}
		counts[i] = len(all[i])
	}
	answer := map[string]any{"tokens": all, "count": counts, "max_model_len": m.maxContext}
	if !batch {
		answer["tokens"], answer["count"] = all[0], counts[0]
	}
	return c.answerJSON(answer)
}

// detokenize turns token ids into text.
func (c *call) detokenize() error {
	o, err := c.object()
	if err != nil {
		return err
	}
	m := c.live.model
	var list []prompt
	batch, skip := false, true
	if raw, ok := o.take("tokens"); ok {
		list, batch = o.idPrompts("tokens", raw, m)
	} else {
		o.fail("tokens", "missing_field", "want a list of token ids or a list of such lists")
	}
	o.boolean("skip_special_tokens", &skip)
	c.checkModel(o)
	o.strict()
	if m.codec == nil {
		o.fail("tokens", "unsupported_parameter", "the server runs without a tokenizer")
	}
	if o.err != nil {
		return o.err
	}
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = m.codec.Decode(p.ids, skip)
	}
	answer := map[string]any{"text": texts}
	if !batch {
		answer["text"] = texts[0]
	}
	return c.answerJSON(answer)
}
