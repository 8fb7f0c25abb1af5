package model

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// Whatever config.json and overrides hold, there is a consistent Config or a one-line *Error.
func FuzzConfig(f *testing.F) {
	const moe = `{"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
"num_attention_heads": 8, "vocab_size": 1000, "num_experts": 8, "rope_scaling": {"type": "yarn", "factor": 2}}`
	f.Add(moe, `{"rope_theta": 3, "rope_parameters": {"truncate": false}, "num_experts_per_tok": 2}`)
	f.Add(`{"architectures": []}`, `{"a": {"b": null}}`)
	for _, name := range configs.Names() {
		dir, err := configs.Dir(name)
		require.NoError(f, err)
		data, err := os.ReadFile(filepath.Join(dir, "config.json"))
		require.NoError(f, err)
		f.Add(string(data), `{"num_hidden_layers": 1}`)
	}
	f.Fuzz(func(t *testing.T, config, overrides string) {
		values, err := decodeObject("config.json", []byte(config))
		var cfg *Config
		if err == nil {
			cfg, err = build("config.json", values, nil, overrides)
		}
		if err != nil {
			var typed *Error
			require.ErrorAs(t, err, &typed)
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.Zero(t, cfg.NumHeads%cfg.NumKVHeads)
		require.Zero(t, cfg.HeadDim%2)
		require.Positive(t, cfg.NumParameters())
		require.Positive(t, cfg.KVBytesPerToken(4))
		require.Positive(t, cfg.MaxPositions)
		require.Len(t, cfg.InvFreq(), cfg.HeadDim/2)
	})
}
