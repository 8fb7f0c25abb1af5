//go:build cuda

package driver

/*
#include <cuda.h>
CUresult cuProfilerStart(void); // cudaProfiler.h, which not every toolkit carries
CUresult cuProfilerStop(void);
*/
import "C"

// ProfilerStart begins the range that Nsight Systems and Nsight Compute record with --capture-range=cudaProfilerApi.
func ProfilerStart() error { return check("cuProfilerStart", C.cuProfilerStart()) }

// ProfilerStop ends that range.
func ProfilerStop() error { return check("cuProfilerStop", C.cuProfilerStop()) }
