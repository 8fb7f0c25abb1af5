package model

// qwen2: Qwen2 and 2.5, with a bias on query, key and value.
var qwen2 = family{
	name: "qwen2", architecture: "Qwen2ForCausalLM", modelType: "qwen2", gguf: []string{"qwen2"},
	maxPositions: 32768,
	keys:         qwenWindowKeys,
	apply: func(s *source, c *Config) error {
		c.QKVBias = true
		return qwenWindow(s, c)
	},
}

var qwenWindowKeys = []key{
	{name: "use_sliding_window", kind: boolean},
	{name: "sliding_window", min: 1, max: maxPositions},
	{name: "max_window_layers", min: 0, max: maxLayers},
	{name: "layer_types", kind: texts},
}

// qwenWindow applies Qwen's rules: sliding_window counts only with use_sliding_window, and then in the layers from
// max_window_layers on. Every published file has it off; a mixture of layers is refused.
func qwenWindow(s *source, c *Config) error {
	const fullFrom = 28 // Hugging Face's default of max_window_layers
	if !get(s.values, "use_sliding_window", false) {
		return nil
	}
	full := min(get(s.values, "max_window_layers", fullFrom), c.NumLayers)
	if full != 0 && full != c.NumLayers {
		return s.errorf(s.blame("max_window_layers", "use_sliding_window", "num_hidden_layers"),
			"%d of %d layers would slide, a mixture is not supported: want use_sliding_window false, or max_window_layers 0 or at least %d",
			c.NumLayers-full, c.NumLayers, c.NumLayers)
	}
	if full == 0 {
		c.setSlidingWindow(get(s.values, "sliding_window", 4096))
	}
	return nil
}
