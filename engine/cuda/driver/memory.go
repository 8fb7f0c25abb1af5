//go:build cuda

package driver

/*
#include <cuda.h>
static CUresult hostAlloc(void **host, CUdeviceptr *device, size_t bytes, unsigned flags) {
	CUresult r = cuMemHostAlloc(host, bytes, flags);
	if (r == CUDA_SUCCESS && (flags & CU_MEMHOSTALLOC_DEVICEMAP)) r = cuMemHostGetDevicePointer(device, *host, 0);
	return r;
}
static CUresult copy2D(CUdeviceptr dst, size_t pitch, const void *src, size_t width, size_t height, void *stream) {
	CUDA_MEMCPY2D c = {0};
	c.srcMemoryType = CU_MEMORYTYPE_HOST; c.srcHost = src; c.srcPitch = width;
	c.dstMemoryType = CU_MEMORYTYPE_DEVICE; c.dstDevice = dst; c.dstPitch = pitch;
	c.WidthInBytes = width; c.Height = height;
	return cuMemcpy2DAsync(&c, (CUstream)stream);
}
*/
import "C"

import (
	"unsafe"

	"gorgonia.org/cu"
)

// Ptr is an address in device memory.
type Ptr = cu.DevicePtr

// Alloc allocates device memory, aligned to 256 bytes at least.
func Alloc(bytes int64) (Ptr, error) {
	p, err := cu.MemAlloc(bytes)
	return p, wrap("cuMemAlloc", err)
}

// Free frees what [Alloc] gave.
func Free(p Ptr) error { return wrap("cuMemFree", cu.MemFree(p)) }

// Memset fills device memory and does not wait.
func Memset(p Ptr, value byte, bytes int64, s Stream) error {
	return wrap("cuMemsetD8Async", cu.MemsetD8Async(p, value, bytes, s.s))
}

// CopyToDevice copies from pinned memory and does not wait: src must live, unchanged, until the stream is past the copy.
func CopyToDevice(dst Ptr, src []byte, s Stream) error {
	if len(src) == 0 {
		return nil
	}
	return wrap("cuMemcpyHtoDAsync", cu.MemcpyHtoDAsync(dst, unsafe.Pointer(&src[0]), int64(len(src)), s.s))
}

// CopyToDevice2D copies rows of width bytes that lie one behind the other in src to places pitch bytes apart, from pinned memory,
// and does not wait.
func CopyToDevice2D(dst Ptr, pitch int64, src []byte, width int, s Stream) error {
	return check("cuMemcpy2DAsync", C.copy2D(C.CUdeviceptr(dst), C.size_t(pitch), unsafe.Pointer(&src[0]), C.size_t(width), C.size_t(len(src)/width), s.raw()))
}

// CopyToHost copies to pinned memory and does not wait.
func CopyToHost(dst []byte, src Ptr, s Stream) error {
	if len(dst) == 0 {
		return nil
	}
	return wrap("cuMemcpyDtoHAsync", cu.MemcpyDtoHAsync(unsafe.Pointer(&dst[0]), src, int64(len(dst)), s.s))
}

// Read copies device memory to dst, ordinary Go memory, and waits. For start-up and tests.
func Read(dst []byte, src Ptr) error {
	if len(dst) == 0 {
		return nil
	}
	return wrap("cuMemcpyDtoH", cu.MemcpyDtoH(unsafe.Pointer(&dst[0]), src, int64(len(dst))))
}

// Write copies src, ordinary Go memory, to the device and waits. For start-up and tests.
func Write(dst Ptr, src []byte) error {
	if len(src) == 0 {
		return nil
	}
	if err := cu.MemcpyHtoD(dst, unsafe.Pointer(&src[0]), int64(len(src))); err != nil {
		return wrap("cuMemcpyHtoD", err)
	}
	// The call returns when src has been read, which a small copy's arrival on the device may follow: streams that do not wait for the
	// default stream would race it.
	return wrap("cuCtxSynchronize", cu.Synchronize())
}

// Pinned is page-locked host memory that the device can read and write in place.
type Pinned struct {
	Bytes  []byte
	Device Ptr // the same memory as the device sees it
}

// AllocPinned allocates page-locked memory, mapped into the device's addresses.
func AllocPinned(bytes int) (*Pinned, error) {
	var host unsafe.Pointer
	var device C.CUdeviceptr
	if err := check("cuMemHostAlloc", C.hostAlloc(&host, &device, C.size_t(bytes), C.CU_MEMHOSTALLOC_PORTABLE|C.CU_MEMHOSTALLOC_DEVICEMAP)); err != nil {
		return nil, err
	}
	return &Pinned{unsafe.Slice((*byte)(host), bytes), Ptr(device)}, nil
}

// Free frees the memory. Nothing may use it any more.
func (p *Pinned) Free() error {
	if p == nil || p.Bytes == nil {
		return nil
	}
	err := check("cuMemFreeHost", C.cuMemFreeHost(unsafe.Pointer(&p.Bytes[0])))
	p.Bytes = nil
	return err
}
