package model_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
)

const llamaConfig = `{"architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
"num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 1000, "eos_token_id": 2, "custom_note": "x"}`

// writeConfig returns a directory with that config.json.
func writeConfig(t testing.TB, text string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.json"), []byte(text), 0o644))
	return dir
}

func load(t *testing.T, text, overrides string) *model.Config {
	t.Helper()
	cfg, err := model.Load(writeConfig(t, text), overrides)
	require.NoError(t, err)
	return cfg
}

// with returns the config of Llama with more keys.
func with(keys string) string {
	return strings.TrimSuffix(llamaConfig, "}") + ", " + keys + "}"
}

// as returns the config with another architecture.
func as(architecture, keys string) string {
	return strings.Replace(with(keys), "LlamaForCausalLM", architecture, 1)
}

func TestDefaults(t *testing.T) {
	cfg := load(t, llamaConfig, "")
	assert.Equal(t, &model.Config{
		Architecture: "LlamaForCausalLM", Family: "llama", HiddenSize: 256, IntermediateSize: 512, NumLayers: 2, NumHeads: 8,
		NumKVHeads: 4, HeadDim: 32, VocabSize: 1000, MaxPositions: 2048, RMSNormEps: 1e-6, DType: "float32", EOS: []int32{2},
		RoPE: model.RoPE{Theta: 10000, Factor: 1, AttentionFactor: 1},
	}, cfg)
	assert.Equal(t, 8, load(t, strings.Replace(llamaConfig, `"num_key_value_heads": 4, `, "", 1), "").NumKVHeads)
	assert.Equal(t, 128, load(t, as("Qwen3ForCausalLM", `"head_dim": null`), "").HeadDim)
	assert.Equal(t, 32, load(t, as("Qwen2ForCausalLM", `"head_dim": null`), "").HeadDim)
	assert.Equal(t, "qwen2", load(t, strings.Replace(llamaConfig, `"architectures": ["LlamaForCausalLM"]`, `"model_type": "qwen2"`, 1), "").Family)
}

func TestSpellings(t *testing.T) {
	older := load(t, with(`"torch_dtype": "bfloat16", "rope_theta": 500000.0, "rope_scaling": {"type": "linear", "factor": 2.0}`), "")
	newer := load(t, with(`"dtype": "bfloat16", "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500000.0}`), "")
	assert.Equal(t, older, newer)
	assert.Equal(t, 500000.0, newer.RoPE.Theta)
	assert.Equal(t, "linear", newer.RoPE.Scaling)
	assert.Equal(t, "bfloat16", newer.DType)
	assert.Empty(t, load(t, with(`"rope_scaling": null, "rope_theta": 1e4`), "").RoPE.Scaling)
}

func TestSlidingWindow(t *testing.T) {
	const long = `"max_position_embeddings": 32768, `
	for text, want := range map[string]int{
		as("MistralForCausalLM", long+`"sliding_window": 4096`):                                                     4096,
		as("MistralForCausalLM", long+`"sliding_window": null`):                                                     0,
		as("MistralForCausalLM", long+`"sliding_window": 32768`):                                                    0,
		as("MistralForCausalLM", `"rope_theta": 10000`):                                                             0,
		as("Qwen2ForCausalLM", long+`"use_sliding_window": false, "sliding_window": 4096, "max_window_layers": 0`):  0,
		as("Qwen2ForCausalLM", long+`"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 0`):   4096,
		as("Qwen2ForCausalLM", long+`"use_sliding_window": true, "sliding_window": 4096, "max_window_layers": 28`):  0,
		as("Qwen3ForCausalLM", long+`"use_sliding_window": false, "sliding_window": null, "max_window_layers": 36`): 0,
		as("Qwen3ForCausalLM", `"layer_types": ["full_attention", "full_attention"], "attention_bias": false`):      0,
		as("Qwen2ForCausalLM", long+`"sliding_window": 4096`):                                                       0,
	} {
		assert.Equal(t, want, load(t, text, "").SlidingWindow, text)
	}
}

func TestGenerationConfig(t *testing.T) {
	dir := writeConfig(t, with(`"bos_token_id": 1`))
	path := filepath.Join(dir, "generation_config.json")
	require.NoError(t, os.WriteFile(path, []byte(`{"eos_token_id": [2, 7, 9000], "bos_token_id": 5, "temperature": 0.6}`), 0o644))
	cfg, err := model.Load(dir, "")
	require.NoError(t, err)
	assert.Equal(t, []int32{2, 7}, cfg.EOS, "9000 is outside the vocabulary")
	assert.Equal(t, []int32{1}, cfg.BOS)

	require.NoError(t, os.WriteFile(path, []byte(`{"eos_token_id": "two"}`), 0o644))
	_, err = model.Load(dir, "")
	require.EqualError(t, err, path+`: eos_token_id: "two" is not a value it takes: want a token id or a list of them`)
}

func TestOverrides(t *testing.T) {
	const scaled = `"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 512}`
	cfg := load(t, with(scaled), `{"num_hidden_layers": 1, "num_key_value_heads": 1}`)
	assert.Equal(t, 1, cfg.NumLayers)
	assert.Equal(t, 1, cfg.NumKVHeads)
	assert.Equal(t, []int{32, 256}, shapeOf(t, cfg, "model.layers.0.self_attn.k_proj.weight"), "shapes are derived after the merge")

	cfg = load(t, with(scaled), `{"rope_scaling": {"factor": 4.0}}`)
	assert.Equal(t, 4.0, cfg.RoPE.Factor, "objects merge key by key")
	assert.Equal(t, "llama3", cfg.RoPE.Scaling)
	assert.Equal(t, 500000.0, cfg.RoPE.Theta)
	cfg = load(t, with(scaled), `{"rope_parameters": {"factor": 4.0}, "rope_theta": 7.0, "dtype": "float16"}`)
	assert.Equal(t, 4.0, cfg.RoPE.Factor, "the newer spelling meets a file in the older")
	assert.Equal(t, 7.0, cfg.RoPE.Theta)
	assert.Equal(t, "float16", cfg.DType)
	assert.Empty(t, load(t, with(scaled), `{"rope_scaling": null}`).RoPE.Scaling)
	assert.Equal(t, 16, load(t, llamaConfig, `{"num_attention_heads": 16}`).HeadDim)
	assert.Equal(t, 2, load(t, llamaConfig, `{"custom_note": 3}`).NumLayers, "a key the file has is known")
	assert.Equal(t, "qwen2", load(t, llamaConfig, `{"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": false}`).Family)
	assert.Equal(t, "qwen2", load(t, llamaConfig, `{"model_type": "qwen2"}`).Family)
	assert.Empty(t, load(t, llamaConfig, `{"eos_token_id": null}`).EOS)
	assert.Equal(t, "llama", load(t, with(`"hidden_act": "gelu"`), `{"hidden_act": "silu"}`).Family, "an override can mend the file")
}

func shapeOf(t *testing.T, cfg *model.Config, name string) []int {
	t.Helper()
	for _, tensor := range cfg.Tensors() {
		if tensor.Name == name {
			return tensor.Shape
		}
	}
	require.Fail(t, "no tensor "+name)
	return nil
}

func TestTensorNames(t *testing.T) {
	cfg := load(t, as("Qwen2ForCausalLM", `"tie_word_embeddings": true`), `{"num_hidden_layers": 1}`)
	var names []string
	for _, tensor := range cfg.Tensors() {
		names = append(names, strings.TrimPrefix(tensor.Name, "model."))
	}
	assert.Equal(t, []string{
		"embed_tokens.weight", "layers.0.input_layernorm.weight",
		"layers.0.self_attn.q_proj.weight", "layers.0.self_attn.q_proj.bias", "layers.0.self_attn.k_proj.weight",
		"layers.0.self_attn.k_proj.bias", "layers.0.self_attn.v_proj.weight", "layers.0.self_attn.v_proj.bias",
		"layers.0.self_attn.o_proj.weight", "layers.0.post_attention_layernorm.weight",
		"layers.0.mlp.gate_proj.weight", "layers.0.mlp.up_proj.weight", "layers.0.mlp.down_proj.weight", "norm.weight",
	}, names)
}

// Every message is one line that names the file or flag, the key and what would do.
func TestBadInput(t *testing.T) {
	const flag = "--json-model-override-args: "
	for _, c := range []struct{ name, config, overrides, want string }{
		{"empty file", "", "", "FILE: empty: want a JSON object"},
		{"blank file", " \n", "", "FILE: empty: want a JSON object"},
		{"malformed", "{\"architectures\": [\n\"LlamaForCausalLM\",,]}", "", "FILE: malformed JSON at line 2: invalid character ',' looking for beginning of value"},
		{"truncated", `{"architectures": ["Llama`, "", "FILE: malformed JSON at line 1: the text ends too early"},
		{"text after", llamaConfig + " {}", "", "FILE: malformed JSON: text after the object"},
		{"not an object", `[1, 2]`, "", "FILE: want a JSON object, found [1,2]"},
		{"empty object", `{}`, "", "FILE: architectures: missing: want one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM"},
		{"unknown architecture", `{"architectures": ["GPT2LMHeadModel"]}`, "", `FILE: architectures: "GPT2LMHeadModel" is not supported: want one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM`},
		{"unknown model type", `{"model_type": "gpt2"}`, "", `FILE: model_type: "gpt2" is not supported: want a model with one of the architectures LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM`},
		{"missing size", strings.Replace(llamaConfig, `"hidden_size": 256, `, "", 1), "", "FILE: hidden_size: missing: want a whole number from 1 to 262144"},
		{"size of zero", with(`"hidden_size": 0`), "", "FILE: hidden_size: 0 is not a value it takes: want a whole number from 1 to 262144"},
		{"huge size", with(`"vocab_size": 1152921504606846976`), "", "FILE: vocab_size: 1152921504606846976 is not a value it takes: want a whole number from 1 to 16777216"},
		{"fraction", with(`"hidden_size": 256.5`), "", "FILE: hidden_size: 256.5 is not a value it takes: want a whole number from 1 to 262144"},
		{"gelu", with(`"hidden_act": "gelu"`), "", `FILE: hidden_act: "gelu" is not a value it takes: want one of silu, swish`},
		{"rope type", with(`"rope_scaling": {"type": "dynamic", "factor": 2.0}`), "", `FILE: rope_scaling.type: "dynamic" is not a value it takes: want one of default, linear, llama3, yarn`},
		{"no factor", with(`"rope_parameters": {"rope_type": "yarn"}`), "", "FILE: rope_parameters.factor: missing with rope_type yarn: want a number of at least 1"},
		{"partial rotary", with(`"partial_rotary_factor": 0.5`), "", "FILE: partial_rotary_factor: 0.5 is not a value it takes: want 1"},
		{"attention bias", with(`"attention_bias": true`), "", "FILE: attention_bias: true is not supported, there is no bias on the attention's output projection: want false"},
		{"mlp bias", with(`"mlp_bias": true`), "", "FILE: mlp_bias: true is not supported, there is no bias on the MLP's projections: want false"},
		{"heads", with(`"num_key_value_heads": 3`), "", "FILE: num_key_value_heads: num_attention_heads 8 is not a multiple of num_key_value_heads 3: want num_key_value_heads to be one of 1, 2, 4, 8"},
		{"odd heads", with(`"head_dim": 33`), "", "FILE: head_dim: heads of 33 elements: want an even number, as rotary embeddings turn pairs"},
		{"mixed windows", as("Qwen2ForCausalLM", `"use_sliding_window": true, "max_window_layers": 1`), "", "FILE: max_window_layers: 1 of 2 layers would slide, a mixture is not supported: want use_sliding_window false, or max_window_layers 0 or at least 2"},

		{"override malformed", llamaConfig, `{"num_hidden_layers": `, flag + "malformed JSON at line 1: the text ends too early"},
		{"override list", llamaConfig, `[]`, flag + "want a JSON object, found []"},
		{"override unknown", llamaConfig, `{"num_hiden_layers": 1}`, flag + "num_hiden_layers: unknown key: the nearest known key is num_hidden_layers, a whole number from 1 to 1024"},
		{"override unknown, nested", llamaConfig, `{"rope_scaling": {"facter": 1}}`, flag + "rope_scaling.facter: unknown key: the nearest known key is rope_scaling.factor, a number from 1 to 1e+06"},
		{"override of another family", llamaConfig, `{"use_sliding_window": true}`, flag + "use_sliding_window: unknown key: the nearest known key is pretraining_tp, a whole number from 1 to 1024"},
		{"override with a line break", llamaConfig, `{"a\nb": 1}`, flag + `"a\nb": unknown key: the nearest known key is dtype, one of bfloat16, float16, float32`},
		{"override type", llamaConfig, `{"num_hidden_layers": "two"}`, flag + `num_hidden_layers: "two" is not a value it takes: want a whole number from 1 to 1024`},
		{"override bool", llamaConfig, `{"tie_word_embeddings": 1}`, flag + `tie_word_embeddings: 1 is not a value it takes: want true or false`},
		{"override object", llamaConfig, `{"rope_scaling": "llama3"}`, flag + `rope_scaling: "llama3" is not a value it takes: want an object with keys among rope_type, type, rope_theta, partial_rotary_factor, factor, low_freq_factor, high_freq_factor, original_max_position_embeddings, beta_fast, beta_slow, attention_factor, mscale, mscale_all_dim, truncate`},
		{"override nested type", llamaConfig, `{"rope_scaling": {"type": "linear", "factor": "2"}}`, flag + `rope_scaling.factor: "2" is not a value it takes: want a number from 1 to 1e+06`},
		{"override heads", llamaConfig, `{"num_attention_heads": 6}`, flag + "num_attention_heads: num_attention_heads 6 is not a multiple of num_key_value_heads 4: want num_key_value_heads to be one of 1, 2, 3, 6"},
		{"override hidden", llamaConfig, `{"hidden_size": 100}`, flag + "hidden_size: hidden_size 100 is not a multiple of num_attention_heads 8: want one of 1, 2, 4, 5, 10, 20, 25, 50, 100, or set head_dim"},
		{"override negative", llamaConfig, `{"num_hidden_layers": -1}`, flag + "num_hidden_layers: -1 is not a value it takes: want a whole number from 1 to 1024"},
		{"override architecture", llamaConfig, `{"architectures": ["Llama"]}`, flag + `architectures: "Llama" is not supported: want one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM`},
		{"override experts", as("Qwen3MoeForCausalLM", `"num_experts": 8, "head_dim": 32`), `{"num_experts_per_tok": 9}`, flag + "num_experts_per_tok: 9 experts for each token of 8 experts: want num_experts_per_tok to be at most num_experts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := writeConfig(t, c.config)
			_, err := model.Load(dir, c.overrides)
			var typed *model.Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, strings.Replace(c.want, "FILE", filepath.Join(dir, "config.json"), 1), err.Error())
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestMissingConfig(t *testing.T) {
	dir := t.TempDir()
	_, err := model.Load(dir, "")
	require.EqualError(t, err, filepath.Join(dir, "config.json")+": no such file: want a Hugging Face model directory with a config.json in it, or a GGUF file")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "config.json"), 0o755))
	_, err = model.Load(dir, "")
	require.Error(t, err)
}
