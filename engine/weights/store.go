package weights

import (
	"errors"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// Store holds the tensors that a model needs, and no others. It may be read by many goroutines.
type Store struct {
	tensors map[string]*Tensor
	files   []*file
}

// NewDummy returns tensors that are made of their names, with the shapes cfg asks for and no file behind them.
func NewDummy(cfg *model.Config) *Store {
	s := &Store{tensors: map[string]*Tensor{}}
	for _, t := range cfg.Tensors() {
		s.tensors[t.Name] = newDummy(t.Name, t.Shape)
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
