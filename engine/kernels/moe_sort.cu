// moe_sort: numbers the pairs by expert, then by token; of at most 256 tokens (PERMUTE) it also brings an expert's rows side by side.
//
// Shapes: expert u16 [entries], entries = tokens TOP_K; pair i32 [entries]: the entry's number; count, first i32 [EXPERTS]: an expert's pairs.
// Grid EXPERTS, 512 threads: CTA e reads all entries, counts those of lower experts, whose pairs come first, and numbers its own in order. So
// nothing depends on who comes when. Bytes: 2 entries a CTA, from L2; PERMUTE: 4 HIDDEN a pair.
#include "moe.cuh"

#ifndef PERMUTE
#error "PERMUTE"
#endif
#define THREADS 512
#define MOST 256  // tokens, PERMUTE

struct Params {
	const u16* expert;  // rows of entries are padded to 8, with anything
	i32* pair;
	i32* count;
	i32* first;
	const bf16* xn;  // [tokens, HIDDEN], PERMUTE
	bf16* xp;        // [pairs, HIDDEN], PERMUTE
	i32 entries, pad;
};

extern "C" __global__ void __launch_bounds__(THREADS) moe_sort(const __grid_constant__ Params p) {
	__shared__ u16 token_of[PERMUTE ? MOST : 1];
	__shared__ u32 lower_of[THREADS / 32], mine_of[THREADS / 32];
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, expert = blockIdx.x;
	PDL_LAUNCH();
	PDL_WAIT();
	const int share = ceil_div(ceil_div(p.entries, 8), THREADS) * 8;  // entries of a thread
	const int begin = min(p.entries, tid * share), end = min(p.entries, begin + share);
	auto each = [&](auto f) {
		for (int i = begin; i < end; i += 8) {
			const uint4 v = ld16(p.expert + i);
			const u32 pairs[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
			for (int j = 0; j < 8; j++)
				if (i + j < end) f(i + j, (int)(pairs[j / 2] >> j % 2 * 16 & 0xFFFF));
		}
	};
	u32 lower = 0, mine = 0;
	each([&](int, int e) {
		lower += e < expert;
		mine += e == expert;
	});
	u32 before = mine;  // own pairs of this thread and those before it in the warp
#pragma unroll
	for (int o = 1; o < 32; o <<= 1) {
		const u32 v = __shfl_up_sync(~0u, before, o);
		if (lane >= o) before += v;
	}
	lower = __reduce_add_sync(~0u, lower);
	if (lane == 31) {
		lower_of[warp] = lower;
		mine_of[warp] = before;
	}
	__syncthreads();
	u32 first = 0, count = 0, at = before - mine;
#pragma unroll
	for (int i = 0; i < THREADS / 32; i++) {
		first += lower_of[i];
		count += mine_of[i];
		if (i < warp) at += mine_of[i];
	}
	if (tid == 0) {
		p.count[expert] = count;
		p.first[expert] = first;
	}
	at += first;
	if (mine > 0)
		each([&](int i, int e) {
			if (e != expert) return;
			if (PERMUTE) token_of[at - first] = i / TOP_K;
			p.pair[i] = at++;
		});
	if (!PERMUTE) return;
	__syncthreads();
	for (int i = warp; i < count; i += THREADS / 32)
#pragma unroll 4
		for (int j = lane; j < HIDDEN / 8; j += 32) st16(p.xp + (size_t)(first + i) * HIDDEN + 8 * j, ld16_l2(p.xn + (size_t)token_of[i] * HIDDEN + 8 * j));
}
