// moe_router: norm, router product and choice of experts for 16 tokens a cluster; of at most 16 (DEAL), dealing them to their experts as well.
//
// Shapes: x [tokens, HIDDEN], w [EXPERTS, HIDDEN], xn [tokens, HIDDEN] bf16; out: xn, and a Routing or the choices [tokens, TOP_K] by ascending
// expert. Grid: clusters of 8 CTAs, 512 threads; shared memory: M normed rows. Bytes: 2 EXPERTS HIDDEN + 4 HIDDEN a token: bound by latency,
// which is why it is one launch.
// A CTA has 16 experts (or blocks of 16, 8 apart) as the rows of A, as in gemv_mma; its warps split K. Its weights are in registers before the wait on
// the previous kernel. Every CTA norms all tokens, its warps sharing them. Logits meet in the shared memory of CTA 0, where a warp chooses for a token and
// a thread counts for an expert. Padding tokens have no experts.
#include "moe.cuh"

#if !defined(M) || !defined(DEAL)
#error "M: tokens of a cluster: 1, 2, 4, 8 or 16; DEAL"
#endif
#ifndef RMS_EPS
#error "RMS_EPS"
#endif
#define THREADS 512
#define CTAS 8
#define AHEAD_PIECE 8192u

struct Params {
	const bf16* x;        // [tokens, HIDDEN]
	const bf16* gamma;    // [HIDDEN]
	const bf16* w;        // [EXPERTS, HIDDEN]
	const i32* tok_slot;  // [tokens], -1: padding
	const i32* tok_pos;   // [tokens], UNIFORM
	bf16* xn;             // [tokens, HIDDEN]
	Routing* routing;     // DEAL
	u16* expert;          // else [tokens, TOP_K]: NONE for padding
	float* weight;        // [tokens, TOP_K]
	i32* pair;            // [tokens, TOP_K]: -1 for padding; moe_sort writes the others
	const u8* ahead;  // weights that the next kernels but two will read
	i32 tokens, layer;
	u32 ahead_bytes, pad;  // a multiple of 16 for each CTA behind the first cluster
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
	if (DEAL && blockIdx.x >= CTAS) {
		const u32 share = p.ahead_bytes / (gridDim.x - CTAS);
		PDL_WAIT();
		if (tid == 0)
			for (u32 at = 0; at < share; at += AHEAD_PIECE) prefetch_l2(p.ahead + (size_t)(blockIdx.x - CTAS) * share + at, min(share - at, AHEAD_PIECE), policy_evict_last());
		return;
	}
	const int token0 = DEAL ? 0 : blockIdx.x / CTAS * M, tokens = min(M, p.tokens - token0);  // the cluster's
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
	const int token = warp / SHARE, piece = warp % SHARE * 32 + lane;  // what this lane norms: pieces piece, piece + 32 SHARE, ...
	uint4 gamma[EARLY_GAMMA ? VECS : 1], v[VECS];
	if (EARLY_GAMMA) {
#pragma unroll
		for (int i = 0; i < VECS; i++)
			if (piece + i * 32 * SHARE < K / 8) gamma[EARLY_GAMMA ? i : 0] = ld16(p.gamma + 8 * (piece + i * 32 * SHARE));
	}
	cluster_sync();  // every CTA runs: its shared memory may be written
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
			if (token % CTAS == rank) st16(p.xn + (size_t)(token0 + token) * K + at, n);
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
		if (tid < 16 * 8 * TILES) {
			const int m = tid / 16, row = tid % 16;
			float s = 0.f;
#pragma unroll
			for (int j = 0; j < WARPS; j++) s += sh.sum[j][m / 8][row][m % 8];
			if (m < tokens && block * 16 + row < EXPERTS) cluster_store(&sh.logit[m][block * 16 + row], 0, s);
		}
		__syncthreads();
	}
	cluster_sync();
	if (rank > 0) return;

	if (warp < tokens) {
		const i32 slot = p.tok_slot[token0 + warp];
		float v[PER_LANE];
#pragma unroll
		for (int i = 0; i < PER_LANE; i++) v[i] = i * 32 + lane < EXPERTS ? sh.logit[warp][i * 32 + lane] : 0.f;
		Choice mine = choose(v);
		if (UNIFORM) mine.expert = uniform_expert(slot, p.tok_pos[token0 + warp], p.layer);
		if (!DEAL) {
			store_choices(mine, slot, token0 + warp, p.expert, p.weight, p.pair);
			return;
		}
		if (slot < 0) mine.expert = -1;
		if (lane < TOP_K) {
			sh.choice[warp][lane] = mine;
			if (slot >= 0) atomicOr(&sh.mask[mine.expert], 1u << warp);  // bits: any order gives the same
		}
	}
	if (!DEAL) return;
	__syncthreads();
	deal(p, sh);
#endif
}
