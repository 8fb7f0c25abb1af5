// Weights of e4m3 as the fp8 kernels read them; made by engine/cuda/fp8.go.
//
// [rows, K] row-major with an f32 scale for each row. Inside each group of 16 columns the bytes stand in an order of their own: byte 4j..4j+3 are
// columns 2j, 2j+8, 2j+1, 2j+9. A word then widens to two bf16 pairs that are a lane's part of the A operand of a 16-bit matrix product (mma,
// wgmma: columns 2t, 2t+1 and 2t+8, 2t+9), and bf16 activations need no shuffle. Activations of e4m3 keep the weights' order.
#pragma once
#include "ptx.cuh"

#ifdef K
static_assert(K % 16 == 0, "columns come in groups of 16");
#endif

// widen gives a word's four values as bf16 times 2^-120, exactly: e4m3's fields in the place of bf16's, whose exponent is biased by 127 and not
// by 7. first is columns 2j, 2j+1, second 2j+8, 2j+9. It takes no conversion instruction, so it runs on sm_80.
DEVICE void widen(u32 word, u32& first, u32& second) {
	first = (word << 8 & 0x80008000u) | (word << 4 & 0x07F007F0u);
	second = (word & 0x80008000u) | (word >> 4 & 0x07F007F0u);
}

// widen_whole gives the values themselves.
DEVICE void widen_whole(u32 word, u32& first, u32& second) {
	const u32 two120 = 0x7B807B80u;
	widen(word, first, second);
	first = mul_bf16x2(first, two120);
	second = mul_bf16x2(second, two120);
}

// What meets widened weights is lifted by 2^100, exactly, so that products and sums stay far from fp32's ends; UNLIFT takes both out again.
DEVICE uint4 lift(uint4 v) {
	const u32 two100 = 0x71807180u;
	return make_uint4(mul_bf16x2(v.x, two100), mul_bf16x2(v.y, two100), mul_bf16x2(v.z, two100), mul_bf16x2(v.w, two100));
}
DEVICE u32 word_of(uint4 v, int j) { return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w; }
constexpr float UNLIFT = 0x1p20f;
