// moe_combine: x[token] += sum of weight * y[pair] over the token's pairs, in fp32, by ascending expert.
//
// Shapes: y [pairs, HIDDEN] bf16, pair i32 and weight fp32 [tokens, TOP_K], x [tokens, HIDDEN]. Grid: tokens, 128 threads.
// Bytes: 2 (2 + TOP_K) HIDDEN a token.
#include "moe.cuh"

#define THREADS 128

struct Params {
	const bf16* y;
	const i32* pair;  // -1: padding
	const float* weight;
	bf16* x;
};

DEVICE void add(float (&sum)[8], uint4 v, float weight) {
	const u32 w[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
	for (int i = 0; i < 4; i++) {
		sum[2 * i] = fmaf(weight, bf16_lo(w[i]), sum[2 * i]);
		sum[2 * i + 1] = fmaf(weight, bf16_hi(w[i]), sum[2 * i + 1]);
	}
}

extern "C" __global__ void __launch_bounds__(THREADS) moe_combine(const __grid_constant__ Params p) {
	PDL_LAUNCH();
	PDL_WAIT();
	const size_t token = blockIdx.x;
	if (p.pair[token * TOP_K] < 0) return;
	for (int i = threadIdx.x; i < HIDDEN / 8; i += THREADS) {
		bf16* to = p.x + token * HIDDEN + 8 * i;
		float sum[8] = {};
		add(sum, ld16_l2(to), 1.f);
#pragma unroll
		for (int j = 0; j < TOP_K; j++) add(sum, ld16_l2(p.y + (size_t)p.pair[token * TOP_K + j] * HIDDEN + 8 * i), p.weight[token * TOP_K + j]);
		st16(to, make_uint4(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7])));
	}
}
