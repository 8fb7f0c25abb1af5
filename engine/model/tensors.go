package model

import "strconv"

// Tensors lists every weight the model needs, layer by layer, under its Hugging Face name. lm_head.weight is among them only
// if the head is not the embedding matrix. For a quantised checkpoint the shapes are those of the weights it stands for.
func (c *Config) Tensors() []Tensor {
	perLayer := 12 + 3*c.NumExperts
	out := make([]Tensor, 0, c.NumLayers*perLayer+3)
	add := func(name string, shape ...int) { out = append(out, Tensor{name, shape}) }

	add("model.embed_tokens.weight", c.VocabSize, c.HiddenSize)
	for i := range c.NumLayers {
		c.addLayer("model.layers."+strconv.Itoa(i)+".", add)
	}
	add("model.norm.weight", c.HiddenSize)
	if !c.TieEmbeddings {
		add("lm_head.weight", c.VocabSize, c.HiddenSize)
	}
	return out
}

func (c *Config) addLayer(layer string, add func(name string, shape ...int)) {
	qSize, kvSize := c.NumHeads*c.HeadDim, c.NumKVHeads*c.HeadDim
	add(layer+"input_layernorm.weight", c.HiddenSize)
	attn := layer + "self_attn."
	for _, p := range []struct {
		name string
		out  int
	}{{"q_proj", qSize}, {"k_proj", kvSize}, {"v_proj", kvSize}} {
		add(attn+p.name+".weight", p.out, c.HiddenSize)
		if c.QKVBias {
			add(attn+p.name+".bias", p.out)
		}
	}
	if c.QKNorm {
		add(attn+"q_norm.weight", c.HeadDim)
		add(attn+"k_norm.weight", c.HeadDim)
	}
	add(attn+"o_proj.weight", c.HiddenSize, qSize)
	add(layer+"post_attention_layernorm.weight", c.HiddenSize)

	mlp := layer + "mlp."
	if c.NumExperts == 0 {
		c.addMLP(mlp, c.IntermediateSize, add)
		return
	}
	add(mlp+"gate.weight", c.NumExperts, c.HiddenSize)
	for e := range c.NumExperts {
		c.addMLP(mlp+"experts."+strconv.Itoa(e)+".", c.MoEIntermediateSize, add)
	}
}

func (c *Config) addMLP(mlp string, size int, add func(name string, shape ...int)) {
	add(mlp+"gate_proj.weight", size, c.HiddenSize)
	add(mlp+"up_proj.weight", size, c.HiddenSize)
	add(mlp+"down_proj.weight", c.HiddenSize, size)
}

// NumParameters is the number of weights, a tied head counted once.
func (c *Config) NumParameters() int64 {
	perLayer := int64(0)
	c.addLayer("", func(_ string, shape ...int) { perLayer += elements(shape) })
	total := perLayer*int64(c.NumLayers) + int64(c.HiddenSize)
	total += int64(c.VocabSize) * int64(c.HiddenSize)
	if !c.TieEmbeddings {
		total += int64(c.VocabSize) * int64(c.HiddenSize)
	}
	return total
}

func elements(shape []int) int64 {
	n := int64(1)
	for _, d := range shape {
		n *= int64(d)
	}
	return n
}

// KVBytesPerToken is what one token of one sequence takes in the KV cache of elements of elementBytes: K and V of all layers, the draft
// head's included.
func (c *Config) KVBytesPerToken(elementBytes int) int64 {
	n := 2 * int64(c.NumLayers) * int64(c.NumKVHeads) * int64(c.HeadDim) * int64(elementBytes)
	if c.DraftHead != nil {
		n += c.DraftHead.Layer.KVBytesPerToken(elementBytes)
	}
	return n
}
