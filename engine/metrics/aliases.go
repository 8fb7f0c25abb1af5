package metrics

import (
	"sort"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// alias gives a family a second name.
type alias struct{ name, as string }

// aliases maps our names to those that gateways and dashboards made for other engines read. Their colons break Prometheus'
// naming rules, which is why they are not there unless asked for. The Gateway API inference extension reads the first three rows
// of vLLM's, and vllm:cache_config_info.
var aliases = map[string][]alias{
	"vllm": {
		{"tokamak_requests_waiting", "vllm:num_requests_waiting"},
		{"tokamak_requests_running", "vllm:num_requests_running"},
		{"tokamak_kv_cache_usage_ratio", "vllm:kv_cache_usage_perc"},
		{"tokamak_kv_cache_usage_ratio", "vllm:gpu_cache_usage_perc"},
		{"tokamak_prefix_cache_queries_tokens_total", "vllm:prefix_cache_queries_total"},
		{"tokamak_prefix_cache_hits_tokens_total", "vllm:prefix_cache_hits_total"},
		{"tokamak_prompt_tokens_total", "vllm:prompt_tokens_total"},
		{"tokamak_generation_tokens_total", "vllm:generation_tokens_total"},
		{"tokamak_preemptions_total", "vllm:num_preemptions_total"},
		{"tokamak_speculative_verifications_total", "vllm:spec_decode_num_drafts_total"},
		{"tokamak_speculative_draft_tokens_total", "vllm:spec_decode_num_draft_tokens_total"},
		{"tokamak_speculative_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"},
		{"tokamak_ttft_seconds", "vllm:time_to_first_token_seconds"},
		{"tokamak_itl_seconds", "vllm:inter_token_latency_seconds"},
		{"tokamak_tpot_seconds", "vllm:request_time_per_output_token_seconds"},
		{"tokamak_e2e_seconds", "vllm:e2e_request_latency_seconds"},
		{"tokamak_queue_seconds", "vllm:request_queue_time_seconds"},
		{"tokamak_request_prompt_tokens", "vllm:request_prompt_tokens"},
		{"tokamak_request_generation_tokens", "vllm:request_generation_tokens"},
	},
	"sglang": {
		{"tokamak_requests_waiting", "sglang:num_queue_reqs"},
		{"tokamak_requests_running", "sglang:num_running_reqs"},
		{"tokamak_kv_cache_usage_ratio", "sglang:token_usage"},
		{"tokamak_kv_cache_used_tokens", "sglang:num_used_tokens"},
		{"tokamak_kv_cache_capacity_tokens", "sglang:max_total_num_tokens"},
		{"tokamak_generation_tokens_per_second", "sglang:gen_throughput"},
		{"tokamak_prompt_tokens_total", "sglang:prompt_tokens_total"},
		{"tokamak_prefix_cache_hits_tokens_total", "sglang:cached_tokens_total"},
		{"tokamak_generation_tokens_total", "sglang:generation_tokens_total"},
		{"tokamak_preemptions_total", "sglang:num_retracted_requests_total"},
		{"tokamak_speculative_accept_length", "sglang:spec_accept_length"},
		{"tokamak_ttft_seconds", "sglang:time_to_first_token_seconds"},
		{"tokamak_itl_seconds", "sglang:inter_token_latency_seconds"},
		{"tokamak_e2e_seconds", "sglang:e2e_request_latency_seconds"},
		{"tokamak_queue_seconds", "sglang:queue_time_seconds"},
	},
}

// AliasChoices lists the values of Options.Aliases.
func AliasChoices() []string { return []string{"", "sglang", "vllm"} }

// aliasGatherer adds renamed copies of a registry's families.
type aliasGatherer struct {
	from  prometheus.Gatherer
	table []alias
}

// Gather implements [prometheus.Gatherer].
func (g *aliasGatherer) Gather() ([]*dto.MetricFamily, error) {
	families, err := g.from.Gather()
	byName := make(map[string]*dto.MetricFamily, len(families))
	for _, f := range families {
		byName[f.GetName()] = f
	}
	for _, a := range g.table {
		if f := byName[a.name]; f != nil {
			families = append(families, &dto.MetricFamily{Name: proto.String(a.as), Help: f.Help, Type: f.Type, Metric: f.Metric, Unit: f.Unit})
		}
	}
	if info := cacheConfig(byName); info != nil {
		families = append(families, info)
	}
	sort.Slice(families, func(i, j int) bool { return families[i].GetName() < families[j].GetName() })
	return families, err
}

// cacheConfig is vLLM's info series of the KV cache's shape, from which gateways work out its capacity.
func cacheConfig(byName map[string]*dto.MetricFamily) *dto.MetricFamily {
	size, pages := byName["tokamak_kv_cache_page_tokens"], byName["tokamak_kv_cache_pages"]
	if size == nil || pages == nil {
		return nil
	}
	label := func(name string, f *dto.MetricFamily) *dto.LabelPair {
		value := strconv.FormatFloat(f.Metric[0].Gauge.GetValue(), 'f', -1, 64)
		return &dto.LabelPair{Name: proto.String(name), Value: proto.String(value)}
	}
	return &dto.MetricFamily{
		Name: proto.String("vllm:cache_config_info"), Help: proto.String("Shape of the KV cache."), Type: dto.MetricType_GAUGE.Enum(),
		Metric: []*dto.Metric{{
			Label: []*dto.LabelPair{label("block_size", size), label("num_gpu_blocks", pages)},
			Gauge: &dto.Gauge{Value: proto.Float64(1)},
		}},
	}
}
