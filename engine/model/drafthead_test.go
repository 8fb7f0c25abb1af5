package model_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// TestLoadDraftHead changes the config.json of a head for Llama 3.1 8B, key by key; null takes a key out.
func TestLoadDraftHead(t *testing.T) {
	target := &model.Config{HiddenSize: 4096, NumLayers: 32, VocabSize: 128256}
	load := func(t *testing.T, changes map[string]any) (*model.DraftHead, error) {
		values := map[string]any{
			"architectures": []string{"LlamaForCausalLMEagle3"}, "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
			"num_hidden_layers": 1, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "draft_vocab_size": 32000,
			"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "torch_dtype": "float16", "transformers_version": "4.46.2",
		}
		for k, v := range changes {
			if values[k] = v; v == nil {
				delete(values, k)
			}
		}
		data, err := json.Marshal(values)
		require.NoError(t, err)
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644))
		return model.LoadDraftHead(dir, target)
	}
	h, err := load(t, nil)
	require.NoError(t, err)
	require.Equal(t, 32000, h.VocabSize)
	require.True(t, h.HasMap())
	require.False(t, h.OwnEmbedding)
	require.Equal(t, [3]int{1, 15, 28}, h.AuxLayers)
	require.Equal(t, 128, h.Layer.HeadDim)
	shapes := map[string][]int{}
	for _, tensor := range h.Tensors() {
		shapes[tensor.Name] = tensor.Shape
	}
	require.Equal(t, map[string][]int{
		"fc.weight": {4096, 12288}, "midlayer.input_layernorm.weight": {4096}, "midlayer.hidden_norm.weight": {4096},
		"midlayer.self_attn.q_proj.weight": {4096, 8192}, "midlayer.self_attn.k_proj.weight": {1024, 8192}, "midlayer.self_attn.v_proj.weight": {1024, 8192},
		"midlayer.self_attn.o_proj.weight": {4096, 4096}, "midlayer.post_attention_layernorm.weight": {4096},
		"midlayer.mlp.gate_proj.weight": {14336, 4096}, "midlayer.mlp.up_proj.weight": {14336, 4096}, "midlayer.mlp.down_proj.weight": {4096, 14336},
		"norm.weight": {4096}, "lm_head.weight": {32000, 4096}, "d2t": {32000},
	}, shapes)
	with := *target
	with.NumKVHeads, with.HeadDim = 8, 128
	without := with.KVBytesPerToken(2)
	with.DraftHead = h
	require.Equal(t, without+2*8*128*2, with.KVBytesPerToken(2))

	h, err = load(t, map[string]any{"draft_vocab_size": nil, "hidden_size": 2048, "target_hidden_size": 4096,
		"eagle_config": map[string]any{"eagle_aux_hidden_state_layer_ids": []int{30, 2, 16}}})
	require.NoError(t, err)
	require.Equal(t, [3]int{30, 2, 16}, h.AuxLayers)
	require.False(t, h.HasMap())
	require.True(t, h.OwnEmbedding)
	names := []string{}
	for _, tensor := range h.Tensors() {
		names = append(names, tensor.Name)
	}
	require.Contains(t, names, "embed_tokens.weight")
	require.NotContains(t, names, "d2t")

	aux := func(layers ...int) map[string]any {
		return map[string]any{"eagle_config": map[string]any{"eagle_aux_hidden_state_layer_ids": layers}}
	}
	for says, changes := range map[string]map[string]any{
		"architectures":                               {"architectures": []string{"LlamaForCausalLM"}},
		"want a head of 1 layer":                      {"num_hidden_layers": 2},
		"vocab_size: 32000, but the model has 128256": {"vocab_size": 32000},
		"want at most 128256":                         {"draft_vocab_size": 128257},
		"hidden_size: hidden states of 2048":          {"hidden_size": 2048},
		"target_hidden_size: hidden states of 2048":   {"target_hidden_size": 2048},
		"an lm_head of its own":                       {"tie_word_embeddings": true},
		"whose fc has none":                           {"bias": true},
		"plain weights":                               {"quantization_config": map[string]any{"quant_method": "fp8"}},
		"use_aux_hidden_state":                        {"eagle_config": map[string]any{"use_aux_hidden_state": false}},
		"want three":                                  aux(1, 2),
		"layer 32: want 0 to 31":                      aux(1, 2, 32),
	} {
		_, err := load(t, changes)
		var e *model.Error
		require.ErrorAs(t, err, &e, says)
		require.ErrorContains(t, err, says)
	}
	_, err = model.LoadDraftHead(t.TempDir(), target)
	require.ErrorContains(t, err, "no such file")

	target.NumLayers = 4
	_, err = load(t, nil)
	require.ErrorContains(t, err, "want three layers")
}

// TestDraftHeadIsNoModel: a head alone cannot be served.
func TestDraftHeadIsNoModel(t *testing.T) {
	dir, err := tinymodel.Dir(tinymodel.DraftHead)
	require.NoError(t, err)
	_, err = model.Load(dir, "")
	require.ErrorContains(t, err, `"LlamaForCausalLMEagle3" is not supported`)
}
