// fp8_quantize: rows of activations as e4m3 with a scale for each row, y[m] = e4m3(v / scale), scale = max |v| / 448, on the way from what
// makes them: SOURCE 0, v = x; 1, v = norm(x) as rmsnorm.cu rounds it; 2, v = silu(gate) * up of x [rows, 2K], interleaved in blocks of 8.
//
// Grid: rows, 256 threads; a row stays in registers. Columns in the order of fp8.cuh. Bytes: 3K a row, 5K of SOURCE 2.
#include "fp8.cuh"

#if !defined(K) || !defined(SOURCE) || !defined(RMS_EPS)
#error "K: columns, a multiple of 16; SOURCE: 0 plain, 1 norm, 2 SwiGLU; RMS_EPS"
#endif
#define THREADS 256
constexpr int GROUPS = ceil_div(K / 16, THREADS);  // of 16 columns, a thread's

struct Params {
	const bf16* x;
	const bf16* gamma;  // [K], SOURCE 1
	u8* y;              // [grid, K]
	float* scale;       // [grid]
};

DEVICE float silu(float v) { return __fdividef(v, 1.f + __expf(-v)); }

// block_reduce combines a value of each thread; all get the result.
template <typename F> DEVICE float block_reduce(float v, float (&partial)[THREADS / 32], F combine) {
#pragma unroll
	for (int o = 16; o; o >>= 1) v = combine(v, __shfl_xor_sync(~0u, v, o));
	if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = v;
	__syncthreads();
	v = partial[0];
#pragma unroll
	for (int i = 1; i < THREADS / 32; i++) v = combine(v, partial[i]);
	return v;
}

extern "C" __global__ void __launch_bounds__(THREADS) fp8_quantize(const __grid_constant__ Params p) {
	__shared__ float squares[THREADS / 32], largest[THREADS / 32];
	const int tid = threadIdx.x;
	PDL_LAUNCH();
	PDL_WAIT();
	const bf16* x = p.x + (size_t)blockIdx.x * (SOURCE == 2 ? 2 * K : K);
	u32 v[GROUPS][8];  // pairs of bf16
	float ss = 0.f;
#pragma unroll
	for (int j = 0; j < GROUPS; j++) {
		const int group = tid + j * THREADS;
#pragma unroll
		for (int i = 0; i < 8; i++) v[j][i] = 0;
		if (group >= K / 16) continue;
#pragma unroll
		for (int half = 0; half < 2; half++) {
			const uint4 a = ld16(x + (SOURCE == 2 ? 32 * group + 16 * half : 16 * group + 8 * half));
			uint4 b = make_uint4(0, 0, 0, 0);
			if (SOURCE == 2) b = ld16(x + 32 * group + 16 * half + 8);
#pragma unroll
			for (int i = 0; i < 4; i++) {
				u32 w = word_of(a, i);
				if (SOURCE == 1) ss += bf16_lo(w) * bf16_lo(w) + bf16_hi(w) * bf16_hi(w);
				if (SOURCE == 2) w = pack_bf16(silu(bf16_lo(w)) * bf16_lo(word_of(b, i)), silu(bf16_hi(w)) * bf16_hi(word_of(b, i)));
				v[j][4 * half + i] = w;
			}
		}
	}
	if (SOURCE == 1) {
		ss = block_reduce(ss, squares, [](float a, float b) { return a + b; });
		const float scale = rsqrtf(ss * (1.f / K) + RMS_EPS);
#pragma unroll
		for (int j = 0; j < GROUPS; j++) {
			const int group = tid + j * THREADS;
			if (group >= K / 16) continue;
#pragma unroll
			for (int half = 0; half < 2; half++) {
				const uint4 gamma = ld16(p.gamma + 16 * group + 8 * half);
#pragma unroll
				for (int i = 0; i < 4; i++) {
					u32& w = v[j][4 * half + i];
					w = mul_bf16x2(pack_bf16(bf16_lo(w) * scale, bf16_hi(w) * scale), word_of(gamma, i));
				}
			}
		}
	}
	float most = 0.f;
#pragma unroll
	for (int j = 0; j < GROUPS; j++)
#pragma unroll
		for (int i = 0; i < 8; i++) most = fmaxf(most, fmaxf(fabsf(bf16_lo(v[j][i])), fabsf(bf16_hi(v[j][i]))));
	most = block_reduce(most, largest, [](float a, float b) { return fmaxf(a, b); });
	const float inverse = most > 0.f ? 448.f / most : 0.f;  // infinities become NaN, as they should
	if (tid == 0) p.scale[blockIdx.x] = most * (1.f / 448.f);
#pragma unroll
	for (int j = 0; j < GROUPS; j++) {
		const int group = tid + j * THREADS;
		if (group >= K / 16) continue;
		u32 words[4];
#pragma unroll
		for (int i = 0; i < 4; i++)
			words[i] = pack_e4m3(bf16_lo(v[j][i]) * inverse, bf16_lo(v[j][i + 4]) * inverse, bf16_hi(v[j][i]) * inverse, bf16_hi(v[j][i + 4]) * inverse);
		st16(p.y + (size_t)blockIdx.x * K + 16 * group, make_uint4(words[0], words[1], words[2], words[3]));
	}
}
