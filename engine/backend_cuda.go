//go:build cuda

package engine

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func cudaAvailable() error {
	if err := cuda.Available(); err != nil {
		return fmt.Errorf("%w: %w", ErrNoDevice, err)
	}
	return nil
}

func openCUDA(cfg *model.Config, w *weights.Store, o backend.Options) (backend.Backend, error) {
	if err := cudaAvailable(); err != nil {
		return nil, fmt.Errorf("%w; --device cpu runs without one", err)
	}
	b, err := cuda.Open(cfg, w, o)
	if err != nil {
		return nil, err // a typed nil must not become an interface
	}
	return b, nil
}
