// fp8_fill: dummy weights of e4m3, made in place at start-up.
//
// It writes the words of a dummy tensor [rows, 16 columns or more] as fp8.cuh lays them out: values as engine/weights.Dummy.At has them, over the
// tensor's scale. interleave says where row r lies in dst: 0, row r; 1 and 2, the gate and up rows of a matrix interleaved in blocks of 8.
// With constant set it writes that instead: a tensor's scales. Grid: any; block 256. Writes 4*count bytes.
#include "dummy.cuh"

struct FP8FillParams {
	u32* dst;
	u64 count;      // words
	u32 row, seed;  // words of a row
	float step;     // of the values: scale / 2^23
	float inverse;  // of the tensor's scale, a power of two
	u32 constant, interleave;
};

extern "C" __global__ void __launch_bounds__(256) fp8_fill(const __grid_constant__ FP8FillParams p) {
	for (u64 i = (u64)blockIdx.x * 256 + threadIdx.x; i < p.count; i += (u64)gridDim.x * 256) {
		const u64 row = i / p.row;
		const u32 at = (u32)(i - row * p.row);
		u32 word = p.constant;
		if (!word) {
			const u64 first = row * p.row * 4 + at / 4 * 16 + at % 4 * 2;
#pragma unroll
			for (u32 j = 0; j < 4; j++) {
				const u32 bits = dummy_hash(first + j / 2 + j % 2 * 8, p.seed);
				word |= (u32)to_e4m3(__fmul_rn((float)((i32)(bits >> 8) - (1 << 23)), p.step) * p.inverse).bits << 8 * j;
			}
		}
		p.dst[(p.interleave ? (row >> 3) * 16 + (p.interleave - 1) * 8 + (row & 7) : row) * p.row + at] = word;
	}
}
