package model

// Quantization describes how a checkpoint stores its linear layers' weights.
type Quantization struct {
	Method      string // quant_method of the file: "fp8", "compressed-tensors", "awq" or "gptq"
	Scheme      string // "fp8": E4M3 with scales; "int4": unsigned nibbles with a scale (and a zero point) for each group
	Granularity string // what shares a weight scale: "tensor", "channel" (an output row) or "group"
	GroupSize   int    // elements along a row, for "group"; GroupSize of the whole row is stored as "channel"
	Symmetric   bool   // int4: no zero points stored, the middle is 8
	ActOrder    bool   // gptq desc_act: rows of a group are not neighbours
	// Activations tells how the checkpoint wants a layer's input: "" (as it is), "dynamic" (quantised, scale by token) or
	// "static" (quantised, scale stored).
	Activations string
	Ignore      []string // names of modules that stay plain; "re:" marks a regular expression, as in compressed-tensors
}

// quantizationKeys is filled by what each method knows.
var quantizationKeys = []key{
	{name: "quant_method", kind: text, choices: quantMethods},
}

var quantMethods = []string{"fp8", "compressed-tensors", "awq", "gptq"}

func quantization(s *source, c *Config) error {
	v := get[map[string]any](s.values, "quantization_config", nil)
	if v == nil {
		return nil
	}
	return s.errorf("quantization_config", "quantised checkpoints are not supported yet")
}
