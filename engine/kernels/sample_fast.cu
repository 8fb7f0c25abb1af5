// sample_fast: merges the LM head's candidates of each sampling row into its token, and publishes. For rows that are greedy or of
// plain temperature, with no log probabilities. One CTA, a warp a row at a time.
#include "head.cuh"
#include "publish.cuh"

#define THREADS 512

struct Params {
	const Candidate* best;      // [rows, ctas]
	const i32* sample_slot;     // [rows], -1: padding
	i32* slot_token;            // [slots]
	Ring ring;
	i32 rows, ctas;
};

extern "C" __global__ void __launch_bounds__(THREADS) sample_fast(const __grid_constant__ Params p) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	PDL_LAUNCH();
	PDL_WAIT();
	const u64 now = *p.ring.step;
	Sampled* out = reinterpret_cast<Sampled*>(p.ring.entry(now));
	for (int r = warp; r < p.rows; r += THREADS / 32) {
		const i32 slot = p.sample_slot[r];
		if (slot < 0) continue;
		Best best;
		for (int i = lane; i < p.ctas; i += 32) best.merge(p.best[(size_t)r * p.ctas + i]);
#pragma unroll
		for (int o = 16; o; o >>= 1) best.merge(Candidate{__shfl_xor_sync(~0u, best.score, o), __shfl_xor_sync(~0u, best.token, o)});
		if (lane == 0) {
			const bool bad = best.token & NONFINITE;
			i32 token = (i32)(best.token & ~NONFINITE);
			if (token >= VOCAB) token = 0;  // nothing but NaN
			p.slot_token[slot] = token;
			*reinterpret_cast<int4*>(out + r) = make_int4(token, 0, bad ? SAMPLED_NONFINITE : 0, 0);
		}
	}
	p.ring.close(now);
}
