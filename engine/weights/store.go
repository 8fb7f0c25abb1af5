package weights

import (
	"errors"
	"slices"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// Store holds the tensors that a model needs, and no others. It may be read by many goroutines.
type Store struct {
	tensors map[string]*Tensor
	files   []*file
}

// NewDummy returns tensors that are made of their names, with the shapes cfg asks for and no file behind them. Where cfg says that
// linear layers are stored as E4M3 or in four bits, theirs are.
func NewDummy(cfg *model.Config) *Store {
	s := &Store{tensors: map[string]*Tensor{}}
	for _, t := range cfg.Tensors() {
		s.tensors[t.Name] = newDummy(t.Name, t.Shape)
		q := cfg.Quantization
		switch {
		case q == nil || !strings.HasSuffix(t.Name, "_proj.weight"):
		case q.Scheme == "fp8":
			s.tensors[t.Name] = s.tensors[t.Name].F8E4M3()
		case q.Scheme == "int4":
			group := q.GroupSize
			if group == 0 {
				group = t.Shape[1]
			}
			if t.Shape[0]%8 == 0 && t.Shape[1]%8 == 0 && t.Shape[1]%group == 0 { // as a file would have it
				s.tensors[t.Name] = newInt4Dummy(t.Name, t.Shape, group)
			}
		}
	}
	return s
}

// Tensor returns the tensor of that Hugging Face name.
func (s *Store) Tensor(name string) (*Tensor, bool) {
	t, ok := s.tensors[name]
	return t, ok
}

// Bytes is the size of all tensors as stored (dummies as bfloat16).
func (s *Store) Bytes() int64 {
	var n int64
	for _, t := range s.tensors {
		n += t.Bytes()
	}
	return n
}

// Close lets go of the files. No tensor may be read after it. It may be called twice.
func (s *Store) Close() error {
	var errs []error
	for _, f := range s.files {
		errs = append(errs, f.release())
	}
	s.files = nil
	return errors.Join(errs...)
}

// checkShape compares a file's shape with the one the model needs.
func checkShape(path, name string, got, want []int) error {
	if !slices.Equal(got, want) {
		return errorf(path, name, "shape %v, but the model's config asks for %v", got, want)
	}
	return nil
}
