package model

// llama: Llama 2 and 3.x, and models of the same architecture such as SmolLM2.
var llama = family{
	name: "llama", architecture: "LlamaForCausalLM", modelType: "llama", gguf: []string{"llama"},
	maxPositions: 2048,
	keys: []key{
		{name: "attention_bias", kind: boolean},
		{name: "mlp_bias", kind: boolean},
		{name: "pretraining_tp", min: 1, max: 1 << 10}, // how it was trained; the sums are the same
	},
	apply: func(s *source, c *Config) error {
		if err := refuseBias(s, "attention_bias", "the attention's output projection"); err != nil {
			return err
		}
		if err := refuseBias(s, "mlp_bias", "the MLP's projections"); err != nil {
			return err
		}
		c.QKVBias = get(s.values, ggufQKVBias, false)
		return nil
	},
}

// refuseBias: a bias where no backend adds one must not be dropped in silence.
func refuseBias(s *source, name, where string) error {
	if get(s.values, name, false) {
		return s.errorf(name, "true is not supported, there is no bias on %s: want false", where)
	}
	return nil
}
