package model

import (
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
)

// DraftHead describes an EAGLE-3 head: one decoder layer that guesses a target model's next tokens. Its input for a token is the token's
// embedding beside the target's hidden state of the token before it, which fc makes of the residual streams behind three of the target's
// layers; or, for a token that the head guessed itself, beside the head's own output.
type DraftHead struct {
	// Layer has the sizes, rotary embedding and norm of the head's one layer. Its queries, keys and values are made of 2*HiddenSize inputs.
	Layer Config
	// VocabSize is the number of tokens that the head can guess, at most the target's: d2t says which they are.
	VocabSize int
	// AuxLayers are the target's layers, from 0, whose outputs fc fuses, in this order.
	AuxLayers [3]int
	// TargetHiddenSize is the width of those outputs.
	TargetHiddenSize int
	// OwnEmbedding tells that the head's files hold an embedding; else it is the target's, which has the same width.
	OwnEmbedding bool
}

// DraftHeadPrefix stands before the names of a draft head's tensors where they lie among the target's.
const DraftHeadPrefix = "draft."

const eagle3Architecture = "LlamaForCausalLMEagle3"

// eagle3 reads a head's config.json, which has the keys of a Llama of one layer. It is not in the registry: a head is not a model.
var eagle3 = family{
	name: "llama", architecture: eagle3Architecture, maxPositions: llama.maxPositions, apply: llama.apply,
	keys: slices.Concat(llama.keys, []key{
		{name: "bias", kind: boolean},
		{name: "draft_vocab_size", min: 1, max: maxVocab},
		{name: "target_hidden_size", min: 1, max: maxHidden},
		{name: "eagle_config", kind: object, fields: eagleKeys},
	}),
}

var eagleKeys = []key{
	{name: "eagle_aux_hidden_state_layer_ids", kind: ids},
	{name: "use_aux_hidden_state", kind: boolean},
}

// LoadDraftHead reads dir/config.json of an EAGLE-3 head for target. What is wrong with it, or does not fit target, is an *Error.
func LoadDraftHead(dir string, target *Config) (*DraftHead, error) {
	path := filepath.Join(dir, "config.json")
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errorf(path, "", "no such file: want the directory of an EAGLE-3 head with a config.json in it")
	}
	if err != nil {
		return nil, err
	}
	values, err := decodeObject(path, data)
	if err != nil {
		return nil, err
	}
	if name, _ := firstText(values["architectures"]); name != eagle3Architecture {
		return nil, errorf(path, "architectures", "%s is no EAGLE-3 head: want %q", show(values["architectures"]), eagle3Architecture)
	}
	s := &source{path: path, values: values, fileSpelling: canonical(values)}
	if err := check(values, slices.Concat(commonKeys, eagle3.keys), "", s.where); err != nil {
		return nil, err
	}
	layer, err := eagle3.config(s)
	if err != nil {
		return nil, err
	}
	return newDraftHead(s, layer, target)
}

// newDraftHead adds to the layer what makes it a head, and holds it to the target.
func newDraftHead(s *source, layer, target *Config) (*DraftHead, error) {
	h := &DraftHead{
		Layer: *layer, VocabSize: get(s.values, "draft_vocab_size", layer.VocabSize),
		TargetHiddenSize: get(s.values, "target_hidden_size", layer.HiddenSize), OwnEmbedding: layer.HiddenSize != target.HiddenSize,
	}
	eagle := get(s.values, "eagle_config", map[string]any{})
	width := "hidden_size"
	if _, ok := s.values["target_hidden_size"]; ok {
		width = "target_hidden_size"
	}
	switch {
	case layer.NumLayers != 1:
		return nil, s.errorf("num_hidden_layers", "%d is not supported: want a head of 1 layer", layer.NumLayers)
	case layer.TieEmbeddings:
		return nil, s.errorf("tie_word_embeddings", "true is not supported: want a head with an lm_head of its own")
	case layer.Quantization != nil:
		return nil, s.errorf("quantization_config", "not supported: want a head of plain weights")
	case layer.VocabSize != target.VocabSize:
		return nil, s.errorf("vocab_size", "%d, but the model has %d tokens: want a head that was trained for it", layer.VocabSize, target.VocabSize)
	case h.VocabSize > layer.VocabSize:
		return nil, s.errorf("draft_vocab_size", "%d is more than vocab_size: want at most %d", h.VocabSize, layer.VocabSize)
	case h.TargetHiddenSize != target.HiddenSize:
		return nil, s.errorf(width, "hidden states of %d elements, but the model's have %d: want a head that was trained for it",
			h.TargetHiddenSize, target.HiddenSize)
	case get(s.values, "bias", false):
		return nil, s.errorf("bias", "true is not supported: want a head whose fc has none")
	case !get(eagle, "use_aux_hidden_state", true):
		return nil, s.errorf("eagle_config.use_aux_hidden_state", "false is not supported: want a head that reads three of the model's layers")
	}
	return h, h.setAuxLayers(s, get[[]int32](eagle, "eagle_aux_hidden_state_layer_ids", nil), target.NumLayers)
}

// setAuxLayers takes the layers that the file names, or else those that EAGLE-3 heads are trained on: an early, a middle and a late one.
func (h *DraftHead) setAuxLayers(s *source, named []int32, layers int) error {
	const name = "eagle_config.eagle_aux_hidden_state_layer_ids"
	if named == nil {
		if layers < 5 {
			return s.errorf(name, "missing: want three layers, as a model of %d has none to take by default", layers)
		}
		h.AuxLayers = [3]int{1, layers/2 - 1, layers - 4}
		return nil
	}
	if len(named) != len(h.AuxLayers) {
		return s.errorf(name, "%d layers: want three", len(named))
	}
	for i, l := range named {
		if l < 0 || int(l) >= layers {
			return s.errorf(name, "layer %d: want 0 to %d, as the model has", l, layers-1)
		}
		h.AuxLayers[i] = int(l)
	}
	return nil
}

// Tensors lists the head's weights under the names they have in its files. d2t, [VocabSize], says of each token of the head how much
// larger the target's id of it is; a head of all the target's tokens has none.
func (h *DraftHead) Tensors() []Tensor {
	c := &h.Layer
	var out []Tensor
	add := func(name string, shape ...int) { out = append(out, Tensor{name, shape}) }
	if h.OwnEmbedding {
		add("embed_tokens.weight", c.VocabSize, c.HiddenSize)
	}
	add("fc.weight", c.HiddenSize, len(h.AuxLayers)*h.TargetHiddenSize)
	add("midlayer.hidden_norm.weight", c.HiddenSize)
	c.addLayer("midlayer.", func(name string, shape ...int) {
		switch name {
		case "midlayer.self_attn.q_proj.weight", "midlayer.self_attn.k_proj.weight", "midlayer.self_attn.v_proj.weight":
			shape[1] = 2 * c.HiddenSize
		}
		add(name, shape...)
	})
	add("norm.weight", c.HiddenSize)
	add("lm_head.weight", h.VocabSize, c.HiddenSize)
	if h.HasMap() {
		add(DraftVocabularyMap, h.VocabSize)
	}
	return out
}

// DraftVocabularyMap is the name of the one tensor of a head that holds whole numbers.
const DraftVocabularyMap = "d2t"

// HasMap tells that the head guesses some of the target's tokens only.
func (h *DraftHead) HasMap() bool { return h.VocabSize < h.Layer.VocabSize }
