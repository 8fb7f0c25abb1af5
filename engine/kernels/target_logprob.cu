// target_logprob: log softmax(logits[i])[target[i]]. Grid: rows, 512 threads. Bytes: 4 VOCAB a row.
#include "block.cuh"

#define THREADS 512

struct Params {
	const float* logits;  // [grid, VOCAB]
	const i32* target;    // [grid], -1: none
	float* out;           // [grid]
};

extern "C" __global__ void __launch_bounds__(THREADS) target_logprob(const __grid_constant__ Params p) {
	PDL_LAUNCH();
	PDL_WAIT();
	const float* z = p.logits + (size_t)blockIdx.x * VOCAB;
	const i32 target = p.target[blockIdx.x];
	if (target < 0) return;
	const float norm = log_sum_exp<THREADS>(z);
	if (threadIdx.x == 0) p.out[blockIdx.x] = z[target] - norm;
}
