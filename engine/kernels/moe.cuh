// What the kernels of mixture layers share: sizes, the choice of experts, and how a small step's tokens are dealt to them.
// A pair is a token and one of its experts. Pairs are numbered by expert, then by token: an expert's pairs lie side by side.
#pragma once
#include "ptx.cuh"

#if !defined(EXPERTS) || !defined(TOP_K) || !defined(MOE_INTER) || !defined(NORM_TOP_K) || !defined(UNIFORM)
#error "EXPERTS, TOP_K of each token, MOE_INTER of one expert, NORM_TOP_K (1: weights of the chosen sum to 1), UNIFORM (1: not the router chooses)"
#endif
#ifndef HIDDEN
#error "HIDDEN"
#endif
static_assert(EXPERTS <= 256 && TOP_K <= 32 && TOP_K <= EXPERTS, "more experts than the kernels take");
static_assert(MOE_INTER % 8 == 0 && HIDDEN % 8 == 0, "rows are read 16 bytes at a time");

constexpr int SMALL = 16;                                  // the most tokens of a small step
constexpr int SMALL_PAIRS = SMALL * TOP_K;
constexpr int SMALL_EXPERTS = min_of(EXPERTS, SMALL_PAIRS);  // that a small step can need

// Routing is a small step's pairs.
struct Routing {
	i32 experts;                // with tokens
	i32 expert[SMALL_EXPERTS];  // ascending
	i32 first[SMALL_EXPERTS];   // the expert's first pair
	u32 mask[SMALL_EXPERTS];    // bit t: token t is the expert's
	i32 token[SMALL_PAIRS];     // of a pair
	float weight[SMALL_PAIRS];  // of a pair
};

struct Choice { i32 expert; float weight; };

constexpr int PER_LANE = ceil_div(EXPERTS, 32);

// choose gives lane j the j-th of the token's experts, the likeliest first and the lowest number on a tie. Lane i holds in v the logits of
// experts i, i+32, ... The weights are softmax's, over all experts or (NORM_TOP_K) over the chosen.
DEVICE Choice choose(const float (&v)[PER_LANE]) {
	const int lane = threadIdx.x & 31;
	u32 key[PER_LANE];  // of v, in order; 0: taken, or no expert
	i32 of[PER_LANE];   // its expert
#pragma unroll
	for (int i = 0; i < PER_LANE; i++) {
		const u32 bits = __float_as_uint(v[i]);
		key[i] = i * 32 + lane < EXPERTS ? max((i32)bits < 0 ? ~bits : bits | 0x80000000u, 1u) : 0;
		of[i] = i * 32 + lane;
	}
	// Each lane's best comes first, and so on down, equal ones by number: a round looks at the lanes' first ones.
#pragma unroll
	for (int n = PER_LANE - 1; n > 0; n--)
#pragma unroll
		for (int i = 0; i < n; i++)
			if (key[i] < key[i + 1]) {
				const u32 k = key[i];
				key[i] = key[i + 1];
				key[i + 1] = k;
				const i32 o = of[i];
				of[i] = of[i + 1];
				of[i + 1] = o;
			}
	i32 expert = 0;
	u32 mine = 0;
#pragma unroll 1
	for (int j = 0; j < TOP_K; j++) {
		const u32 best = __reduce_max_sync(~0u, key[0]);
		bool take = key[0] == best;
		const u32 lanes = __ballot_sync(~0u, take);
		i32 number = __shfl_sync(~0u, of[0], __ffs(lanes) - 1);
		if (lanes & (lanes - 1)) {
			number = __reduce_min_sync(~0u, take ? of[0] : EXPERTS);
			take = take && of[0] == number;
		}
		if (take) {
#pragma unroll
			for (int i = 0; i + 1 < PER_LANE; i++) {
				key[i] = key[i + 1];
				of[i] = of[i + 1];
			}
			key[PER_LANE - 1] = 0;
		}
		if (lane == j) {
			expert = number;
			mine = best;
		}
	}
	const float logit = __uint_as_float((i32)mine < 0 ? mine & 0x7FFFFFFFu : ~mine), top = __shfl_sync(~0u, logit, 0);
	const float p = lane < TOP_K ? expf(logit - top) : 0.f;
	float total = p;
	if (!NORM_TOP_K) {
		total = 0.f;
#pragma unroll
		for (int i = 0; i < PER_LANE; i++)
			if (i * 32 + lane < EXPERTS) total += expf(v[i] - top);
	}
	return Choice{expert, p / warp_sum(total)};
}

// uniform_expert is lane j's expert where the router gives the weights alone: the token's experts lie at equal distances from a place that
// is a hash of slot, position and layer. backend.UniformExpert is the same.
DEVICE i32 uniform_expert(u32 slot, u32 position, u32 layer) {
	u32 h = position * 0x9E3779B1u ^ slot * 0x85EBCA77u ^ layer * 0xC2B2AE3Du;
	h ^= h >> 16;
	h *= 0x85EBCA6Bu;
	h ^= h >> 13;
	h *= 0xC2B2AE35u;
	h ^= h >> 16;
	return (i32)((h % EXPERTS + (threadIdx.x & 31) * (EXPERTS / TOP_K)) % EXPERTS);
}

// choice_of is choose of a token's logits, or uniform_expert with its weights.
DEVICE Choice choice_of(const float* logits, i32 slot, i32 position, i32 layer) {
	const int lane = threadIdx.x & 31;
	float v[PER_LANE];
#pragma unroll
	for (int i = 0; i < PER_LANE; i++) v[i] = i * 32 + lane < EXPERTS ? __uint_as_float(ld4_l2(logits + i * 32 + lane)) : 0.f;
	Choice mine = choose(v);
	if (UNIFORM) mine.expert = uniform_expert(slot, position, layer);
	return mine;
}

// rank_of is where lane's expert is among the token's, by number.
DEVICE int rank_of(Choice mine) {
	int rank = 0;
	for (int j = 0; j < TOP_K; j++) rank += __shfl_sync(~0u, mine.expert, j) < mine.expert;
	return rank;
}

// Tokens is what a small step's experts are chosen by.
struct Tokens {
	const float* logits;  // [count, EXPERTS]
	const i32* slot;      // [count], -1: padding
	const i32* position;  // [count], UNIFORM
	i32 count, layer;
};

struct Dealing {
	Routing routing;
	u32 mask[EXPERTS];
	i32 base[EXPERTS];
	u32 totals[EXPERTS / 32 + 1];
};

// deal chooses the experts of a small step's tokens, a warp a token, and numbers the pairs, a thread an expert. Every CTA that needs the routing
// makes it, of 4 EXPERTS bytes a token from L2: that takes less than another kernel before it, or a cluster whose CTAs meet. All of the CTA's 512
// threads take part, and meet before it returns.
DEVICE void deal(const Tokens& t, Dealing& d) {
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
	Routing& r = d.routing;
	if (t.count == 1) {  // nothing to sort but its own
		if (warp == 0) {
			const i32 slot = (i32)ld4_l2(t.slot);
			const Choice mine = choice_of(t.logits, slot, (i32)ld4_l2(t.position), t.layer);
			const int rank = rank_of(mine);
			if (lane == 0) r.experts = slot < 0 ? 0 : TOP_K;
			if (lane < TOP_K) {
				r.expert[rank] = mine.expert;
				r.first[rank] = rank;
				r.mask[rank] = 1;
				r.token[rank] = 0;
				r.weight[rank] = mine.weight;
			}
		}
		__syncthreads();
		return;
	}
	Choice mine{-1, 0.f};
	if (warp < t.count) {
		const i32 slot = (i32)ld4_l2(t.slot + warp);
		if (slot >= 0) mine = choice_of(t.logits + warp * EXPERTS, slot, (i32)ld4_l2(t.position + warp), t.layer);
	}
	if (tid < EXPERTS) d.mask[tid] = 0;
	__syncthreads();
	if (lane < TOP_K && mine.expert >= 0) atomicOr(&d.mask[mine.expert], 1u << warp);  // bits: any order gives the same
	__syncthreads();
	const u32 mask = tid < EXPERTS ? d.mask[tid] : 0;
	const u32 own = __popc(mask) | (mask ? 1u << 16 : 0);  // pairs, experts
	u32 before = own;
#pragma unroll
	for (int o = 1; o < 32; o <<= 1) {
		const u32 v = __shfl_up_sync(~0u, before, o);
		if (lane >= o) before += v;
	}
	if (lane == 31 && warp <= (EXPERTS - 1) / 32) d.totals[warp] = before;
	__syncthreads();
	u32 all = 0;
	before -= own;
#pragma unroll
	for (int i = 0; i <= (EXPERTS - 1) / 32; i++) {
		if (i < warp) before += d.totals[i];
		all += d.totals[i];
	}
	if (mask) {
		const int i = before >> 16, first = before & 0xFFFF;
		r.expert[i] = tid;
		r.first[i] = first;
		r.mask[i] = mask;
		d.base[tid] = first;
	}
	if (tid == 0) r.experts = all >> 16;
	__syncthreads();
	if (lane < TOP_K && mine.expert >= 0) {
		const int pair = d.base[mine.expert] + __popc(d.mask[mine.expert] & ((1u << warp) - 1));
		r.token[pair] = warp;
		r.weight[pair] = mine.weight;
	}
	__syncthreads();
}

#define NONE 0xFFFF  // a padding token's expert

// store_choices stores a token's choices by ascending expert. The whole warp takes part.
DEVICE void store_choices(Choice mine, i32 slot, int token, u16* expert, float* weight, i32* pair) {
	const int lane = threadIdx.x & 31, rank = rank_of(mine);
	if (lane >= TOP_K) return;
	const size_t at = (size_t)token * TOP_K + rank;
	expert[at] = slot < 0 ? NONE : mine.expert;
	weight[at] = mine.weight;
	if (slot < 0) pair[at] = -1;
}
