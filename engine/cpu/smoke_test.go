package cpu

import (
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func tinyConfig() *model.Config {
	return &model.Config{
		Architecture: "LlamaForCausalLM", Family: "llama",
		HiddenSize: 64, IntermediateSize: 96, NumLayers: 2, NumHeads: 4, NumKVHeads: 2, HeadDim: 16, VocabSize: 300,
		MaxPositions: 256, RMSNormEps: 1e-5, RoPE: model.RoPE{Theta: 10000, Factor: 1, AttentionFactor: 1}, TieEmbeddings: true,
	}
}

func TestSmoke(t *testing.T) {
	cfg := tinyConfig()
	b, err := Open(cfg, weights.NewDummy(cfg), backend.Options{Threads: 2})
	require.NoError(t, err)
	t.Log(b.Info())
	row := backend.Row{Slot: 1, Start: &backend.Start{}, Tokens: []int32{1, 2, 3, 4, 5}, Pages: []int32{3, 2}, Sample: true, Logits: true}
	var res backend.Result
	for i := 0; i < 10; i++ {
		id, err := b.Launch(&backend.Batch{Rows: []backend.Row{row}})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &res))
		t.Log(res.Rows[0].Token, res.Rows[0].Logits[:5])
		row = backend.Row{Slot: 1, Position: 5 + i, Pages: []int32{3, 2}, Sample: true, Logits: true}
	}
	require.NoError(t, b.Close())
}
