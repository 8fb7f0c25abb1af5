//go:build cuda

package driver

/*
#include <cuda.h>
static CUresult encode2D(void *out, CUtensorMapDataType type, CUtensorMapSwizzle swizzle, CUdeviceptr p, cuuint64_t cols, cuuint64_t rows, cuuint64_t pitch, cuuint32_t boxCols, cuuint32_t boxRows) {
	CUtensorMap m; // aligned to 64 bytes in CUDA 12's header and to 128 in CUDA 13's
	cuuint64_t dim[2] = {cols, rows}, stride[1] = {pitch};
	cuuint32_t box[2] = {boxCols, boxRows}, step[2] = {1, 1};
	CUresult r = cuTensorMapEncodeTiled(&m, type, 2, (void *)p, dim, stride, box, step,
		CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
	__builtin_memcpy(out, &m, 128);
	return r;
}
*/
import "C"

import "unsafe"

// TensorMap describes a matrix to the tensor memory accelerator. In a parameter struct it must start at a multiple of 128 bytes.
type TensorMap [128]byte

// TensorMap2D describes a row-major bf16 matrix of rows x cols, read in boxes of boxRows x boxCols with the 128-byte swizzle
// (boxCols is at most 64); what is read past the edges is zero.
func TensorMap2D(p Ptr, rows, cols, boxRows, boxCols int) (m TensorMap, err error) {
	err = check("cuTensorMapEncodeTiled", C.encode2D(unsafe.Pointer(&m), C.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, C.CU_TENSOR_MAP_SWIZZLE_128B, C.CUdeviceptr(p), C.cuuint64_t(cols), C.cuuint64_t(rows),
		C.cuuint64_t(2*cols), C.cuuint32_t(boxCols), C.cuuint32_t(boxRows)))
	return m, err
}

// TensorMapBytes is TensorMap2D for elements of a byte: cols is a multiple of 16, boxCols at most 128.
func TensorMapBytes(p Ptr, rows, cols, boxRows, boxCols int) (m TensorMap, err error) {
	err = check("cuTensorMapEncodeTiled", C.encode2D(unsafe.Pointer(&m), C.CU_TENSOR_MAP_DATA_TYPE_UINT8, C.CU_TENSOR_MAP_SWIZZLE_128B, C.CUdeviceptr(p), C.cuuint64_t(cols), C.cuuint64_t(rows),
		C.cuuint64_t(cols), C.cuuint32_t(boxCols), C.cuuint32_t(boxRows)))
	return m, err
}

// TensorMapWords is TensorMap2D for elements of four bytes, which lie in shared memory as they do here: cols is a multiple of 4, boxCols at most 256.
func TensorMapWords(p Ptr, rows, cols, boxRows, boxCols int) (m TensorMap, err error) {
	err = check("cuTensorMapEncodeTiled", C.encode2D(unsafe.Pointer(&m), C.CU_TENSOR_MAP_DATA_TYPE_UINT32, C.CU_TENSOR_MAP_SWIZZLE_NONE, C.CUdeviceptr(p), C.cuuint64_t(cols), C.cuuint64_t(rows),
		C.cuuint64_t(4*cols), C.cuuint32_t(boxCols), C.cuuint32_t(boxRows)))
	return m, err
}
