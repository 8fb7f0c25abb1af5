//go:build !cuda

package sources

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/profiling"
)

func gpu() []profiling.Source { return nil }

func cudaProfiler() (profiling.Source, error) {
	return nil, fmt.Errorf("activity CUDA_PROFILER: %w: build with -tags cuda", ErrNoGPU)
}
