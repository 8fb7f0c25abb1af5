// Handing results to the host: a ring of entries in pinned memory, each closed by a sequence number.
#pragma once
#include "plan.cuh"

#ifndef MAX_ROWS
#error "MAX_ROWS"
#endif
#ifndef MAX_TOP
#error "MAX_TOP: log probabilities a row may ask for"
#endif
#define RING 4

struct Ring {
	u8* entries;  // pinned, RING of them
	u32 size;     // bytes of one: Sampled [MAX_ROWS], TokenLogProb [MAX_ROWS][MAX_TOP], u64 sequence number at size - 64
	u32 pad;
	u64* step;    // steps published

	DEVICE u8* entry(u64 now) const { return entries + (size_t)(now & (RING - 1)) * size; }
	// close publishes entry `now` after every thread's stores to it; all threads of the CTA call it.
	DEVICE void close(u64 now) const {
		__syncthreads();
		if (threadIdx.x == 0) {
			__threadfence_system();
			*step = now + 1;
			st_host_release(reinterpret_cast<u64*>(entry(now) + size - 64), now + 1);
		}
	}
};
