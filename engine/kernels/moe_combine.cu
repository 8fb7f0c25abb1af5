// moe_combine: x[token] += sum of weight * y[pair] over the token's pairs, in fp32, by ascending expert.
//
// Shapes: y [pairs, HIDDEN], pair i32 and weight fp32 [tokens, TOP_K], x [tokens, HIDDEN]. Grid: tokens, 256 threads.
// Bytes: 2 (2 + TOP_K) HIDDEN a token.
// Pairs and weights are read before the wait: moe_sort ended before moe_gemm_sm90's first product let the second one start, and this kernel starts
// behind that.
#include "moe.cuh"

#define THREADS 256
#define TOGETHER 8  // rows of y asked for at once

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
	const size_t token = blockIdx.x;
	i32 pair[TOP_K];
	float weight[TOP_K];
#pragma unroll
	for (int j = 0; j < TOP_K; j++) {
		pair[j] = (i32)ld4_l2(p.pair + token * TOP_K + j);
		weight[j] = __uint_as_float(ld4_l2(p.weight + token * TOP_K + j));
	}
	PDL_WAIT();
	if (pair[0] < 0) return;
	for (int i = threadIdx.x; i < HIDDEN / 8; i += THREADS) {
		bf16* to = p.x + token * HIDDEN + 8 * i;
		const uint4 x = ld16_l2(to);
		float sum[8] = {};
#pragma unroll
		for (int first = 0; first < TOP_K; first += TOGETHER) {
			uint4 y[TOGETHER];
#pragma unroll
			for (int j = 0; j < TOGETHER; j++)
				if (first + j < TOP_K) y[j] = ld16_l2(p.y + (size_t)pair[min_of(first + j, TOP_K - 1)] * HIDDEN + 8 * i);
			if (first == 0) add(sum, x, 1.f);
#pragma unroll
			for (int j = 0; j < TOGETHER; j++)
				if (first + j < TOP_K) add(sum, y[j], weight[min_of(first + j, TOP_K - 1)]);
		}
		st16(to, make_uint4(pack_bf16(sum[0], sum[1]), pack_bf16(sum[2], sum[3]), pack_bf16(sum[4], sum[5]), pack_bf16(sum[6], sum[7])));
	}
}
