//go:build cuda

package driver

/*
#include <cuda.h>
#include <stddef.h>
typedef struct { unsigned grid[3], block, smem, cluster; int pdl; } geometry;
static CUresult launchEx(void *f, void *s, const geometry *g, void *params) {
	CUlaunchAttribute at[2];
	CUlaunchConfig c = {0};
	c.gridDimX = g->grid[0]; c.gridDimY = g->grid[1]; c.gridDimZ = g->grid[2];
	c.blockDimX = g->block; c.blockDimY = 1; c.blockDimZ = 1;
	c.sharedMemBytes = g->smem; c.hStream = (CUstream)s; c.attrs = at;
	if (g->pdl) {
		at[c.numAttrs].id = CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
		at[c.numAttrs++].value.programmaticStreamSerializationAllowed = 1;
	}
	if (g->cluster > 1) {
		at[c.numAttrs].id = CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
		at[c.numAttrs].value.clusterDim.x = g->cluster;
		at[c.numAttrs].value.clusterDim.y = 1;
		at[c.numAttrs++].value.clusterDim.z = 1;
	}
	// A pointer to the one parameter, not a packed buffer: a parameter aligned to 128 bytes for its tensor maps does not start the buffer.
	void *args[] = {params};
	return cuLaunchKernelEx(&c, (CUfunction)f, args, NULL);
}
static CUresult setSmem(void *f, int n) { return cuFuncSetAttribute((CUfunction)f, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, n); }
static CUresult setWideCluster(void *f) { return cuFuncSetAttribute((CUfunction)f, CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1); }
*/
import "C"

import (
	"unsafe"

	"gorgonia.org/cu"
)

// Module is a loaded cubin.
type Module struct{ m cu.Module }

// LoadModule loads a cubin. The context keeps it until it is closed.
func LoadModule(cubin []byte) (Module, error) {
	m, err := cu.LoadData(string(cubin))
	return Module{m}, wrap("cuModuleLoadData", err)
}

// Global is the address and size of a __device__ variable.
func (m Module) Global(name string) (Ptr, int64, error) {
	p, n, err := m.m.Global(name)
	return p, n, wrap("cuModuleGetGlobal "+name, err)
}

// Function is a kernel of a module.
type Function struct {
	Name string
	f    unsafe.Pointer
	smem int
}

// Function finds a kernel by its symbol.
func (m Module) Function(symbol string) (*Function, error) {
	f, err := m.m.Function(symbol)
	if err != nil {
		return nil, wrap("cuModuleGetFunction "+symbol, err)
	}
	return &Function{Name: symbol, f: *(*unsafe.Pointer)(unsafe.Pointer(&f))}, nil // cu.Function is a struct of one handle
}

// AllowSharedMemory lets launches use up to bytes of dynamic shared memory. It must be called before a capture.
func (f *Function) AllowSharedMemory(bytes int) error {
	if bytes <= f.smem {
		return nil
	}
	f.smem = bytes
	return check("cuFuncSetAttribute shared memory", C.setSmem(f.f, C.int(bytes)))
}

// AllowWideCluster lets clusters have more than eight CTAs.
func (f *Function) AllowWideCluster() error {
	return check("cuFuncSetAttribute cluster", C.setWideCluster(f.f))
}

// Geometry is how a kernel is launched.
type Geometry struct {
	Grid    [3]int
	Block   int // threads, along x
	Smem    int // dynamic shared memory, bytes
	Cluster int // CTAs of a cluster along x; 0: none
	PDL     bool
}

// Launch enqueues the kernel. params is its one parameter, a struct.
func (f *Function) Launch(s Stream, g Geometry, params []byte) error {
	c := C.geometry{block: C.uint(g.Block), smem: C.uint(g.Smem), cluster: C.uint(g.Cluster)}
	for i, n := range g.Grid {
		c.grid[i] = C.uint(max(1, n))
	}
	if g.PDL {
		c.pdl = 1
	}
	r := C.launchEx(f.f, unsafe.Pointer(s.s.C()), &c, unsafe.Pointer(unsafe.SliceData(params)))
	if r != C.CUDA_SUCCESS {
		return &CUDAError{Op: "cuLaunchKernelEx", Code: int(r), Kernel: f.Name}
	}
	return nil
}
