package weights

import (
	"encoding/binary"

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

// Int64s are the elements of a tensor of type I64.
func (t *Tensor) Int64s() []int64 {
	out := make([]int64, len(t.Data)/8)
	for i := range out {
		out[i] = int64(binary.LittleEndian.Uint64(t.Data[8*i:]))
	}
	return out
}
