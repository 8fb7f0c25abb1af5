// fill: dummy weights, made in place at start-up.
//
// It writes a dummy weight: bf16(scale * hash(i)) as engine/weights.Dummy.At defines it, i counted in the tensor's own
// [rows, cols]. interleave says where row r of the tensor lies in dst: 0, row r; 1 and 2, the gate and up rows of a matrix
// interleaved in blocks of 8. Grid: any; block 256. Writes rows*cols*2 bytes.
#include "dummy.cuh"

struct FillParams {
	bf16* dst;
	u64 count;  // rows*cols
	u32 cols, seed;
	float step;  // scale / 2^23; 0: every element is `constant`
	float constant;
	u32 interleave;
	u32 mask;      // of the 24 bits that a value is made of
	float fp8_scale;  // the scale of values that e4m3 holds, a power of two; 0: others
	u32 pad;
};

DEVICE float dummy_at(const FillParams& p, u64 i) {
	const float v = __fmul_rn((float)((i32)(dummy_hash(i, p.seed) >> 8 & p.mask) - (1 << 23)), p.step);
	if (p.fp8_scale == 0.f) return v;
	const u32 bits = to_e4m3(v / p.fp8_scale).bits;
	return __uint_as_float((bits & 0x80) << 24 | __float_as_uint(__uint_as_float((bits & 0x7F) << 20) * 0x1p120f)) * p.fp8_scale;
}

extern "C" __global__ void __launch_bounds__(256) fill(const __grid_constant__ FillParams p) {
	const u64 stride = (u64)gridDim.x * blockDim.x * 2;
	for (u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 2; i < p.count; i += stride) {
		const float a = p.step == 0.f ? p.constant : dummy_at(p, i);
		const float b = p.step == 0.f ? p.constant : dummy_at(p, i + 1);
		u64 at = i;
		if (p.interleave) {  // cols is even, so a pair does not cross a row
			const u64 row = i / p.cols, col = i - row * p.cols;
			at = ((row >> 3) * 16 + (p.interleave - 1) * 8 + (row & 7)) * p.cols + col;
		}
		if (i + 1 < p.count)
			*reinterpret_cast<u32*>(p.dst + at) = pack_bf16(a, b);
		else
			p.dst[at] = to_bf16(a);
	}
}
