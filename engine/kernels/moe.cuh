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

// Routing is a small step's pairs. Its arrays lie in whole 16 bytes.
struct alignas(16) Routing {
	i32 experts, pairs, pad[2];                        // experts with tokens; pairs in all
	i32 expert[(SMALL_EXPERTS + 3) / 4 * 4];  // ascending
	i32 first[(SMALL_EXPERTS + 3) / 4 * 4];   // the expert's first pair
	u32 mask[(SMALL_EXPERTS + 3) / 4 * 4];    // bit t: token t is the expert's
	i32 token[(SMALL_PAIRS + 3) / 4 * 4];     // of a pair
	float weight[(SMALL_PAIRS + 3) / 4 * 4];  // of a pair
};

struct Choice { i32 expert; float weight; };

constexpr int PER_LANE = ceil_div(EXPERTS, 32);

// choose gives lane j the j-th of the token's experts, the likeliest first and the lowest number on a tie. Lane i holds in v the logits of
// experts i, i+32, ... The weights are softmax's, over all experts or (NORM_TOP_K) over the chosen.
DEVICE Choice choose(const float (&v)[PER_LANE]) {
	const int lane = threadIdx.x & 31;
	float top = -__int_as_float(0x7F800000), total = 0.f, chosen = 0.f;
#pragma unroll
	for (int i = 0; i < PER_LANE; i++)
		if (i * 32 + lane < EXPERTS) top = fmaxf(top, v[i]);
#pragma unroll
	for (int o = 16; o; o >>= 1) top = fmaxf(top, __shfl_xor_sync(~0u, top, o));
	u32 key[PER_LANE];  // of exp(v - top), in order; 0: taken, or no expert
#pragma unroll
	for (int i = 0; i < PER_LANE; i++) {
		const float p = i * 32 + lane < EXPERTS ? expf(v[i] - top) : 0.f;
		total += p;
		key[i] = i * 32 + lane < EXPERTS ? (__float_as_uint(p) & 0x7FFFFFFFu) + 1 : 0;
	}
	total = warp_sum(total);
	Choice mine{0, 0.f};
#pragma unroll 1
	for (int j = 0; j < TOP_K; j++) {
		u32 best = 0, number = ~0u;
#pragma unroll
		for (int i = 0; i < PER_LANE; i++) best = max(best, key[i]);
		best = __reduce_max_sync(~0u, best);
#pragma unroll
		for (int i = PER_LANE - 1; i >= 0; i--)
			if (key[i] == best) number = i * 32 + lane;
		number = __reduce_min_sync(~0u, number);
#pragma unroll
		for (int i = 0; i < PER_LANE; i++)
			if (i * 32 + lane == number) key[i] = 0;
		const float p = __uint_as_float(best - 1);
		chosen += p;
		if (lane == j) mine = Choice{(i32)number, p};
	}
	mine.weight /= NORM_TOP_K ? chosen : total;
	return mine;
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

#define NONE 0xFFFF  // a padding token's expert

// store_choices stores a token's choices by ascending expert. The whole warp takes part.
DEVICE void store_choices(Choice mine, i32 slot, int token, u16* expert, float* weight, i32* pair) {
	const int lane = threadIdx.x & 31;
	int rank = 0;  // among the token's
	for (int j = 0; j < TOP_K; j++) rank += __shfl_sync(~0u, mine.expert, j) < mine.expert;
	if (lane >= TOP_K) return;
	const size_t at = (size_t)token * TOP_K + rank;
	expert[at] = slot < 0 ? NONE : mine.expert;
	weight[at] = mine.weight;
	if (slot < 0) pair[at] = -1;
}
