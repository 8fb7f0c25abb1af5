package weights

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

func dummyStore(t *testing.T, name string) (*model.Config, *Store) {
	t.Helper()
	dir, err := configs.Dir(name)
	require.NoError(t, err)
	cfg, err := model.Load(dir, "")
	require.NoError(t, err)
	return cfg, NewDummy(cfg)
}

func TestDummyTensors(t *testing.T) {
	for _, name := range []string{"tiny", "qwen2.5-7b", "qwen3-8b"} {
		t.Run(name, func(t *testing.T) {
			cfg, store := dummyStore(t, name)
			seeds := map[uint32]string{}
			for _, want := range cfg.Tensors() {
				tensor, ok := store.Tensor(want.Name)
				require.True(t, ok, want.Name)
				assert.Empty(t, seeds[tensor.Dummy.Seed], "%s has the seed of another tensor", want.Name)
				seeds[tensor.Dummy.Seed] = want.Name
			}
			assert.Equal(t, 2*cfg.NumParameters(), store.Bytes())
		})
	}
}

// A matrix has mean 0 and standard deviation 1/sqrt(fan_in), norms are 1, biases small and not zero, all exact in bfloat16.
func TestDummyValues(t *testing.T) {
	_, store := dummyStore(t, "qwen2.5-7b")
	for name, deviation := range map[string]float64{
		"model.layers.3.mlp.down_proj.weight":    1 / math.Sqrt(18944),
		"model.layers.3.self_attn.q_proj.weight": 1 / math.Sqrt(3584),
		"model.embed_tokens.weight":              1 / math.Sqrt(3584),
		"model.layers.3.self_attn.q_proj.bias":   0.1 / math.Sqrt(3),
	} {
		tensor, ok := store.Tensor(name)
		require.True(t, ok)
		row := make([]float32, tensor.RowLen())
		var sum, squares float64
		n := 0
		for i := range min(16, tensor.Rows()) {
			tensor.Row(i, row)
			for _, v := range row {
				require.Equal(t, v, BF16ToFloat32(BF16FromFloat32(v)))
				sum += float64(v)
				squares += float64(v) * float64(v)
				n++
			}
		}
		// The mean of n values deviates by deviation/sqrt(n); five times that is beyond chance.
		assert.InDelta(t, 0, sum/float64(n), 5*deviation/math.Sqrt(float64(n)), name)
		assert.InEpsilon(t, deviation, math.Sqrt(squares/float64(n)), 5/math.Sqrt(float64(n)), name)
	}
	norm, _ := store.Tensor("model.norm.weight")
	row := make([]float32, norm.RowLen())
	norm.Row(0, row)
	assert.Equal(t, float32(1), row[0])
	assert.Equal(t, float32(1), row[len(row)-1])
}

// Other backends make the same values by the same hash: these, computed apart from this code, must never change.
func TestDummyGoldens(t *testing.T) {
	tensor := newDummy("model.layers.0.self_attn.q_proj.weight", []int{4, 3})
	assert.Equal(t, uint32(0x1af1383b), tensor.Dummy.Seed)
	row := make([]float32, 3)
	tensor.Row(2, row)
	assert.Equal(t, []float32{0.94140625, -0.0228271484375, -0.9921875}, row)
	assert.Equal(t, float32(-0.21887671947479248), tensor.Dummy.At(1<<40))
}

func TestDummyRowsDiffer(t *testing.T) {
	_, store := dummyStore(t, "tiny")
	tensor, _ := store.Tensor("model.embed_tokens.weight")
	seen := map[[4]float32]int{}
	row := make([]float32, tensor.RowLen())
	for i := range tensor.Rows() {
		tensor.Row(i, row)
		before, twice := seen[[4]float32(row)]
		require.False(t, twice, "rows %d and %d begin alike", before, i)
		seen[[4]float32(row)] = i
	}
}

// A dummy of four bits has at most 16 values, which bfloat16 holds, about as far apart as others of its size.
func TestDummyInt4(t *testing.T) {
	dir, err := configs.Dir("qwen2.5-7b")
	require.NoError(t, err)
	cfg, err := model.Load(dir, `{"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}`)
	require.NoError(t, err)
	store := NewDummy(cfg)
	head, _ := store.Tensor("lm_head.weight")
	assert.Nil(t, head.Quant, "the head stays plain")
	w, ok := store.Tensor("model.layers.3.mlp.down_proj.weight")
	require.True(t, ok)
	require.Equal(t, I4, w.DType)
	require.Equal(t, 128, w.Quant.GroupSize)
	require.EqualValues(t, w.Rows()*w.RowLen()/2, w.Bytes())
	row, values, squares := make([]float32, w.RowLen()), map[float32]bool{}, 0.0
	w.Row(5, row)
	for _, v := range row {
		require.Equal(t, v, BF16ToFloat32(BF16FromFloat32(v)))
		values[v] = true
		squares += float64(v) * float64(v)
	}
	assert.Len(t, values, 16)
	assert.InEpsilon(t, 1/math.Sqrt(float64(w.RowLen())), math.Sqrt(squares/float64(len(row))), 0.1)
}
