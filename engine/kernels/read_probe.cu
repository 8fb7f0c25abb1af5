// read_probe: how fast this card reads memory; the floor of every step is measured with it.
//
// It reads p.count 16-byte words and does nothing else; the sum keeps the loads alive. Each warp reads UNROLL lines of
// 512 bytes at a time. Bytes: 16*count.
#include "ptx.cuh"

struct ReadProbeParams {
	const uint4* src;
	u64 count;  // a multiple of 32*UNROLL
	u32* sink;
};
#ifndef UNROLL
#define UNROLL 16
#endif

extern "C" __global__ void read_probe(const __grid_constant__ ReadProbeParams p) {
	const u64 warp = ((u64)blockIdx.x * blockDim.x + threadIdx.x) >> 5, warps = ((u64)gridDim.x * blockDim.x) >> 5;
	const u32 lane = threadIdx.x & 31;
	u32 sum = 0;
	for (u64 i = warp * (32 * UNROLL); i < p.count; i += warps * (32 * UNROLL)) {
		uint4 v[UNROLL];
#pragma unroll
		for (int u = 0; u < UNROLL; u++) v[u] = ld_weight(p.src + i + u * 32 + lane);
#pragma unroll
		for (int u = 0; u < UNROLL; u++) sum ^= v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
	}
	if (sum == 0x5EED1234u) *p.sink = sum;  // almost never, and the compiler cannot know
}
