// rmsnorm: y[i] = x[row] / rms(x[row]) * gamma, row = rows ? rows[i] : i, rounded as Hugging Face does (before gamma and after).
// Grid: rows, 256 threads; a row stays in registers. Bytes: 4 HIDDEN a row.
#include "ptx.cuh"

#if !defined(HIDDEN) || !defined(RMS_EPS)
#error "HIDDEN, RMS_EPS"
#endif
#define THREADS 256
constexpr int VECS = ceil_div(HIDDEN / 8, THREADS);
static_assert(HIDDEN % 8 == 0, "HIDDEN: rows are read 16 bytes at a time");

struct Params {
	const bf16* x;
	const bf16* gamma;  // [HIDDEN]
	bf16* y;            // [grid, HIDDEN]
	const i32* rows;    // [grid] or null
};

DEVICE u32 scaled(u32 x, u32 gamma, float scale) { return mul_bf16x2(pack_bf16(bf16_lo(x) * scale, bf16_hi(x) * scale), gamma); }

extern "C" __global__ void __launch_bounds__(THREADS) rmsnorm(const __grid_constant__ Params p) {
	__shared__ float partial[THREADS / 32];
	const int tid = threadIdx.x;
	PDL_LAUNCH();
	uint4 g[VECS], v[VECS];
#pragma unroll
	for (int j = 0; j < VECS; j++)
		if (tid + j * THREADS < HIDDEN / 8) g[j] = ld16(p.gamma + 8 * (tid + j * THREADS));
	PDL_WAIT();
	const bf16* x = p.x + (size_t)(p.rows ? p.rows[blockIdx.x] : blockIdx.x) * HIDDEN;
	float ss = 0.f;
#pragma unroll
	for (int j = 0; j < VECS; j++) {
		if (tid + j * THREADS >= HIDDEN / 8) continue;
		v[j] = ld16(x + 8 * (tid + j * THREADS));
		const u32 w[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
#pragma unroll
		for (int i = 0; i < 4; i++) ss += bf16_lo(w[i]) * bf16_lo(w[i]) + bf16_hi(w[i]) * bf16_hi(w[i]);
	}
	ss = warp_sum(ss);
	if ((tid & 31) == 0) partial[tid >> 5] = ss;
	__syncthreads();
	ss = 0.f;
#pragma unroll
	for (int i = 0; i < THREADS / 32; i++) ss += partial[i];
	const float scale = rsqrtf(ss * (1.f / HIDDEN) + RMS_EPS);
#pragma unroll
	for (int j = 0; j < VECS; j++)
		if (tid + j * THREADS < HIDDEN / 8)
			st16(p.y + (size_t)blockIdx.x * HIDDEN + 8 * (tid + j * THREADS),
			     make_uint4(scaled(v[j].x, g[j].x, scale), scaled(v[j].y, g[j].y, scale), scaled(v[j].z, g[j].z, scale), scaled(v[j].w, g[j].w, scale)));
}
