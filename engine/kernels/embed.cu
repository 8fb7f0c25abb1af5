// embed: x[t] = embed[tok_id[t]]. Grid: tokens, 128 threads. Bytes: 4 HIDDEN a token.
// It lets the next kernel start only after its own wait: so advance has ended before any kernel behind this one begins, and their
// preludes may read what advance wrote.
#include "ptx.cuh"

#ifndef HIDDEN
#error "HIDDEN"
#endif

struct Params {
	const i32* tok_id;  // [tokens]
	const bf16* embed;  // [VOCAB, HIDDEN]
	bf16* x;            // [tokens, HIDDEN]
};

extern "C" __global__ void __launch_bounds__(128) embed(const __grid_constant__ Params p) {
	PDL_WAIT();
	PDL_LAUNCH();
	const bf16* from = p.embed + (size_t)p.tok_id[blockIdx.x] * HIDDEN;
	bf16* to = p.x + (size_t)blockIdx.x * HIDDEN;
	for (int i = threadIdx.x; i < HIDDEN / 8; i += blockDim.x) st16(to + 8 * i, ld16(from + 8 * i));
}
