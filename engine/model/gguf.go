package model

import (
	"encoding/json"
	"math"
	"reflect"
	"slices"
	"strconv"
)

// Facts about a GGUF file's tensors that its metadata does not hold; whoever reads the file adds them to the metadata.
const (
	GGUFTensorNames = "tokamak.tensor_names" // []string, every tensor of the file
	GGUFRopeFreqs   = "tokamak.rope_freqs"   // []float32, the tensor rope_freqs.weight; absent if the file has none
)

// Keys of the intermediate config that only GGUF files set: they have no counterpart in config.json.
const (
	ggufQKVBias     = "gguf.qkv_bias"
	ggufFreqFactors = "gguf.freq_factors"
)

// ggufSource stands for the file in errors; whoever opened it knows its path.
const ggufSource = "GGUF metadata"

// FromGGUF makes a Config of a GGUF file's metadata: values are uint8..int64, float32, float64, bool, string and slices of
// them. overridesJSON is as for Load and in the terms of config.json: num_hidden_layers, not llama.block_count.
func FromGGUF(meta map[string]any, overridesJSON string) (*Config, error) {
	arch, _ := meta["general.architecture"].(string)
	i := slices.IndexFunc(families, func(f *family) bool { return slices.Contains(f.gguf, arch) })
	if i < 0 {
		return nil, errorf(ggufSource, "general.architecture", "%q is not supported: want one of %s", arch, ggufArchitectures())
	}
	g := &ggufReader{meta: meta, arch: arch, values: map[string]any{}, names: spelling{}}
	g.values["architectures"] = []any{families[i].architecture}
	if err := g.read(); err != nil {
		return nil, err
	}
	return build(ggufSource, g.values, g.names, overridesJSON)
}

func ggufArchitectures() string {
	list := ""
	for _, f := range families {
		for _, name := range f.gguf {
			if list != "" {
				list += ", "
			}
			list += name
		}
	}
	return list
}

// ggufReader translates metadata into the terms of config.json, so that overrides, checks and defaults are the same.
type ggufReader struct {
	meta   map[string]any
	arch   string
	values map[string]any
	names  spelling
}

func (g *ggufReader) read() error {
	for _, k := range []struct{ gguf, hf string }{
		{"block_count", "num_hidden_layers"},
		{"embedding_length", "hidden_size"},
		{"feed_forward_length", "intermediate_size"},
		{"context_length", "max_position_embeddings"},
		{"attention.head_count", "num_attention_heads"},
		{"attention.head_count_kv", "num_key_value_heads"},
		{"attention.key_length", "head_dim"},
		{"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
		{"vocab_size", "vocab_size"},
	} {
		if err := g.copy(k.gguf, g.values, "", k.hf); err != nil {
			return err
		}
	}
	if tokens := reflect.ValueOf(g.meta["tokenizer.ggml.tokens"]); g.values["vocab_size"] == nil && tokens.Kind() == reflect.Slice {
		g.values["vocab_size"] = json.Number(strconv.Itoa(tokens.Len()))
	}
	if k, v := g.meta[g.arch+".attention.key_length"], g.meta[g.arch+".attention.value_length"]; k != nil && v != nil && ggufNumber(k) != ggufNumber(v) {
		return errorf(ggufSource, g.arch+".attention.value_length", "%v, but key_length is %v: want them equal", v, k)
	}
	if err := g.readFamily(); err != nil {
		return err
	}
	g.readTokens()
	switch fileType := ggufNumber(g.meta["general.file_type"]); fileType {
	case "1":
		g.values["dtype"] = "float16"
	case "32":
		g.values["dtype"] = "bfloat16"
	}
	return g.readRope()
}

// readFamily reads what only some families have, and what the tensors' names tell.
func (g *ggufReader) readFamily() error {
	experts := ggufNumber(g.meta[g.arch+".expert_count"])
	if experts != "" && experts != "0" || g.arch == "qwen3moe" {
		return errorf(ggufSource, g.arch+".expert_count", "mixtures of experts are not read from GGUF: want a Hugging Face directory")
	}
	if g.arch == "mistral" {
		if err := g.copy("attention.sliding_window", g.values, "", "sliding_window"); err != nil {
			return err
		}
	}
	if tensors, ok := g.meta[GGUFTensorNames].([]string); ok {
		g.values["tie_word_embeddings"] = !slices.Contains(tensors, "output.weight")
		if slices.Contains(tensors, "blk.0.attn_output.bias") {
			return errorf(ggufSource, "blk.0.attn_output.bias", "a bias on the attention's output projection is not supported")
		}
		g.values[ggufQKVBias] = slices.Contains(tensors, "blk.0.attn_q.bias")
	}
	return nil
}

func (g *ggufReader) readTokens() {
	var eos []any
	for _, name := range []string{"eos_token_id", "eot_token_id", "eom_token_id"} {
		if id := ggufNumber(g.meta["tokenizer.ggml."+name]); id != "" {
			eos = append(eos, id)
		}
	}
	g.values["eos_token_id"] = eos
	if id := ggufNumber(g.meta["tokenizer.ggml.bos_token_id"]); id != "" {
		g.values["bos_token_id"] = id
	}
}

func (g *ggufReader) readRope() error {
	rope := map[string]any{}
	const prefix = "rope_parameters."
	for _, k := range []struct{ gguf, hf string }{
		{"rope.freq_base", "rope_theta"},
		{"rope.scaling.factor", "factor"},
		{"rope.scaling.original_context_length", "original_max_position_embeddings"},
		{"rope.scaling.yarn_beta_fast", "beta_fast"},
		{"rope.scaling.yarn_beta_slow", "beta_slow"},
	} {
		if err := g.copy(k.gguf, rope, prefix, k.hf); err != nil {
			return err
		}
	}
	switch scaling := g.meta[g.arch+".rope.scaling.type"]; scaling {
	case nil, "none":
		if factor := ggufNumber(g.meta[g.arch+".rope.scale_linear"]); factor != "" && factor != "1" { // files of 2023
			rope["rope_type"], rope["factor"] = "linear", factor
		}
	default:
		rope["rope_type"] = scaling
		g.names[prefix+"rope_type"] = g.arch + ".rope.scaling.type"
	}
	if attn := ggufFloat(g.meta[g.arch+".rope.scaling.attn_factor"]); attn > 0 && rope["rope_type"] == "yarn" {
		attn *= yarnAttention(ggufFloat(g.meta[g.arch+".rope.scaling.factor"]), 0, 0)
		rope["attention_factor"] = json.Number(strconv.FormatFloat(attn, 'g', -1, 64))
	}
	if n := ggufNumber(g.meta[g.arch+".rope.dimension_count"]); n != "" {
		if head := g.headDim(); head != "" && head != n {
			return errorf(ggufSource, g.arch+".rope.dimension_count", "%s of a head's %s elements turn: want all", n, head)
		}
	}
	if freqs, ok := g.meta[GGUFRopeFreqs].([]float32); ok {
		factors := make([]float64, len(freqs))
		for i, f := range freqs {
			if !(f > 0) || math.IsInf(float64(f), 0) {
				return errorf(ggufSource, "rope_freqs.weight", "element %d is %v: want a positive number", i, f)
			}
			factors[i] = float64(f)
		}
		rope[ggufFreqFactors] = factors
		g.names[prefix+ggufFreqFactors] = "rope_freqs.weight"
	}
	g.values["rope_parameters"] = rope
	return nil
}

// headDim is the size of a head as the file has it, "" if it cannot be told.
func (g *ggufReader) headDim() json.Number {
	if n := ggufNumber(g.meta[g.arch+".attention.key_length"]); n != "" {
		return n
	}
	hidden, err1 := ggufNumber(g.meta[g.arch+".embedding_length"]).Int64()
	heads, err2 := ggufNumber(g.meta[g.arch+".attention.head_count"]).Int64()
	if err1 != nil || err2 != nil || heads < 1 || hidden%heads != 0 {
		return ""
	}
	return json.Number(strconv.FormatInt(hidden/heads, 10))
}

// copy puts arch.name into values under its name there. An array, one value a layer, must hold one and the same value.
func (g *ggufReader) copy(name string, values map[string]any, prefix, newName string) error {
	name = g.arch + "." + name
	g.names[prefix+newName] = name
	value, ok := g.meta[name]
	if !ok {
		return nil
	}
	if list := reflect.ValueOf(value); list.Kind() == reflect.Slice {
		if list.Len() == 0 {
			return errorf(ggufSource, name, "an empty array: want a number")
		}
		value = list.Index(0).Interface()
		for i := range list.Len() {
			if ggufNumber(list.Index(i).Interface()) != ggufNumber(value) {
				return errorf(ggufSource, name, "layers differ (%v, %v): want them alike", value, list.Index(i).Interface())
			}
		}
	}
	if n := ggufNumber(value); n != "" {
		value = n
	}
	values[newName] = value
	return nil
}

// ggufNumber is a metadata value as a JSON number in its shortest form: 1e-05 where a float32 holds 9.99999974e-06. It is ""
// for anything that is not a number.
func ggufNumber(value any) json.Number {
	v := reflect.ValueOf(value)
	switch {
	case value == nil:
		return ""
	case v.CanInt():
		return json.Number(strconv.FormatInt(v.Int(), 10))
	case v.CanUint():
		return json.Number(strconv.FormatUint(v.Uint(), 10))
	case v.CanFloat():
		return json.Number(strconv.FormatFloat(v.Float(), 'g', -1, v.Type().Bits()))
	}
	return ""
}

func ggufFloat(value any) float64 {
	f, err := ggufNumber(value).Float64()
	if err != nil {
		return 0
	}
	return f
}
