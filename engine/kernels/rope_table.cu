// rope_table: the rotary embedding's cosines and sines, made once at start-up.
//
// It writes (cos, sin) of every position: out[pos][i] = factor * (cos, sin)(float(pos) * inv_freq[i]), the angle rounded
// to fp32 as Hugging Face does, its sine in fp64. Grid: any; block 256.
#include "ptx.cuh"

#ifndef HEAD_DIM
#error "HEAD_DIM"
#endif

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
