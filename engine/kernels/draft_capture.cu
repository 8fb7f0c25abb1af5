// draft_capture: what the draft head reads of a layer: aux[step & 1][t][part] = x[t]. Grid: tokens, 128 threads. Bytes: 4 HIDDEN a token.
// The head reads a step's states when the step behind it may have begun: hence two copies.
#include "ptx.cuh"

#ifndef HIDDEN
#error "HIDDEN"
#endif

struct Params {
	const bf16* x;    // [tokens, HIDDEN]
	bf16* aux;        // [2, rows, 3, HIDDEN]
	const u64* step;
	i32 part, rows;
};

extern "C" __global__ void __launch_bounds__(128) draft_capture(const __grid_constant__ Params p) {
	PDL_WAIT();
	PDL_LAUNCH();
	const size_t row = (size_t)(ld4_l2(p.step) & 1) * p.rows + blockIdx.x;
	const bf16* from = p.x + (size_t)blockIdx.x * HIDDEN;
	bf16* to = p.aux + (3 * row + p.part) * HIDDEN;
	for (int i = threadIdx.x; i < HIDDEN / 8; i += blockDim.x) st16(to + 8 * i, ld16(from + 8 * i));
}
