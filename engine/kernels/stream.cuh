// What the two streaming matrix kernels of decode share: gemv (M <= 2, CUDA cores) and gemv_mma (M <= 16, matrix units).
#pragma once
#include "linear.cuh"

struct Params {
	const bf16* w;        // [N, K]
	const bf16* x;        // [tokens, K]
	const bf16* gamma;    // [K], NORM
	const bf16* bias;     // [N], STORE_BIAS
	bf16* y;              // [M, N], SwiGLU [M, N/2]; RESIDUAL adds to it
	float* logits;        // [M, N], HEAD_LOGITS
	const i32* x_row;     // head: row m reads token x_row[m] of x; null elsewhere
	const i32* slot;      // HEAD_FAST [M], -1 for padding
	const i32* position;  // HEAD_FAST [M]
	const SlotParams* slot_param;
	Candidate* best;      // HEAD_FAST [M, CTAs]
	const float* row_scale;  // FP8 [N]
	i32 tokens;           // at most M
	i32 pad;
};

DEVICE int token_row(const Params& p, int m) { return IS_HEAD && p.x_row ? p.x_row[m] : m; }
