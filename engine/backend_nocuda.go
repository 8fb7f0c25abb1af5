//go:build !cuda

package engine

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func cudaAvailable() error {
	return fmt.Errorf("%w: this build has no CUDA: build with -tags cuda", ErrNoDevice)
}

func openCUDA(*model.Config, *weights.Store, backend.Options) (backend.Backend, error) {
	return nil, cudaAvailable()
}
