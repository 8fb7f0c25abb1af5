// w4_dequant: out = W as bf16, for matrix products of many tokens: W is read and written once, and cuBLASLt reads what was written.
//
// Shapes: W [N, K] of four bits (w4.cuh), out [N, K] bf16 row-major. Grid: any, 256 threads. Bytes: NK/2 + 4NK/GROUP + 2NK. Bound by memory.
// The difference of weight and zero point is exact; its product with the scale is rounded once.
#include "w4.cuh"
#define THREADS 256

struct Params {
	const uint4* w;
	const u32* scale;
	bf16* out;
};

extern "C" __global__ void __launch_bounds__(THREADS) w4_dequant(const __grid_constant__ Params p) {
	PDL_LAUNCH();
	PDL_WAIT();  // the product before may still read out
	const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warps = gridDim.x * (THREADS / 32);
	for (int i = blockIdx.x * (THREADS / 32) + (threadIdx.x >> 5); i < N / 8 * KB; i += warps) {
		const int rows = i / KB, step = i % KB;
		const uint4 v = ld_weight(p.w + (size_t)i * 32 + lane);
		const u32 words[4] = {v.x, v.y, v.z, v.w};
		u32 packed[PER_STEP];
#pragma unroll
		for (int q = 0; q < PER_STEP; q++) packed[q] = ld_weight4(p.scale + (rows * ROW_GROUPS + group_of(step, q)) * 8 + g);
#pragma unroll
		for (int j = 0; j < 4; j++) {
			const int k = step * 128 + j * 32 + t * 8;
			if (K % 128 != 0 && k >= K) continue;
			const float scale = WHOLE_SCALE * scale_of(packed[j * PER_STEP / 4]);
			const u32 zero = zero_pair(packed[j * PER_STEP / 4]);
			u32 pairs[4];
#pragma unroll
			for (int e = 0; e < 4; e++) {
				const u32 pair = whole_pair(words[j], e, zero);
				pairs[e] = pack_bf16(bf16_lo(pair) * scale, bf16_hi(pair) * scale);
			}
			st16(p.out + (size_t)(rows * 8 + g) * K + k, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
		}
	}
}
