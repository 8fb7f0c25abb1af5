// fp8_dequant: out = W as bf16 in the plain order of columns, for products of many tokens where the library cannot take e4m3: W is read and
// written once.
//
// Shapes: W [N, K] of e4m3 (fp8.cuh), out [N, K] bf16 row-major. Grid: any, 256 threads. Bytes: 3NK + 4N. Bound by memory.
#include "fp8.cuh"

#if !defined(N) || !defined(K)
#error "N rows, K columns, a multiple of 16"
#endif

struct Params {
	const u8* w;
	const float* scale;  // [N]
	bf16* out;
};

extern "C" __global__ void __launch_bounds__(256) fp8_dequant(const __grid_constant__ Params p) {
	PDL_LAUNCH();
	PDL_WAIT();  // the product before may still read out
	for (u32 i = blockIdx.x * 256 + threadIdx.x; i < (u32)((u64)N * K / 16); i += gridDim.x * 256) {
		const uint4 v = ld_weight(p.w + (size_t)i * 16);
		const float scale = p.scale[i / (K / 16)] * 0x1p60f;
		u32 pairs[8];
#pragma unroll
		for (int j = 0; j < 4; j++) {
			u32 wide[2];
			widen(word_of(v, j), wide[0], wide[1]);
#pragma unroll
			for (int h = 0; h < 2; h++)  // 2^120 in two steps: fp32 has no room for it beside the scale
				pairs[4 * h + j] = pack_bf16(bf16_lo(wide[h]) * 0x1p60f * scale, bf16_hi(wide[h]) * 0x1p60f * scale);
		}
		bf16* to = p.out + (size_t)i * 16;
		st16(to, make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
		st16(to + 8, make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]));
	}
}
