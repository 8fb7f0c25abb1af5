package metrics

import "github.com/prometheus/client_golang/prometheus"

// Engine is an engine's state at one moment. Counters only grow.
type Engine struct {
	Healthy          bool
	Running, Waiting int // requests

	UsedPages, CachedPages, NumPages, PageSize int
	MaxRunning                                 int     // requests that can run at once
	OutputRate                                 float64 // tokens a second
	PromptRate                                 float64 // computed prompt tokens a second

	PromptTokens, CachedTokens, PrefillTokens, OutputTokens, SurplusTokens uint64
	DraftedRows, DraftTokens, AcceptedTokens                               uint64 // speculation
	Preemptions, EvictedPages, Steps                                       uint64
	LaunchSeconds, WaitSeconds                                             float64
}

// row is one series family read from the engine. A row with a label has several values.
type row struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(*Engine) float64
}

func counter(name, help string, value func(*Engine) float64) row {
	return row{prometheus.NewDesc(name, help, nil, nil), prometheus.CounterValue, value}
}

func gauge(name, help string, value func(*Engine) float64) row {
	return row{prometheus.NewDesc(name, help, nil, nil), prometheus.GaugeValue, value}
}

var rows = []row{
	gauge("tokamak_engine_healthy", "1 while the backend works, 0 after it failed.", func(e *Engine) float64 {
		if e.Healthy {
			return 1
		}
		return 0
	}),
	gauge("tokamak_requests_running", "Requests that hold a slot of the batch.", func(e *Engine) float64 { return float64(e.Running) }),
	gauge("tokamak_requests_waiting", "Requests in the queue, preempted ones included.", func(e *Engine) float64 { return float64(e.Waiting) }),
	gauge("tokamak_requests_running_limit", "Requests that can run at once.", func(e *Engine) float64 { return float64(e.MaxRunning) }),
	gauge("tokamak_kv_cache_usage_ratio", "Part of the KV cache held by running requests, 0 to 1.", func(e *Engine) float64 {
		return float64(e.UsedPages) / float64(max(1, e.NumPages))
	}),
	gauge("tokamak_kv_cache_capacity_tokens", "Tokens that the KV cache holds.", func(e *Engine) float64 { return float64(e.NumPages * e.PageSize) }),
	gauge("tokamak_kv_cache_used_tokens", "Tokens of KV cache held by running requests, in whole pages.", func(e *Engine) float64 { return float64(e.UsedPages * e.PageSize) }),
	gauge("tokamak_kv_cache_reusable_tokens", "Tokens of KV cache kept by the prefix cache alone: reclaimable.", func(e *Engine) float64 { return float64(e.CachedPages * e.PageSize) }),
	gauge("tokamak_kv_cache_page_tokens", "Tokens of one KV page.", func(e *Engine) float64 { return float64(e.PageSize) }),
	gauge("tokamak_kv_cache_pages", "Pages of the KV cache.", func(e *Engine) float64 { return float64(e.NumPages) }),
	gauge("tokamak_generation_tokens_per_second", "Output tokens a second over the last second of work.", func(e *Engine) float64 { return e.OutputRate }),
	gauge("tokamak_prefill_tokens_per_second", "Computed prompt tokens a second over the last second of work.", func(e *Engine) float64 { return e.PromptRate }),
	counter("tokamak_prompt_tokens_total", "Prompt tokens of admitted requests, cached ones included.", func(e *Engine) float64 { return float64(e.PromptTokens) }),
	counter("tokamak_prefix_cache_queries_tokens_total", "Prompt tokens looked up in the prefix cache.", func(e *Engine) float64 { return float64(e.PromptTokens) }),
	counter("tokamak_prefix_cache_hits_tokens_total", "Prompt tokens found in the prefix cache.", func(e *Engine) float64 { return float64(e.CachedTokens) }),
	counter("tokamak_prefill_tokens_total", "Prompt tokens put through the model.", func(e *Engine) float64 { return float64(e.PrefillTokens) }),
	counter("tokamak_generation_tokens_total", "Output tokens delivered.", func(e *Engine) float64 { return float64(e.OutputTokens) }),
	counter("tokamak_surplus_tokens_total", "Tokens sampled one step ahead for requests that had ended.", func(e *Engine) float64 { return float64(e.SurplusTokens) }),
	counter("tokamak_speculative_verifications_total", "Times that a request's draft tokens were verified.", func(e *Engine) float64 { return float64(e.DraftedRows) }),
	counter("tokamak_speculative_draft_tokens_total", "Draft tokens verified.", func(e *Engine) float64 { return float64(e.DraftTokens) }),
	counter("tokamak_speculative_accepted_tokens_total", "Draft tokens that were accepted.", func(e *Engine) float64 { return float64(e.AcceptedTokens) }),
	gauge("tokamak_speculative_accept_length", "Mean tokens of a verification, 1 and more; 0 before the first.", func(e *Engine) float64 {
		if e.DraftedRows == 0 {
			return 0
		}
		return 1 + float64(e.AcceptedTokens)/float64(e.DraftedRows)
	}),
	counter("tokamak_preemptions_total", "Times that a running request lost its pages to another.", func(e *Engine) float64 { return float64(e.Preemptions) }),
	counter("tokamak_prefix_cache_evicted_pages_total", "Pages that the prefix cache gave up.", func(e *Engine) float64 { return float64(e.EvictedPages) }),
	counter("tokamak_steps_total", "Steps launched.", func(e *Engine) float64 { return float64(e.Steps) }),
	counter("tokamak_step_launch_seconds_total", "Host time spent to schedule and launch steps.", func(e *Engine) float64 { return e.LaunchSeconds }),
	counter("tokamak_step_wait_seconds_total", "Host time spent in waiting for the device.", func(e *Engine) float64 { return e.WaitSeconds }),
}

// engineCollector reads the engine once a scrape.
type engineCollector struct {
	engine func() (Engine, bool)
}

// Describe implements [prometheus.Collector].
func (c *engineCollector) Describe(ch chan<- *prometheus.Desc) {
	for i := range rows {
		ch <- rows[i].desc
	}
}

// Collect implements [prometheus.Collector].
func (c *engineCollector) Collect(ch chan<- prometheus.Metric) {
	e, ok := c.engine()
	if !ok {
		return
	}
	for i := range rows {
		ch <- prometheus.MustNewConstMetric(rows[i].desc, rows[i].kind, rows[i].value(&e))
	}
}
