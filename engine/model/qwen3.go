package model

import "slices"

// qwen3: Qwen3 dense, with an RMSNorm on every query and key head and heads of their own size.
var qwen3 = family{
	name: "qwen3", architecture: "Qwen3ForCausalLM", modelType: "qwen3", gguf: []string{"qwen3"},
	maxPositions: 32768,
	headDim:      128,
	keys:         qwen3Keys,
	apply:        applyQwen3,
}

var qwen3Keys = append(slices.Clone(qwenWindowKeys), key{name: "attention_bias", kind: boolean})

func applyQwen3(s *source, c *Config) error {
	c.QKNorm = true
	if err := refuseBias(s, "attention_bias", "the attention's projections"); err != nil {
		return err
	}
	return qwenWindow(s, c)
}
