package weights_test

import (
	"math"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// Every checkpoint of transformers opens, and every value in it is finite.
func TestOpenTinyModels(t *testing.T) {
	for _, family := range tinymodel.Families {
		t.Run(family, func(t *testing.T) {
			dir, err := tinymodel.Dir(family)
			require.NoError(t, err)
			cfg, err := model.Load(dir, "")
			require.NoError(t, err)
			store, err := weights.Open(dir, cfg)
			require.NoError(t, err)
			for _, want := range cfg.Tensors() {
				tensor, ok := store.Tensor(want.Name)
				require.True(t, ok, want.Name)
				assert.Equal(t, want.Shape, tensor.Shape)
				sum := 0.0
				row := make([]float32, tensor.RowLen())
				for i := range tensor.Rows() {
					tensor.Row(i, row)
					for _, v := range row {
						sum += math.Abs(float64(v))
					}
				}
				assert.False(t, math.IsNaN(sum) || math.IsInf(sum, 0) || sum == 0, "%s sums to %v", want.Name, sum)
			}
			goldens, err := tinymodel.Goldens(family)
			require.NoError(t, err)
			require.NotEmpty(t, goldens)
			for _, g := range goldens {
				require.Len(t, g.Logits, len(g.Prompt))
				require.Len(t, g.Logits[0], cfg.VocabSize)
			}
			require.NoError(t, store.Close())
			require.NoError(t, store.Close(), "Close may be called twice")
		})
	}
}
