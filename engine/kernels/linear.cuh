// What the matrix kernels share: defines, and what happens to a finished output.
#pragma once
#include "head.cuh"

#ifndef N
#error "N: rows of W, the outputs (SwiGLU: gate and up together)"
#endif
#ifndef K
#error "K: columns of W, a multiple of 8"
#endif
#ifndef M
#error "M: tokens it is made for"
#endif
#ifndef NORM
#error "NORM: 1 scales x by gamma and its RMS first"
#endif
#ifndef EPILOGUE
#error "EPILOGUE: 0 store, 1 store + bias, 2 add to y, 3 SwiGLU, 4 best token of the head, 5 fp32 logits"
#endif
#define STORE 0
#define STORE_BIAS 1
#define RESIDUAL 2
#define SWIGLU 3
#define HEAD_FAST 4
#define HEAD_LOGITS 5
#define IS_HEAD (EPILOGUE == HEAD_FAST || EPILOGUE == HEAD_LOGITS)
static_assert(K % 8 == 0, "K must be a multiple of 8: rows are read 16 bytes at a time");
static_assert(EPILOGUE != SWIGLU || N % 16 == 0, "gate and up are interleaved in blocks of 8 rows");

// gate_row is the row of W that makes the gate of output j; its up row lies 8 further.
DEVICE int gate_row(int j) { return (j >> 3) * 16 + (j & 7); }

DEVICE float swiglu(float gate, float up) { return __fdividef(gate, 1.f + __expf(-gate)) * up; }
