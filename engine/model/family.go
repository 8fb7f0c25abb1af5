package model

import (
	"slices"
	"strings"
)

// A family is what an architecture adds to the common ground: its keys, its defaults and its refusals.
type family struct {
	name         string
	architecture string
	modelType    string
	gguf         []string // general.architecture of GGUF files
	keys         []key    // beside commonKeys
	maxPositions int      // where the file says nothing
	headDim      int      // where the file says nothing; 0: hidden size over heads
	apply        func(*source, *Config) error
}

// families is the registry: to add a model family is to add a file and a row.
var families = []*family{&llama, &mistral, &qwen2, &qwen3, &qwen3MoE}

func architectures() string {
	var out []string
	for _, f := range families {
		out = append(out, f.architecture)
	}
	return strings.Join(out, ", ")
}

// chooseFamily reads architectures, or model_type where there is only that, of the overrides or else of the file. It does so
// before anything is checked: which other keys there are depends on it.
func chooseFamily(s *source, overrides map[string]any) (*family, error) {
	for _, from := range []struct {
		source string
		values map[string]any
	}{{overridesSource, overrides}, {s.path, s.values}} {
		if arch, ok := firstText(from.values["architectures"]); ok {
			i := slices.IndexFunc(families, func(f *family) bool { return f.architecture == arch })
			if i < 0 {
				return nil, errorf(from.source, "architectures", "%q is not supported: want one of %s", arch, architectures())
			}
			return families[i], nil
		}
		if modelType, ok := from.values["model_type"].(string); ok {
			i := slices.IndexFunc(families, func(f *family) bool { return f.modelType == modelType })
			if i < 0 {
				return nil, errorf(from.source, "model_type", "%q is not supported: want a model with one of the architectures %s", modelType, architectures())
			}
			return families[i], nil
		}
	}
	return nil, errorf(s.path, "architectures", "missing: want one of %s", architectures())
}

// firstText is a string, or the first element of a list if that is one.
func firstText(value any) (string, bool) {
	if list, ok := value.([]any); ok && len(list) > 0 {
		value = list[0]
	}
	text, ok := value.(string)
	return text, ok
}

// config derives a whole Config: first the sizes every family has, then what the family adds.
func (f *family) config(s *source) (*Config, error) {
	c := &Config{Architecture: f.architecture, Family: f.name}
	for _, size := range []struct {
		name string
		to   *int
	}{
		{"hidden_size", &c.HiddenSize},
		{"intermediate_size", &c.IntermediateSize},
		{"num_hidden_layers", &c.NumLayers},
		{"num_attention_heads", &c.NumHeads},
		{"vocab_size", &c.VocabSize},
	} {
		var err error
		if *size.to, err = s.need(size.name, commonKeys); err != nil {
			return nil, err
		}
	}
	if err := f.heads(s, c); err != nil {
		return nil, err
	}
	c.MaxPositions = get(s.values, "max_position_embeddings", f.maxPositions)
	c.RMSNormEps = get(s.values, "rms_norm_eps", 1e-6)
	c.TieEmbeddings = get(s.values, "tie_word_embeddings", false)
	c.DType = get(s.values, "dtype", "float32")
	c.BOS = validIDs(get[[]int32](s.values, "bos_token_id", nil), c.VocabSize)
	c.EOS = validIDs(get[[]int32](s.values, "eos_token_id", nil), c.VocabSize)
	if err := rope(s, c); err != nil {
		return nil, err
	}
	if f.apply != nil {
		if err := f.apply(s, c); err != nil {
			return nil, err
		}
	}
	return c, quantization(s, c)
}

// heads derives the attention's shape.
func (f *family) heads(s *source, c *Config) error {
	c.NumKVHeads = get(s.values, "num_key_value_heads", c.NumHeads)
	if c.NumHeads%c.NumKVHeads != 0 {
		return s.errorf(s.blame("num_key_value_heads", "num_attention_heads"),
			"num_attention_heads %d is not a multiple of num_key_value_heads %d: want num_key_value_heads to be one of %s",
			c.NumHeads, c.NumKVHeads, divisors(c.NumHeads))
	}
	c.HeadDim = get(s.values, "head_dim", f.headDim)
	if c.HeadDim == 0 {
		if c.HiddenSize%c.NumHeads != 0 {
			return s.errorf(s.blame("num_attention_heads", "hidden_size"),
				"hidden_size %d is not a multiple of num_attention_heads %d: want one of %s, or set head_dim",
				c.HiddenSize, c.NumHeads, divisors(c.HiddenSize))
		}
		c.HeadDim = c.HiddenSize / c.NumHeads
		if c.HeadDim > maxHeadDim {
			return s.errorf(s.blame("num_attention_heads", "hidden_size"), "heads of %d elements: want at most %d", c.HeadDim, maxHeadDim)
		}
	}
	if c.HeadDim%2 != 0 {
		return s.errorf(s.blame("head_dim", "num_attention_heads", "hidden_size"),
			"heads of %d elements: want an even number, as rotary embeddings turn pairs", c.HeadDim)
	}
	return nil
}
