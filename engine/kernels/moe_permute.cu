// moe_permute: xp[pair] = xn[token]: the rows of an expert's tokens side by side.
//
// Shapes: xn [tokens, HIDDEN], pair i32 [tokens, TOP_K], xp [pairs, HIDDEN]. Grid: tokens, 128 threads. Bytes: 2 (1 + TOP_K) HIDDEN a token.
#include "moe.cuh"

#define THREADS 128

struct Params {
	const bf16* xn;
	const i32* pair;  // -1: padding
	bf16* xp;
};

extern "C" __global__ void __launch_bounds__(THREADS) moe_permute(const __grid_constant__ Params p) {
	PDL_LAUNCH();
	PDL_WAIT();
	const size_t token = blockIdx.x;
	if (p.pair[token * TOP_K] < 0) return;
	for (int i = threadIdx.x; i < HIDDEN / 8; i += THREADS) {
		const uint4 v = ld16(p.xn + token * HIDDEN + 8 * i);
#pragma unroll
		for (int j = 0; j < TOP_K; j++) st16(p.xp + (size_t)p.pair[token * TOP_K + j] * HIDDEN + 8 * i, v);
	}
}
