// w4_fill: dummy weights of four bits, made in place at start-up.
//
// It writes the words of a dummy tensor [rows, K] as w4.cuh lays them out: a nibble is the upper four bits of the element's hash, as
// engine/weights.Dummy.At has it. interleave says where blocks of eight rows lie: 0, one behind the other; 1 and 2, gate's and up's in turn.
// With constant set it writes that instead: a tensor's scales. Grid: any; block 256. Writes 4*count bytes.
#include "dummy.cuh"

#ifndef K
#error "K: columns"
#endif

struct W4FillParams {
	u32* dst;
	u64 count;  // words
	u32 block;  // words of eight rows
	u32 seed, constant, interleave;
};

extern "C" __global__ void __launch_bounds__(256) w4_fill(const __grid_constant__ W4FillParams p) {
	for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < p.count; i += (u64)gridDim.x * 256) {
		const u32 block = (u32)(i / p.block), at = (u32)(i % p.block);  // at: 128 words for each 128 columns, four for each lane
		u32 word = p.constant;
		if (!word) {
			const u64 row = block * 8 + (at >> 4 & 7);
			const u32 column = at / 128 * 128 + (at & 3) * 32 + (at >> 2 & 3) * 8;
#pragma unroll
			for (u32 e = 0; e < 8; e++)
				if (column + e < K) word |= dummy_hash(row * K + column + e, p.seed) >> 28 << (e / 2 + e % 2 * 4) * 4;
		}
		p.dst[(u64)(p.interleave ? block * 2 + p.interleave - 1 : block) * p.block + at] = word;
	}
}
