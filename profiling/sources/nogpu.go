//go:build !cuda

package sources

import (
	"errors"

	"github.com/tokamak-engine/tokamak/profiling"
)

func gpu() []profiling.Source { return nil }

func cudaProfiler() (profiling.Source, error) {
	return nil, errors.New("activity CUDA_PROFILER: this build has no CUDA: build with -tags cuda")
}
