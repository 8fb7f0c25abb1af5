//go:build cuda

package sources

/*
#include <cuda.h>
CUresult cuProfilerStart(void); // cudaProfiler.h, which not every toolkit carries
CUresult cuProfilerStop(void);

// tokamak_profiler_stop stops it in the context that it was started in, from any thread.
static CUresult tokamak_profiler_stop(CUcontext c) {
	CUcontext popped;
	CUresult r = cuCtxPushCurrent(c);
	if (r != CUDA_SUCCESS) return r;
	r = cuProfilerStop();
	CUresult back = cuCtxPopCurrent(&popped);
	return r != CUDA_SUCCESS ? r : back;
}
*/
import "C"

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/cupti"
)

func gpu() []profiling.Source { return []profiling.Source{new(cupti.Source)} }

func cudaProfiler() (profiling.Source, error) { return &profilerRange{}, nil }

// profilerRange opens and closes the range that an attached profiler records.
type profilerRange struct{ context C.CUcontext }

// OnLoop implements profiling.LoopSource: the calls belong to a context, which is current to the engine's thread. A capture that ends before
// its steps have come is stopped on another one.
func (*profilerRange) OnLoop() {}

func (p *profilerRange) Start() error {
	if r := C.cuCtxGetCurrent(&p.context); r != C.CUDA_SUCCESS {
		return fmt.Errorf("cuCtxGetCurrent: error %d", int(r))
	}
	if r := C.cuProfilerStart(); r != C.CUDA_SUCCESS {
		return fmt.Errorf("cuProfilerStart: error %d", int(r))
	}
	return nil
}

func (p *profilerRange) Stop() (profiling.Recording, error) {
	if r := C.tokamak_profiler_stop(p.context); r != C.CUDA_SUCCESS {
		return profiling.Recording{}, fmt.Errorf("cuProfilerStop: error %d", int(r))
	}
	return profiling.Recording{}, nil
}
