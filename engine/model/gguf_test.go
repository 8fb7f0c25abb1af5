package model_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// ggufMeta is a small file's metadata for an architecture, with changes; a nil value deletes.
func ggufMeta(arch string, changes map[string]any) map[string]any {
	meta := map[string]any{"general.architecture": arch, "tokenizer.ggml.tokens": make([]string, 50)}
	for key, value := range map[string]any{
		"block_count": uint32(2), "embedding_length": uint32(64), "feed_forward_length": uint32(96), "context_length": uint32(1024),
		"attention.head_count": uint32(4), "attention.layer_norm_rms_epsilon": float32(1e-5), "rope.freq_base": float32(1e6),
	} {
		meta[arch+"."+key] = value
	}
	for key, value := range changes {
		meta[key] = value
		if value == nil {
			delete(meta, key)
		}
	}
	return meta
}

func TestFromGGUF(t *testing.T) {
	cfg, err := model.FromGGUF(ggufMeta("qwen3", map[string]any{
		"qwen3.attention.head_count_kv": []int32{2, 2}, "qwen3.attention.key_length": uint32(32), "qwen3.attention.value_length": uint32(32),
		"general.file_type": uint32(1), "tokenizer.ggml.bos_token_id": uint32(3), "tokenizer.ggml.eos_token_id": uint32(4),
		"tokenizer.ggml.eot_token_id": uint32(5), model.GGUFTensorNames: []string{"token_embd.weight", "output.weight"},
	}), "")
	require.NoError(t, err)
	assert.Equal(t, &model.Config{
		Architecture: "Qwen3ForCausalLM", Family: "qwen3", HiddenSize: 64, IntermediateSize: 96, NumLayers: 2, NumHeads: 4,
		NumKVHeads: 2, HeadDim: 32, VocabSize: 50, MaxPositions: 1024, RMSNormEps: 1e-5, QKNorm: true, DType: "float16",
		BOS: []int32{3}, EOS: []int32{4, 5}, RoPE: model.RoPE{Theta: 1e6, Factor: 1, AttentionFactor: 1},
	}, cfg)
}

func TestFromGGUFTensorsTell(t *testing.T) {
	cfg, err := model.FromGGUF(ggufMeta("llama", map[string]any{model.GGUFTensorNames: []string{"token_embd.weight", "blk.0.attn_q.bias"}}), "")
	require.NoError(t, err)
	assert.True(t, cfg.TieEmbeddings)
	assert.True(t, cfg.QKVBias)
	_, err = model.FromGGUF(ggufMeta("llama", map[string]any{model.GGUFTensorNames: []string{"blk.0.attn_output.bias"}}), "")
	require.EqualError(t, err, "GGUF metadata: blk.0.attn_output.bias: a bias on the attention's output projection is not supported")
}

func TestFromGGUFRope(t *testing.T) {
	const prefix = "llama.rope."
	for _, c := range []struct {
		name    string
		changes map[string]any
		want    model.RoPE
		context int
	}{
		{"none", map[string]any{prefix + "scaling.type": "none", prefix + "freq_base": nil},
			model.RoPE{Theta: 10000, Factor: 1, AttentionFactor: 1}, 1024},
		{"linear", map[string]any{prefix + "scaling.type": "linear", prefix + "scaling.factor": float32(4)},
			model.RoPE{Theta: 1e6, Scaling: "linear", Factor: 4, AttentionFactor: 1}, 4096},
		{"linear of 2023", map[string]any{prefix + "scale_linear": float32(2)},
			model.RoPE{Theta: 1e6, Scaling: "linear", Factor: 2, AttentionFactor: 1}, 2048},
		{"yarn", map[string]any{prefix + "scaling.type": "yarn", prefix + "scaling.factor": float32(4), prefix + "scaling.original_context_length": uint32(256)},
			model.RoPE{Theta: 1e6, Scaling: "yarn", Factor: 4, AttentionFactor: 1 + 0.1*math.Log(4), OriginalMaxPositions: 256, BetaFast: 32, BetaSlow: 1, Truncate: true}, 1024},
		{"yarn with a factor of its own", map[string]any{prefix + "scaling.type": "yarn", prefix + "scaling.factor": float32(4), prefix + "scaling.attn_factor": float32(0.5), prefix + "scaling.yarn_beta_fast": float32(16)},
			model.RoPE{Theta: 1e6, Scaling: "yarn", Factor: 4, AttentionFactor: 0.5 * (1 + 0.1*math.Log(4)), OriginalMaxPositions: 1024, BetaFast: 16, BetaSlow: 1, Truncate: true}, 4096},
		{"factors", map[string]any{model.GGUFRopeFreqs: []float32{1, 1, 1, 1, 2, 4, 8, 8}},
			model.RoPE{Theta: 1e6, Factor: 1, AttentionFactor: 1, FreqFactors: []float64{1, 1, 1, 1, 2, 4, 8, 8}}, 1024},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg, err := model.FromGGUF(ggufMeta("llama", c.changes), "")
			require.NoError(t, err)
			assert.InEpsilon(t, c.want.AttentionFactor, cfg.RoPE.AttentionFactor, 1e-12)
			cfg.RoPE.AttentionFactor = c.want.AttentionFactor
			assert.Equal(t, c.want, cfg.RoPE)
			assert.Equal(t, c.context, cfg.MaxPositions)
		})
	}
}
