package model

// mistral: Llama's layout with an optional sliding window, in every layer or none.
var mistral = family{
	name: "mistral", architecture: "MistralForCausalLM", modelType: "mistral", gguf: []string{"mistral"},
	maxPositions: 4096 * 32,
	keys:         []key{{name: "sliding_window", min: 1, max: maxPositions}},
	apply: func(s *source, c *Config) error {
		// A file that is silent means full attention: those of v0.1, the only ones with a window, say 4096.
		c.setSlidingWindow(get(s.values, "sliding_window", 0))
		return nil
	},
}

// setSlidingWindow ignores a window that no sequence can outgrow.
func (c *Config) setSlidingWindow(window int) {
	if window < c.MaxPositions {
		c.SlidingWindow = window
	}
}
