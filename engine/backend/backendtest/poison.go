package backendtest

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// newPoisoned returns dummy weights in which one token's embedding is NaN, and that token.
func newPoisoned(t *testing.T, cfg *model.Config) (*weights.Store, int32) {
	w := weights.NewDummy(cfg)
	e, ok := w.Tensor("model.embed_tokens.weight")
	require.True(t, ok)
	bad := int32(cfg.VocabSize - 1)
	data := make([]byte, 2*cfg.VocabSize*cfg.HiddenSize)
	row := make([]float32, cfg.HiddenSize)
	for i := range cfg.VocabSize {
		e.Row(i, row)
		for j, v := range row {
			b := weights.BF16FromFloat32(v)
			if i == int(bad) {
				b = 0x7FC0
			}
			binary.LittleEndian.PutUint16(data[2*(i*cfg.HiddenSize+j):], b)
		}
	}
	e.Data, e.Dummy = data, nil
	return w, bad
}
