//go:build cuda

package sources

/*
#include <cuda.h>
CUresult cuProfilerStart(void); // cudaProfiler.h, which not every toolkit carries
CUresult cuProfilerStop(void);
*/
import "C"

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/cupti"
)

func gpu() []profiling.Source { return []profiling.Source{new(cupti.Source)} }

func cudaProfiler() (profiling.Source, error) { return profilerRange{}, nil }

// profilerRange opens and closes the range that an attached profiler records.
type profilerRange struct{}

// OnLoop implements profiling.LoopSource: the calls belong to a context.
func (profilerRange) OnLoop() {}

func (profilerRange) Start() error {
	if r := C.cuProfilerStart(); r != C.CUDA_SUCCESS {
		return fmt.Errorf("cuProfilerStart: error %d", int(r))
	}
	return nil
}

func (profilerRange) Stop() (profiling.Recording, error) {
	if r := C.cuProfilerStop(); r != C.CUDA_SUCCESS {
		return profiling.Recording{}, fmt.Errorf("cuProfilerStop: error %d", int(r))
	}
	return profiling.Recording{}, nil
}
