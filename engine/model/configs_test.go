package model_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// The parameter counts are those of the models' public descriptions, to the last weight.
func TestParameterCounts(t *testing.T) {
	want := map[string]int64{
		"llama-3.1-8b":    8_030_261_248,
		"llama-3.2-1b":    1_235_814_400,
		"mistral-7b-v0.3": 7_248_023_552,
		"qwen2.5-7b":      7_615_616_512,
		"qwen3-8b":        8_190_735_360,
		"qwen3-30b-a3b":   30_532_122_624,
		"smollm2-135m":    134_515_008,
		"tiny":            1_705_216,
	}
	for _, name := range configs.Names() {
		t.Run(name, func(t *testing.T) {
			dir, err := configs.Dir(name)
			require.NoError(t, err)
			c, err := model.Load(dir, "")
			require.NoError(t, err)
			require.Contains(t, want, name)
			assert.Equal(t, want[name], c.NumParameters())
			var sum int64
			for _, tensor := range c.Tensors() {
				n := int64(1)
				for _, d := range tensor.Shape {
					n *= int64(d)
				}
				sum += n
			}
			assert.Equal(t, want[name], sum, "Tensors and NumParameters differ")
		})
	}
}

func TestKVBytesPerToken(t *testing.T) {
	for name, want := range map[string]int64{"llama-3.1-8b": 131072, "llama-3.2-1b": 32768, "smollm2-135m": 23040} {
		dir, err := configs.Dir(name)
		require.NoError(t, err)
		c, err := model.Load(dir, "")
		require.NoError(t, err)
		assert.Equal(t, want, c.KVBytesPerToken(2), name)
	}
}
