package weights

import (
	"encoding/binary"
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// AddDraftHead maps the safetensors of a draft head's directory and adds the tensors h asks for, under their names behind
// [model.DraftHeadPrefix]. On an error the store is as it was.
func (s *Store) AddDraftHead(dir string, h *model.DraftHead) error {
	return s.read(dir, nil, model.DraftHeadPrefix, h.Tensors())
}

// AddDummyDraftHead adds what AddDraftHead adds, made of the tensors' names. Its vocabulary is spread evenly over the target's.
func (s *Store) AddDummyDraftHead(h *model.DraftHead) {
	for _, t := range h.Tensors() {
		name := model.DraftHeadPrefix + t.Name
		if t.Name == model.DraftVocabularyMap {
			s.tensors[name] = evenMap(name, h.VocabSize, h.Layer.VocabSize)
			continue
		}
		s.tensors[name] = newDummy(name, t.Shape)
	}
}

// evenMap is a d2t of n tokens out of all.
func evenMap(name string, n, all int) *Tensor {
	t := &Tensor{Name: name, DType: I64, Shape: []int{n}, Data: make([]byte, 0, 8*n)}
	for i := range n {
		t.Data = binary.LittleEndian.AppendUint64(t.Data, uint64(i*all/n-i))
	}
	return t
}

// DraftVocabulary returns the target's ids of the tokens that h can guess, [h.VocabSize].
func (s *Store) DraftVocabulary(h *model.DraftHead) ([]int32, error) {
	ids := make([]int32, h.VocabSize)
	for i := range ids {
		ids[i] = int32(i)
	}
	if !h.HasMap() {
		return ids, nil
	}
	name := model.DraftHeadPrefix + model.DraftVocabularyMap
	t, ok := s.Tensor(name)
	if !ok {
		return nil, fmt.Errorf("weight %s is missing", name)
	}
	for i := range ids {
		id := int64(i) + int64(binary.LittleEndian.Uint64(t.Data[8*i:]))
		if id < 0 || id >= int64(h.Layer.VocabSize) {
			return nil, fmt.Errorf("weight %s: token %d of the head stands for %d, outside of the vocabulary of %d", name, i, id, h.Layer.VocabSize)
		}
		ids[i] = int32(id)
	}
	return ids, nil
}
