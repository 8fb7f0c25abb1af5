// moe_router: norm, router product, choice of experts and dealing of tokens to them, for at most 16 tokens, in one cluster.
//
// Shapes: x [M, HIDDEN], w [EXPERTS, HIDDEN], xn [M, HIDDEN] bf16; out: xn and a Routing. Grid: one cluster of 8 CTAs, 512 threads; shared
// memory: M normed rows. Bytes: 2 EXPERTS HIDDEN + 4 M HIDDEN: bound by latency, which is why it is one launch.
// A CTA has 16 experts (or blocks of 16, 8 apart) as the rows of A, as in gemv_mma; its warps split K. Its weights are in registers before the wait on
// the previous kernel. Every CTA norms all tokens, a warp a token. Logits meet in the shared memory of CTA 0, where a warp chooses for a token and
// a thread counts for an expert. Padding tokens have no experts.
#include "moe.cuh"

#ifndef M
#error "M: tokens it is made for, 8 or 16"
#endif
#ifndef RMS_EPS
#error "RMS_EPS"
#endif
#define THREADS 512
#define CTAS 8

struct Params {
	const bf16* x;        // [tokens, HIDDEN]
	const bf16* gamma;    // [HIDDEN]
	const bf16* w;        // [EXPERTS, HIDDEN]
	const i32* tok_slot;  // [tokens], -1: padding
	const i32* tok_pos;   // [tokens], UNIFORM
	bf16* xn;             // [tokens, HIDDEN]
	Routing* routing;
	i32 tokens, layer;
};

constexpr int WARPS = THREADS / 32, TILES = M / 8, K = HIDDEN;
constexpr int STEPS = ceil_div(ceil_div(K, 32), WARPS);  // of 32 k, of one warp
constexpr int BLOCKS = ceil_div(EXPERTS, 16);
constexpr int PITCH = K + 32;  // of rows in shared memory, against bank conflicts
static_assert(M == 8 || M == 16, "one or two tiles of tokens");
static_assert(SMALL <= WARPS, "a warp a token");

struct Shared {
	float sum[WARPS][TILES][16][8];
	float logit[SMALL][EXPERTS];  // of CTA 0
	u32 mask[EXPERTS];
	i32 base[EXPERTS];
	Choice choice[SMALL][TOP_K];
	u32 totals[EXPERTS / 32 + 1];
	alignas(16) bf16 x[1];  // [tokens][PITCH]
};

DEVICE u32 scaled(u32 x, u32 gamma, float scale) { return mul_bf16x2(pack_bf16(bf16_lo(x) * scale, bf16_hi(x) * scale), gamma); }
DEVICE float square(u32 x) { return bf16_lo(x) * bf16_lo(x) + bf16_hi(x) * bf16_hi(x); }

#if ARCH >= 900
// deal numbers the pairs; the choices are there.
DEVICE void deal(const Params& p, Shared& sh) {
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
	const u32 mask = tid < EXPERTS ? sh.mask[tid] : 0;
	const u32 mine = __popc(mask) | (mask ? 1u << 16 : 0);  // pairs, experts
	u32 before = mine;
#pragma unroll
	for (int o = 1; o < 32; o <<= 1) {
		const u32 v = __shfl_up_sync(~0u, before, o);
		if (lane >= o) before += v;
	}
	if (lane == 31 && warp <= (EXPERTS - 1) / 32) sh.totals[warp] = before;
	__syncthreads();
	u32 all = 0;
	before -= mine;
#pragma unroll
	for (int i = 0; i <= (EXPERTS - 1) / 32; i++) {
		if (i < warp) before += sh.totals[i];
		all += sh.totals[i];
	}
	Routing& r = *p.routing;
	if (mask) {
		const int i = before >> 16, first = before & 0xFFFF;
		r.expert[i] = tid;
		r.first[i] = first;
		r.mask[i] = mask;
		sh.base[tid] = first;
	}
	if (tid == 0) {
		r.experts = all >> 16;
		r.pairs = all & 0xFFFF;
	}
	__syncthreads();
	for (int i = tid; i < p.tokens * TOP_K; i += THREADS) {
		const int t = i / TOP_K;
		const Choice c = sh.choice[t][i % TOP_K];
		if (c.expert < 0) continue;
		const int pair = sh.base[c.expert] + __popc(sh.mask[c.expert] & ((1u << t) - 1));
		r.token[pair] = t;
		r.weight[pair] = c.weight;
	}
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) moe_router(const __grid_constant__ Params p) {
#if ARCH >= 900
	extern __shared__ uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int k_lane = warp * STEPS * 32 + t * 8;
	const int rank = cluster_rank();
	PDL_LAUNCH();
	auto valid = [&](int step) { return STEPS * WARPS * 32 == K || k_lane + step * 32 < K; };
	uint4 w[STEPS][2];
	auto load_w = [&](int block) {
#pragma unroll
		for (int s = 0; s < STEPS; s++)
#pragma unroll
			for (int i = 0; i < 2; i++) {
				w[s][i] = make_uint4(0, 0, 0, 0);
				if (valid(s)) w[s][i] = ld_weight(p.w + (size_t)min(block * 16 + g + 8 * i, EXPERTS - 1) * K + k_lane + 32 * s);
			}
	};
	if (rank < BLOCKS) load_w(rank);
	for (int i = tid; i < EXPERTS; i += THREADS) sh.mask[i] = 0;
	cluster_sync();  // every CTA runs: its shared memory may be written
	PDL_WAIT();

	if (warp < p.tokens) {  // norm token `warp`
		bf16* to = sh.x + warp * PITCH;
		float ss = 0.f;
		for (int i = lane; i < K / 8; i += 32) {
			const uint4 v = ld16(p.x + (size_t)warp * K + 8 * i);
			ss += square(v.x) + square(v.y) + square(v.z) + square(v.w);
			st16(to + 8 * i, v);
		}
		const float scale = rsqrtf(warp_sum(ss) * (1.f / K) + RMS_EPS);
		for (int i = lane; i < K / 8; i += 32) {
			const uint4 v = *reinterpret_cast<uint4*>(to + 8 * i), gm = ld16(p.gamma + 8 * i);
			const uint4 n = make_uint4(scaled(v.x, gm.x, scale), scaled(v.y, gm.y, scale), scaled(v.z, gm.z, scale), scaled(v.w, gm.w, scale));
			st16(to + 8 * i, n);
			if (warp % CTAS == rank) st16(p.xn + (size_t)warp * K + 8 * i, n);
		}
	}
	__syncthreads();
	for (int block = rank; block < BLOCKS; block += CTAS) {
		if (block > rank) load_w(block);
		float c[TILES][4] = {};
#pragma unroll
		for (int s = 0; s < STEPS; s++)
#pragma unroll
			for (int i = 0; i < TILES; i++) {
				uint4 x = make_uint4(0, 0, 0, 0);
				if (valid(s)) x = *reinterpret_cast<const uint4*>(sh.x + min(8 * i + g, p.tokens - 1) * PITCH + k_lane + 32 * s);
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
		if (tid < 16 * M) {
			const int m = tid / 16, row = tid % 16;
			float s = 0.f;
#pragma unroll
			for (int j = 0; j < WARPS; j++) s += sh.sum[j][m / 8][row][m % 8];
			if (m < p.tokens && block * 16 + row < EXPERTS) cluster_store(&sh.logit[m][block * 16 + row], 0, s);
		}
		__syncthreads();
	}
	cluster_sync();
	if (rank > 0) return;

	if (warp < p.tokens) {
		const i32 slot = p.tok_slot[warp];
		float v[PER_LANE];
#pragma unroll
		for (int i = 0; i < PER_LANE; i++) v[i] = i * 32 + lane < EXPERTS ? sh.logit[warp][i * 32 + lane] : 0.f;
		Choice mine = choose(v);
		if (UNIFORM) mine.expert = uniform_expert(slot, p.tok_pos[warp], p.layer);
		if (slot < 0) mine.expert = -1;
		if (lane < TOP_K) {
			sh.choice[warp][lane] = mine;
			if (slot >= 0) atomicOr(&sh.mask[mine.expert], 1u << warp);  // bits: any order gives the same
		}
	}
	__syncthreads();
	deal(p, sh);
#endif
}
