package weights_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// TestDraftHead: a head's tensors lie beside the model's, from a file or made of their names, and their tokens are the model's.
func TestDraftHead(t *testing.T) {
	dir, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	cfg, err := model.Load(dir, "")
	require.NoError(t, err)
	dir, err = tinymodel.Dir(tinymodel.DraftHead)
	require.NoError(t, err)
	head, err := model.LoadDraftHead(dir, cfg)
	require.NoError(t, err)
	for name, add := range map[string]func(*weights.Store) error{
		"file":  func(s *weights.Store) error { return s.AddDraftHead(dir, head) },
		"dummy": func(s *weights.Store) error { s.AddDummyDraftHead(head); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			s := weights.NewDummy(cfg)
			alone := s.Bytes()
			require.NoError(t, add(s))
			for _, want := range head.Tensors() {
				got, ok := s.Tensor(model.DraftHeadPrefix + want.Name)
				require.True(t, ok, want.Name)
				require.Equal(t, want.Shape, got.Shape)
				require.Equal(t, model.DraftHeadPrefix+want.Name, got.Name)
			}
			require.Greater(t, s.Bytes(), alone)
			d2t, _ := s.Tensor(model.DraftHeadPrefix + model.DraftVocabularyMap)
			last := int64(-1)
			for i, offset := range d2t.Int64s() {
				id := int64(i) + offset
				require.Greater(t, id, last)
				require.Less(t, id, int64(cfg.VocabSize))
				last = id
			}
			_, ok := s.Tensor("fc.weight")
			require.False(t, ok)
			require.NoError(t, s.Close())
		})
	}

	s := weights.NewDummy(cfg)
	wrong := *head
	wrong.VocabSize--
	before := s.Bytes()
	require.ErrorContains(t, s.AddDraftHead(dir, &wrong), "lm_head.weight")
	require.Equal(t, before, s.Bytes())
}
