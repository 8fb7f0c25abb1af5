// Reductions over a CTA and over a row of logits, in a fixed order.
#pragma once
#include "ptx.cuh"

#ifndef VOCAB
#error "VOCAB"
#endif

// block_reduce combines every thread's value; all threads get the result. Warps combine by shuffles, then in warp order.
template <int THREADS_, typename T, typename F> DEVICE T block_reduce(T v, F combine) {
	__shared__ T slot[THREADS_ / 32];
	__syncthreads();  // the previous result has been read
#pragma unroll
	for (int o = 16; o; o >>= 1) v = combine(v, __shfl_xor_sync(~0u, v, o));
	if ((threadIdx.x & 31) == 0) slot[threadIdx.x >> 5] = v;
	__syncthreads();
	v = slot[0];
	for (int i = 1; i < THREADS_ / 32; i++) v = combine(v, slot[i]);
	return v;
}
template <int THREADS_> DEVICE float block_max(float v) {
	return block_reduce<THREADS_>(v, [](float a, float b) { return fmaxf(a, b); });
}
template <int THREADS_, typename T> DEVICE T block_add(T v) {
	return block_reduce<THREADS_>(v, [](T a, T b) { return a + b; });
}

// for_each calls f(token, logit) for the thread's share of a row, four neighbours at a time where the row allows it.
template <int THREADS_, typename F> DEVICE void for_each(const float* z, F f) {
	if (VOCAB % 4 == 0) {
#pragma unroll 4
		for (int i = threadIdx.x; i < VOCAB / 4; i += THREADS_) {
			const float4 v = *reinterpret_cast<const float4*>(z + 4 * i);
			f(4 * i, v.x);
			f(4 * i + 1, v.y);
			f(4 * i + 2, v.z);
			f(4 * i + 3, v.w);
		}
	} else {
		for (int i = threadIdx.x; i < VOCAB; i += THREADS_) f(i, z[i]);
	}
}

// log_sum_exp is log(sum(exp(z))) of a row.
template <int THREADS_> DEVICE float log_sum_exp(const float* z) {
	float top = -__int_as_float(0x7F800000);
	for_each<THREADS_>(z, [&](int, float v) { top = fmaxf(top, v); });
	top = block_max<THREADS_>(top);
	float sum = 0.f;
	for_each<THREADS_>(z, [&](int, float v) { sum += __expf(v - top); });
	return top + logf(block_add<THREADS_>(sum));
}
