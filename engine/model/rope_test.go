package model_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// transformers computes in float32, so its own rounding is the tolerance: a few steps of 2^-24.
func TestInvFreqMatchesTransformers(t *testing.T) {
	data, err := os.ReadFile(filepath.Join("..", "..", "fixtures", "goldens", "rope", "rope.json"))
	require.NoError(t, err)
	var cases []struct {
		RopeParameters  json.RawMessage `json:"rope_parameters"`
		HeadDim         int             `json:"head_dim"`
		AttentionFactor float64         `json:"attention_factor"`
		InvFreq         []float64       `json:"inv_freq"`
	}
	require.NoError(t, json.Unmarshal(data, &cases))
	require.NotEmpty(t, cases)
	for _, c := range cases {
		overrides, err := json.Marshal(map[string]any{"rope_parameters": c.RopeParameters, "head_dim": c.HeadDim})
		require.NoError(t, err)
		cfg, err := model.Load(writeConfig(t, llamaConfig), string(overrides))
		require.NoError(t, err)
		assert.InEpsilon(t, c.AttentionFactor, cfg.RoPE.AttentionFactor, 1e-6, string(c.RopeParameters))
		got := cfg.InvFreq()
		require.Len(t, got, len(c.InvFreq))
		for i := range got {
			assert.InEpsilon(t, c.InvFreq[i], got[i], 2e-6, "%s head %d frequency %d", c.RopeParameters, c.HeadDim, i)
		}
	}
}

func TestMaxPositionsWithScaling(t *testing.T) {
	for overrides, want := range map[string]int{
		`{"max_position_embeddings": 4096}`:                                                                                                     4096,
		`{"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 2.5}}`:                                                  10240,
		`{"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}}`: 131072,
		`{"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}}`:          131072,
		`{"max_position_embeddings": 131072, "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 32768}}`:         131072,
		`{"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4}}`:                                                     131072,
	} {
		cfg, err := model.Load(writeConfig(t, llamaConfig), overrides)
		require.NoError(t, err, overrides)
		assert.Equal(t, want, cfg.MaxPositions, overrides)
	}
}
