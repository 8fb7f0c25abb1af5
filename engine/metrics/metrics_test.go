package metrics

import (
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func state() (Engine, bool) {
	return Engine{
		Healthy: true, Running: 3, Waiting: 5, UsedPages: 25, CachedPages: 10, NumPages: 100, PageSize: 16, MaxRunning: 8,
		PromptTokens: 1000, CachedTokens: 400, PrefillTokens: 600, OutputTokens: 77, Preemptions: 2,
	}, true
}

func scrape(t *testing.T, m *Metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, 200, w.Code)
	return w.Body.String()
}

func TestNamesAreLintClean(t *testing.T) {
	m := New(Options{ModelName: "m", Engine: state})
	m.Finish(Finished{E2E: time.Second, TTFT: time.Millisecond, PromptTokens: 3, OutputTokens: 2})
	problems, err := testutil.GatherAndLint(m.Gatherer())
	require.NoError(t, err)
	assert.Empty(t, problems)
}

func TestEngineSeries(t *testing.T) {
	body := scrape(t, New(Options{ModelName: "m", Engine: state}))
	for _, want := range []string{
		`tokamak_requests_running{model_name="m"} 3`,
		`tokamak_requests_waiting{model_name="m"} 5`,
		`tokamak_kv_cache_usage_ratio{model_name="m"} 0.25`,
		`tokamak_kv_cache_capacity_tokens{model_name="m"} 1600`,
		`tokamak_prefix_cache_hits_tokens_total{model_name="m"} 400`,
		`tokamak_generation_tokens_total{model_name="m"} 77`,
		`tokamak_preemptions_total{model_name="m"} 2`,
		`tokamak_engine_healthy{model_name="m"} 1`,
		`tokamak_requests_total{model_name="m",outcome="rejected"} 0`,
	} {
		assert.Contains(t, body, want+"\n")
	}
	assert.NotContains(t, body, "vllm:")
}

func TestNoEngineYet(t *testing.T) {
	body := scrape(t, New(Options{ModelName: "m", Engine: func() (Engine, bool) { return Engine{}, false }}))
	assert.NotContains(t, body, "tokamak_requests_running{", "a series of an engine that is not there must be absent, not 0")
	assert.Contains(t, body, "tokamak_requests_total{")
}

func TestAliases(t *testing.T) {
	vllm := scrape(t, New(Options{ModelName: "m", Engine: state, Aliases: "vllm"}))
	for _, want := range []string{
		`vllm:num_requests_waiting{model_name="m"} 5`,
		`vllm:num_requests_running{model_name="m"} 3`,
		`vllm:kv_cache_usage_perc{model_name="m"} 0.25`,
		`vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1`,
		`tokamak_requests_waiting{model_name="m"} 5`,
	} {
		assert.Contains(t, vllm, want+"\n")
	}
	sglang := scrape(t, New(Options{ModelName: "m", Engine: state, Aliases: "sglang"}))
	assert.Contains(t, sglang, `sglang:cached_tokens_total{model_name="m"} 400`+"\n")
	for _, table := range aliases {
		seen := map[string]bool{}
		for _, a := range table {
			assert.False(t, seen[a.as], a.as)
			seen[a.as] = true
			body := vllm + sglang
			assert.True(t, strings.Contains(body, "# TYPE "+a.as+" "), "%s names no series of ours", a.name)
		}
	}
}

func TestLatencies(t *testing.T) {
	m := New(Options{ModelName: "m"})
	m.InterToken(30*time.Millisecond, 3)
	m.InterToken(time.Second, 0)
	m.Finish(Finished{Queue: time.Millisecond, TTFT: 100 * time.Millisecond, E2E: 300 * time.Millisecond, PromptTokens: 7, OutputTokens: 5})
	m.Finish(Finished{E2E: 300 * time.Millisecond, PromptTokens: 7})
	m.Ended(OutcomeOK)
	body := scrape(t, m)
	for _, want := range []string{
		`tokamak_itl_seconds_count{model_name="m"} 3`,
		`tokamak_itl_seconds_bucket{model_name="m",le="0.008"} 0`,
		`tokamak_itl_seconds_bucket{model_name="m",le="0.01"} 3`,
		`tokamak_tpot_seconds_sum{model_name="m"} 0.05`,
		`tokamak_ttft_seconds_count{model_name="m"} 1`, // a request without tokens has no first one
		`tokamak_e2e_seconds_count{model_name="m"} 2`,
		`tokamak_request_prompt_tokens_sum{model_name="m"} 14`,
		`tokamak_requests_total{model_name="m",outcome="ok"} 1`,
	} {
		assert.Contains(t, body, want+"\n")
	}
}
