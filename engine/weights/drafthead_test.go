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
			ids, err := s.DraftVocabulary(head)
			require.NoError(t, err)
			require.Len(t, ids, head.VocabSize)
			for i, id := range ids {
				require.True(t, i == 0 || id > ids[i-1], "ids ascend: %v", ids)
				require.Less(t, id, int32(cfg.VocabSize))
			}
			_, ok := s.Tensor("fc.weight")
			require.False(t, ok)
			require.NoError(t, s.Close())
		})
	}

	s := weights.NewDummy(cfg)
	all := *head
	all.VocabSize = cfg.VocabSize
	ids, err := s.DraftVocabulary(&all)
	require.NoError(t, err)
	require.Equal(t, int32(cfg.VocabSize-1), ids[cfg.VocabSize-1])
	_, err = s.DraftVocabulary(head)
	require.ErrorContains(t, err, "d2t is missing")
	s.AddDummyDraftHead(head)
	d2t, _ := s.Tensor(model.DraftHeadPrefix + model.DraftVocabularyMap)
	d2t.Data[8*3+7] = 0x80 // a negative id
	_, err = s.DraftVocabulary(head)
	require.ErrorContains(t, err, "outside of the vocabulary")

	wrong := *head
	wrong.VocabSize--
	before := s.Bytes()
	require.ErrorContains(t, s.AddDraftHead(dir, &wrong), "lm_head.weight")
	require.Equal(t, before, s.Bytes())
}
