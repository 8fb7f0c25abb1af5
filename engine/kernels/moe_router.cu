// moe_router: norm and router product of up to 16 tokens at a time: the logits that experts are chosen by, and the normed tokens.
//
// Shapes: x [tokens, HIDDEN], w [EXPERTS, HIDDEN], xn [tokens, HIDDEN] bf16, logits [tokens, EXPERTS] fp32. Grid: ceil(EXPERTS / 16) CTAs for each M
// tokens, 512 threads; shared memory: M normed rows. Bytes: 2 EXPERTS HIDDEN + 4 HIDDEN a token: bound by latency.
// A CTA has 16 experts as the rows of A, as in gemv_mma; its warps split K. Its weights are in registers before the wait on the previous kernel.
// Every CTA norms all its tokens, its warps sharing them. It ends with the logits: what needs the choice makes it (deal of moe.cuh), for a cluster
// that met to choose, and then to number the pairs, took longer than the rest.
#include "moe.cuh"

#if !defined(M)
#error "M: tokens at a time: 1, 2, 4, 8 or 16"
#endif
#ifndef RMS_EPS
#error "RMS_EPS"
#endif
#define THREADS 512

struct Params {
	const bf16* x;      // [tokens, HIDDEN]
	const bf16* gamma;  // [HIDDEN]
	const bf16* w;      // [EXPERTS, HIDDEN]
	bf16* xn;           // [tokens, HIDDEN]
	float* logits;      // [tokens, EXPERTS]
	i32 tokens, pad;
};

constexpr int WARPS = THREADS / 32, TILES = ceil_div(M, 8), K = HIDDEN;
constexpr int SHARE = WARPS / M;                       // warps that norm a token
constexpr int VECS = ceil_div(K / 8, 32 * SHARE);      // 16-byte pieces of x a lane norms
constexpr bool EARLY_GAMMA = VECS <= 4;                // gamma waits in registers
constexpr int STEPS = ceil_div(ceil_div(K, 32), WARPS);  // of 32 k, of one warp
constexpr int BLOCKS = ceil_div(EXPERTS, 16);
constexpr int PITCH = K + 32;  // of rows in shared memory, against bank conflicts
static_assert(SHARE * M == WARPS, "warps share tokens evenly");

struct Shared {
	float sum[WARPS][TILES][16][8];
	float squares[WARPS];
	alignas(16) bf16 x[1];  // [tokens][PITCH]
};

DEVICE u32 scaled(u32 x, u32 gamma, float scale) { return mul_bf16x2(pack_bf16(bf16_lo(x) * scale, bf16_hi(x) * scale), gamma); }
DEVICE float square(u32 x) { return bf16_lo(x) * bf16_lo(x) + bf16_hi(x) * bf16_hi(x); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) moe_router(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int k_lane = warp * STEPS * 32 + t * 8;
	const int block = blockIdx.x % BLOCKS, token0 = blockIdx.x / BLOCKS * M, tokens = min(M, p.tokens - token0);
	PDL_LAUNCH();
	auto valid = [&](int step) { return STEPS * WARPS * 32 == K || k_lane + step * 32 < K; };
	uint4 w[STEPS][2];
#pragma unroll
	for (int s = 0; s < STEPS; s++)
#pragma unroll
		for (int i = 0; i < 2; i++) {
			w[s][i] = make_uint4(0, 0, 0, 0);
			if (valid(s)) w[s][i] = ld_weight(p.w + (size_t)min(block * 16 + g + 8 * i, EXPERTS - 1) * K + k_lane + 32 * s);
		}
	const int token = warp / SHARE, piece = warp % SHARE * 32 + lane;  // what this lane norms: pieces piece, piece + 32 SHARE, ...
	uint4 gamma[EARLY_GAMMA ? VECS : 1], v[VECS];
	if (EARLY_GAMMA) {
#pragma unroll
		for (int i = 0; i < VECS; i++)
			if (piece + i * 32 * SHARE < K / 8) gamma[EARLY_GAMMA ? i : 0] = ld16(p.gamma + 8 * (piece + i * 32 * SHARE));
	}
	PDL_WAIT();

	if (token < tokens) {
		float ss = 0.f;
#pragma unroll
		for (int i = 0; i < VECS; i++) {
			v[i] = make_uint4(0, 0, 0, 0);
			if (piece + i * 32 * SHARE < K / 8) v[i] = ld16_l2(p.x + (size_t)(token0 + token) * K + 8 * (piece + i * 32 * SHARE));
		}
#pragma unroll
		for (int i = 0; i < VECS; i++) ss += square(v[i].x) + square(v[i].y) + square(v[i].z) + square(v[i].w);
		ss = warp_sum(ss);
		if (lane == 0) sh.squares[warp] = ss;
	}
	if (SHARE > 1) __syncthreads();
	else __syncwarp();
	if (token < tokens) {
		float ss = 0.f;
#pragma unroll
		for (int i = 0; i < SHARE; i++) ss += sh.squares[token * SHARE + i];
		const float scale = rsqrtf(ss * (1.f / K) + RMS_EPS);
#pragma unroll
		for (int i = 0; i < VECS; i++) {
			const int at = 8 * (piece + i * 32 * SHARE);
			if (at >= K) continue;
			const uint4 gm = EARLY_GAMMA ? gamma[EARLY_GAMMA ? i : 0] : ld16(p.gamma + at);
			const uint4 n = make_uint4(scaled(v[i].x, gm.x, scale), scaled(v[i].y, gm.y, scale), scaled(v[i].z, gm.z, scale), scaled(v[i].w, gm.w, scale));
			st16(sh.x + token * PITCH + at, n);
			if (token % BLOCKS == block) st16(p.xn + (size_t)(token0 + token) * K + at, n);
		}
	}
	__syncthreads();
	float c[TILES][4] = {};
#pragma unroll
	for (int s = 0; s < STEPS; s++)
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			uint4 x = make_uint4(0, 0, 0, 0);
			if (valid(s)) x = *reinterpret_cast<const uint4*>(sh.x + min(8 * i + g, tokens - 1) * PITCH + k_lane + 32 * s);
			mma_bf16(c[i], w[s][0].x, w[s][1].x, w[s][0].y, w[s][1].y, x.x, x.y);
			mma_bf16(c[i], w[s][0].z, w[s][1].z, w[s][0].w, w[s][1].w, x.z, x.w);
		}
#pragma unroll
	for (int i = 0; i < TILES; i++) {
		float(&s)[16][8] = sh.sum[warp][i];
		*reinterpret_cast<float2*>(&s[g][2 * t]) = make_float2(c[i][0], c[i][1]);
		*reinterpret_cast<float2*>(&s[g + 8][2 * t]) = make_float2(c[i][2], c[i][3]);
	}
	__syncthreads();
	const int m = tid / 16, row = tid % 16;
	if (tid >= 16 * 8 * TILES || m >= tokens || block * 16 + row >= EXPERTS) return;
	float s = 0.f;
#pragma unroll
	for (int j = 0; j < WARPS; j++) s += sh.sum[j][m / 8][row][m % 8];
	p.logits[(size_t)(token0 + m) * EXPERTS + block * 16 + row] = s;
}
