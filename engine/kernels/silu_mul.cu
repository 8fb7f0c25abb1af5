// silu_mul: act[t][j] = silu(gate) * up from gu [tokens, 2 INTER], gate and up interleaved in blocks of 8.
// Grid: (ceil(INTER/8 / 256), tokens), 256 threads, one block of 8 a thread. Bytes: 6 INTER a token.
#include "ptx.cuh"

#ifndef INTER
#error "INTER"
#endif
static_assert(INTER % 8 == 0, "gate and up are interleaved in blocks of 8");

struct Params {
	const bf16* gu;
	bf16* act;
};

DEVICE float silu(float v) { return __fdividef(v, 1.f + __expf(-v)); }
DEVICE u32 gated(u32 g, u32 u) { return pack_bf16(silu(bf16_lo(g)) * bf16_lo(u), silu(bf16_hi(g)) * bf16_hi(u)); }

extern "C" __global__ void __launch_bounds__(256) silu_mul(const __grid_constant__ Params p) {
	PDL_LAUNCH();
	PDL_WAIT();
	const int block = blockIdx.x * 256 + threadIdx.x;
	if (block >= INTER / 8) return;
	const bf16* from = p.gu + (size_t)blockIdx.y * 2 * INTER + 16 * block;
	const uint4 g = ld16(from), u = ld16(from + 8);
	st16(p.act + (size_t)blockIdx.y * INTER + 8 * block, make_uint4(gated(g.x, u.x), gated(g.y, u.y), gated(g.z, u.z), gated(g.w, u.w)));
}
