// What start-up needs: dummy weights made in place, the rotary table, and a probe of the read bandwidth. Compiled once a
// model; none of it is on the path of a step.
#include "ptx.cuh"

// fill writes a dummy weight: bf16(scale * hash(i)) as engine/weights.Dummy.At defines it, i counted in the tensor's own
// [rows, cols]. interleave says where row r of the tensor lies in dst: 0, row r; 1 and 2, the gate and up rows of a matrix
// interleaved in blocks of 8. Grid: any; block 256. Writes rows*cols*2 bytes.
struct FillParams {
	bf16* dst;
	u64 count;  // rows*cols
	u32 cols, seed;
	float step;  // scale / 2^23; 0: every element is `constant`
	float constant;
	u32 interleave, pad;
};

DEVICE float dummy_at(u64 i, u32 seed, float step) {
	u32 h = ((u32)i * 0x9E3779B1u) ^ ((u32)(i >> 32) * 0x85EBCA77u) ^ seed;
	h ^= h >> 16;
	h *= 0x85EBCA6Bu;
	h ^= h >> 13;
	h *= 0xC2B2AE35u;
	h ^= h >> 16;
	return __fmul_rn((float)((i32)(h >> 8) - (1 << 23)), step);
}

extern "C" __global__ void __launch_bounds__(256) fill(const __grid_constant__ FillParams p) {
	const u64 stride = (u64)gridDim.x * blockDim.x * 2;
	for (u64 i = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 2; i < p.count; i += stride) {
		const float a = p.step == 0.f ? p.constant : dummy_at(i, p.seed, p.step);
		const float b = p.step == 0.f ? p.constant : dummy_at(i + 1, p.seed, p.step);
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

// rope_table writes (cos, sin) of every position: out[pos][i] = factor * (cos, sin)(float(pos) * inv_freq[i]), the angle rounded
// to fp32 as Hugging Face does, its sine in fp64. Grid: any; block 256.
struct RopeTableParams {
	float2* out;
	const float* inv_freq;  // [HEAD_DIM/2]
	u64 count;              // positions * HEAD_DIM/2
	double factor;
};

extern "C" __global__ void __launch_bounds__(256) rope_table(const __grid_constant__ RopeTableParams p) {
	constexpr u32 half = HEAD_DIM / 2;
	for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += (u64)gridDim.x * blockDim.x) {
		const float angle = __fmul_rn((float)(u32)(i / half), p.inv_freq[i % half]);
		double s, c;
		sincos((double)angle, &s, &c);
		p.out[i] = make_float2((float)(c * p.factor), (float)(s * p.factor));
	}
}

// read_probe reads p.count 16-byte words and does nothing else; the sum keeps the loads alive. Each warp reads UNROLL lines of
// 512 bytes at a time. Bytes: 16*count.
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
