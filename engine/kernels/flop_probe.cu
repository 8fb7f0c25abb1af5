// flop_probe: how much arithmetic the matrix units of this card do at most; compute-bound kernels are judged by it.
//
// Two warpgroups on every SM multiply the same two tiles in shared memory over and over, p.steps times: [64, 64] by [64, 256] of bf16, or
// with FP8=1 [64, 128] by [128, 256] of e4m3. Nothing else happens. FLOPs: steps * 2 warpgroups * SMs * 2*64*256*64 (128).
#include "wgmma.cuh"

struct FlopProbeParams {
	u32* sink;
	u32 steps, pad;
};
#ifndef FP8
#error "FP8 is 0 or 1"
#endif

extern "C" __global__ void __launch_bounds__(256, 1) flop_probe(const __grid_constant__ FlopProbeParams p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
#if FP8
	typedef e4m3 T;
	const u32 keep = 0x8F8F8F8Fu, set = 0x30303030u;  // of either sign, 0.5 to 2
#else
	typedef bf16 T;
	const u32 keep = 0x807F807Fu, set = 0x3F803F80u;  // of either sign, 1 to 2
#endif
	__shared__ __align__(1024) u32 a[64 * 32], b[256 * 32];  // rows of 128 bytes
	for (u32 i = threadIdx.x; i < 256 * 32; i += blockDim.x) {  // values that differ in most bits: they cost the most power
		const u32 v = ((i * 2654435761u) ^ i << 16) * 2246822519u & keep | set;
		b[i] = v;
		if (i < 64 * 32) a[i] = v * 5 & keep | set;
	}
	fence_async_shared();
	__syncthreads();
	float d[128];
#pragma unroll
	for (int i = 0; i < 128; i++) d[i] = 0.f;
	for (u32 s = 0; s < p.steps; s++) {
		wgmma_fence();
#pragma unroll
		for (int k = 0; k < 4; k++) Wgmma<256, T>::product(d, wgmma_tile(a) + 2 * k, wgmma_tile(b) + 2 * k, 1);
		wgmma_commit();
		wgmma_wait<0>();
	}
	float sum = 0.f;
#pragma unroll
	for (int i = 0; i < 128; i++) sum += d[i];
	if (sum == 1e30f) *p.sink = 1;  // almost never, and the compiler cannot know
#endif
}
