// publish: what sample chose -> slots' last tokens and the pinned ring. One CTA.
#include "publish.cuh"

#define THREADS 256

struct Params {
	const Sampled* sampled;       // [rows]
	const TokenLogProb* top;      // [rows, MAX_TOP]
	const i32* sample_slot;       // [rows], -1: padding
	const SlotParams* slot_param;
	i32* slot_token;
	Ring ring;
	i32 rows, pad;
};

extern "C" __global__ void __launch_bounds__(THREADS) publish(const __grid_constant__ Params p) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	PDL_LAUNCH();
	PDL_WAIT();
	const u64 now = *p.ring.step;
	u8* entry = p.ring.entry(now);
	TokenLogProb* top = reinterpret_cast<TokenLogProb*>(entry + sizeof(Sampled) * MAX_ROWS);
	for (int r = warp; r < p.rows; r += THREADS / 32) {
		const i32 slot = p.sample_slot[r];
		if (slot < 0) continue;
		if (lane == 0) {
			reinterpret_cast<int4*>(entry)[r] = *reinterpret_cast<const int4*>(p.sampled + r);
			p.slot_token[slot] = p.sampled[r].token;
		}
		const int n = min(p.slot_param[slot].top_logprobs, MAX_TOP);
		for (int i = lane; i < n; i += 32) top[r * MAX_TOP + i] = p.top[r * MAX_TOP + i];
	}
	p.ring.close(now);
}
