//go:build cuda

package driver

/*
#include <cuda.h>
#include <stdlib.h>
extern int tokamak_cuda_loaded __attribute__((weak));
extern int tokamak_cuda_init __attribute__((weak));
// 1: libcuda.so.1 was found; also where this program is linked against a real libcuda and not the trampolines.
static int libraryLoaded(void) { return &tokamak_cuda_loaded ? tokamak_cuda_loaded : 1; }
static int initResult(void) { return &tokamak_cuda_init ? tokamak_cuda_init : 0; }
static const char *errorName(int r) { const char *s = 0; cuGetErrorName((CUresult)r, &s); return s; }
static const char *errorString(int r) { const char *s = 0; cuGetErrorString((CUresult)r, &s); return s; }
*/
import "C"

import (
	"errors"
	"fmt"
	"reflect"
)

// CUDAError is a failed call of the driver or a fault of a kernel. Faults are sticky: the context is lost.
type CUDAError struct {
	Op     string // "cuGraphLaunch"
	Code   int    // CUresult
	Kernel string // the kernel launched or seen last, if one is to blame; else empty
}

// CodeNoDevice is the CUresult of every call where there is no driver.
const CodeNoDevice = int(C.CUDA_ERROR_NO_DEVICE)

func (e *CUDAError) Error() string {
	text := fmt.Sprintf("%s: CUDA error %d", e.Op, e.Code)
	if name := C.errorName(C.int(e.Code)); name != nil {
		text = fmt.Sprintf("%s: %s (%d): %s", e.Op, C.GoString(name), e.Code, C.GoString(C.errorString(C.int(e.Code))))
	}
	if e.Kernel != "" {
		text += ", kernel " + e.Kernel
	}
	return text
}

// Sticky tells that the context is lost: every later call will fail.
func (e *CUDAError) Sticky() bool {
	switch e.Code {
	case int(C.CUDA_ERROR_ILLEGAL_ADDRESS), int(C.CUDA_ERROR_LAUNCH_FAILED), int(C.CUDA_ERROR_LAUNCH_TIMEOUT), int(C.CUDA_ERROR_HARDWARE_STACK_ERROR),
		int(C.CUDA_ERROR_ILLEGAL_INSTRUCTION), int(C.CUDA_ERROR_MISALIGNED_ADDRESS), int(C.CUDA_ERROR_INVALID_ADDRESS_SPACE), int(C.CUDA_ERROR_INVALID_PC),
		int(C.CUDA_ERROR_ASSERT), int(C.CUDA_ERROR_ECC_UNCORRECTABLE), int(C.CUDA_ERROR_NVLINK_UNCORRECTABLE):
		return true
	}
	return false
}

func check(op string, r C.CUresult) error {
	if r == C.CUDA_SUCCESS {
		return nil
	}
	return &CUDAError{Op: op, Code: int(r)}
}

// wrap makes a *CUDAError of an error of gorgonia.org/cu, whose type is an unexported integer.
func wrap(op string, err error) error {
	if err == nil {
		return nil
	}
	var already *CUDAError
	if errors.As(err, &already) {
		return err
	}
	if v := reflect.ValueOf(err); v.CanInt() {
		return &CUDAError{Op: op, Code: int(v.Int())}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// Loaded says why no device can be used: no driver, or one that does not start. It is nil on a machine with a working driver.
func Loaded() error {
	switch r := int(C.initResult()); {
	case C.libraryLoaded() == 0:
		return errors.New("libcuda.so.1 not found: install the NVIDIA driver (in a container: start it with the GPU), or set LIBCUDA_PATH to the library")
	case r == CodeNoDevice:
		return errors.New("the NVIDIA driver finds no device")
	case r != 0:
		return &CUDAError{Op: "cuInit", Code: r}
	}
	return nil
}
