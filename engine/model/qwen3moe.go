package model

import "slices"

// qwen3MoE: Qwen3 with a mixture of experts in every layer. Its heads have no default size of their own.
var qwen3MoE = family{
	name: "qwen3_moe", architecture: "Qwen3MoeForCausalLM", modelType: "qwen3_moe", gguf: []string{"qwen3moe"},
	maxPositions: 32768,
	keys: append(slices.Clone(qwen3Keys),
		key{name: "num_experts", min: 1, max: maxExperts},
		key{name: "num_local_experts", min: 1, max: maxExperts},
		key{name: "num_experts_per_tok", min: 1, max: maxExperts},
		key{name: "moe_intermediate_size", min: 1, max: maxHidden},
		key{name: "norm_topk_prob", kind: boolean},
		key{name: "decoder_sparse_step", min: 1, max: 1},
		key{name: "mlp_only_layers", kind: ids},
	),
	apply: func(s *source, c *Config) error {
		c.NumExperts = get(s.values, "num_experts", 128)
		c.NumExpertsPerToken = get(s.values, "num_experts_per_tok", 8)
		c.MoEIntermediateSize = get(s.values, "moe_intermediate_size", 768)
		c.NormTopKProb = get(s.values, "norm_topk_prob", false)
		if c.NumExpertsPerToken > c.NumExperts {
			return s.errorf(s.blame("num_experts_per_tok", "num_experts"),
				"%d experts for each token of %d experts: want num_experts_per_tok to be at most num_experts", c.NumExpertsPerToken, c.NumExperts)
		}
		if dense := get[[]int32](s.values, "mlp_only_layers", nil); len(dense) > 0 {
			return s.errorf("mlp_only_layers", "%d layers without experts, a mixture is not supported: want []", len(dense))
		}
		return applyQwen3(s, c)
	},
}
