package model

import (
	"encoding/json"
	"maps"
	"slices"
)

// Quantization describes how a checkpoint stores its linear layers' weights. Which layers are quantised shows in the tensors
// themselves; Ignore is what the file says of it.
type Quantization struct {
	Method      string // quant_method of the file: "fp8", "fbgemm_fp8", "modelopt", "compressed-tensors", "awq" or "gptq"
	Scheme      string // "fp8": E4M3 with scales; "int4": four bits with a scale, and perhaps a zero point, for each group
	Granularity string // what shares a weight scale: "tensor", "channel" (a row, one output), "group" or "block" (fp8)
	GroupSize   int    // elements of a row in a group or block; 0 where a group is the whole row, or there are none
	BlockRows   int    // rows of a block
	Symmetric   bool   // int4: no zero points, the middle is 8
	// ZeroOffset is added to stored zero points: 1 in the first form of GPTQ files.
	ZeroOffset int
	// Activations tells how the checkpoint wants a layer's input: "" (as it is), "dynamic" (quantised, a scale for each
	// token) or "static" (quantised, the scale stored).
	Activations string
	Ignore      []string // names of modules that stay plain; "re:" marks a regular expression
}

var quantizationKeys = []key{
	{name: "quant_method", kind: text, choices: []string{"fp8", "fbgemm_fp8", "modelopt", "compressed-tensors", "awq", "gptq"}},
	{name: "quant_algo", kind: text, choices: []string{"FP8"}},
	{name: "activation_scheme", kind: text, choices: []string{"dynamic", "static"}},
	{name: "fmt", kind: text, choices: []string{"e4m3"}},
	{name: "weight_block_size", kind: ids},
	{name: "ignored_layers", kind: texts},
	{name: "modules_to_not_convert", kind: texts},
	{name: "ignore", kind: texts},
	{name: "format", kind: text, choices: []string{"float-quantized", "naive-quantized", "pack-quantized"}},
	{name: "config_groups", kind: opaque},
	{name: "sparsity_config", kind: opaque},
	{name: "transform_config", kind: opaque},
	{name: "bits", min: 4, max: 4},
	{name: "group_size", min: -1, max: maxHidden},
	{name: "zero_point", kind: boolean},
	{name: "version", kind: text, choices: []string{"gemm", "GEMM"}},
	{name: "desc_act", kind: boolean},
	{name: "sym", kind: boolean},
	{name: "checkpoint_format", kind: text, choices: []string{"gptq", "gptq_v2"}},
}

// quantization reads quantization_config, if there is one.
func quantization(s *source, c *Config) error {
	v := get[map[string]any](s.values, "quantization_config", nil)
	if v == nil {
		return nil
	}
	method, ok := v["quant_method"].(string)
	if !ok {
		return s.errorf("quantization_config.quant_method", "missing: want %s", find(quantizationKeys, "quant_method").wants())
	}
	q := &Quantization{Method: method, Ignore: get[[]string](v, "modules_to_not_convert", nil)}
	c.Quantization = q
	switch method {
	case "fp8":
		q.Scheme, q.Granularity, q.Activations = "fp8", "tensor", get(v, "activation_scheme", "dynamic")
		q.Ignore = get(v, "ignored_layers", q.Ignore)
		return q.setBlock(s, get[[]int32](v, "weight_block_size", nil))
	case "fbgemm_fp8":
		q.Scheme, q.Granularity, q.Activations = "fp8", "channel", "dynamic"
		return nil
	case "modelopt":
		q.Scheme, q.Granularity, q.Activations = "fp8", "tensor", "static"
		q.Ignore = get(v, "ignore", q.Ignore)
		return nil
	case "awq":
		q.Symmetric = !get(v, "zero_point", true)
	case "gptq":
		if get(v, "desc_act", false) {
			return s.errorf("quantization_config.desc_act", "true is not supported: want a checkpoint with groups of neighbours, desc_act false")
		}
		if get(v, "checkpoint_format", "gptq") == "gptq" {
			q.ZeroOffset = 1
		}
	case "compressed-tensors":
		return compressedTensors(s, v, q)
	}
	q.Scheme = "int4"
	return q.setGroup(s, get(v, "group_size", 128))
}

// setBlock takes weight_block_size, [rows, elements of a row]; nil where the whole matrix has one scale.
func (q *Quantization) setBlock(s *source, size []int32) error {
	if size == nil {
		return nil
	}
	if len(size) != 2 || size[0] < 1 || size[1] < 8 || size[1]%8 != 0 {
		return s.errorf("quantization_config.weight_block_size", "%v is not supported: want two sizes, the second a multiple of 8", size)
	}
	q.Granularity, q.BlockRows, q.GroupSize = "block", int(size[0]), int(size[1])
	return nil
}

func (q *Quantization) setGroup(s *source, size int) error {
	q.Granularity, q.GroupSize = "group", size
	switch {
	case size == -1:
		q.Granularity, q.GroupSize = "channel", 0
	case size < 8 || size%8 != 0:
		return s.errorf("quantization_config.group_size", "%d is not supported: want -1 or a multiple of 8", size)
	}
	return nil
}

// compressedGroup is what config_groups says of some layers.
type compressedGroup struct {
	Weights struct {
		NumBits   int    `json:"num_bits"`
		Type      string `json:"type"`
		Strategy  string `json:"strategy"`
		Symmetric *bool  `json:"symmetric"`
		GroupSize *int   `json:"group_size"`
		ActOrder  any    `json:"actorder"`
	} `json:"weights"`
	Inputs *struct {
		NumBits int             `json:"num_bits"`
		Type    string          `json:"type"`
		Dynamic json.RawMessage `json:"dynamic"`
	} `json:"input_activations"`
}

// compressedTensors reads the format of that library: one scheme for all groups of layers.
func compressedTensors(s *source, v map[string]any, q *Quantization) error {
	const groupsKey = "quantization_config.config_groups"
	q.Ignore = get(v, "ignore", q.Ignore)
	if sparsity, ok := v["sparsity_config"].(map[string]any); ok && len(sparsity) > 0 && sparsity["format"] != "dense" {
		return s.errorf("quantization_config.sparsity_config", "sparse weights are not supported: want a dense checkpoint")
	}
	if transform, ok := v["transform_config"].(map[string]any); ok && len(transform) > 0 {
		return s.errorf("quantization_config.transform_config", "transforms are not supported: want a checkpoint without")
	}
	text, err := json.Marshal(v["config_groups"])
	if err != nil {
		return s.errorf(groupsKey, "%v", err)
	}
	var groups map[string]compressedGroup
	if err := json.Unmarshal(text, &groups); err != nil || len(groups) == 0 {
		return s.errorf(groupsKey, "want an object with one group of layers or more, each with its weights' num_bits, type and strategy")
	}
	var first Quantization
	for i, name := range slices.Sorted(maps.Keys(groups)) {
		g := groups[name]
		this := *q
		if err := g.describe(s, groupsKey+"."+name, &this); err != nil {
			return err
		}
		if i > 0 && (this.Scheme != first.Scheme || this.Granularity != first.Granularity || this.GroupSize != first.GroupSize ||
			this.Symmetric != first.Symmetric || this.Activations != first.Activations) {
			return s.errorf(groupsKey+"."+name, "differs from the other groups: want one scheme for all quantised layers")
		}
		first = this
	}
	*q = first
	return nil
}

func (g *compressedGroup) describe(s *source, path string, q *Quantization) error {
	w := &g.Weights
	symmetric := w.Symmetric == nil || *w.Symmetric
	// These two orders were used while quantising only; the others leave groups that are not neighbours.
	ordered := w.ActOrder != nil && w.ActOrder != "static" && w.ActOrder != "weight"
	switch {
	case w.NumBits == 8 && w.Type == "float" && (w.Strategy == "tensor" || w.Strategy == "channel"):
		q.Scheme, q.Granularity = "fp8", w.Strategy
		if g.Inputs == nil {
			return nil
		}
		q.Activations = "dynamic"
		if string(g.Inputs.Dynamic) == "false" {
			q.Activations = "static"
		}
		if g.Inputs.NumBits != 8 || g.Inputs.Type != "float" {
			return s.errorf(path+".input_activations", "%d bits of %s are not supported: want 8 of float", g.Inputs.NumBits, g.Inputs.Type)
		}
		return nil
	case w.NumBits == 4 && w.Type == "int" && (w.Strategy == "group" || w.Strategy == "channel") && symmetric && !ordered && g.Inputs == nil:
		q.Scheme, q.Symmetric = "int4", true
		size := -1
		if w.Strategy == "group" && w.GroupSize != nil {
			size = *w.GroupSize
		}
		return q.setGroup(s, size)
	}
	return s.errorf(path+".weights", "%d bits of %s by %s are not supported: want 8 of float by tensor or channel, or 4 of int (symmetric, no act order, plain activations) by group or channel",
		w.NumBits, w.Type, w.Strategy)
}
