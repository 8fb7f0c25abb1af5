// Reductions over a CTA, or over the CTAs of a cluster that share a row, and passes over a row of logits, in a fixed order.
#pragma once
#include "ptx.cuh"

#ifndef VOCAB
#error "VOCAB"
#endif

#ifndef CLUSTER
#define CLUSTER 1  // CTAs that share a row
#endif

// sync_row is __syncthreads for all CTAs of a row.
DEVICE void sync_row() {
	if (CLUSTER > 1) cluster_sync();
	else __syncthreads();
}
DEVICE int row_rank() { return CLUSTER > 1 ? cluster_rank() : 0; }

template <typename T> DEVICE T xor_lane(T v, int o) { return __shfl_xor_sync(~0u, v, o); }

// block_reduce combines the values of a row's threads; all of them get the result. Warps combine by shuffles, then in the order of warps and CTAs.
template <int THREADS_, typename T, typename F> DEVICE T block_reduce(T v, F combine) {
	__shared__ T slot[THREADS_ / 32];
	__syncthreads();  // the previous result has been read
#pragma unroll
	for (int o = 16; o; o >>= 1) v = combine(v, xor_lane(v, o));
	if ((threadIdx.x & 31) == 0) slot[threadIdx.x >> 5] = v;
	__syncthreads();
	v = slot[0];
	for (int i = 1; i < THREADS_ / 32; i++) v = combine(v, slot[i]);
	if (CLUSTER > 1) {
		__shared__ T whole;
		if (threadIdx.x == 0) whole = v;
		cluster_sync();
		v = *cluster_peer(&whole, 0);
		for (int i = 1; i < CLUSTER; i++) v = combine(v, *cluster_peer(&whole, i));
		cluster_sync();  // all have read it
	}
	return v;
}
template <int THREADS_> DEVICE float block_max(float v) {
	return block_reduce<THREADS_>(v, [](float a, float b) { return fmaxf(a, b); });
}
template <int THREADS_, typename T> DEVICE T block_add(T v) {
	return block_reduce<THREADS_>(v, [](T a, T b) { return a + b; });
}

// for_each calls f(token, logit) for the thread's share of a row, four neighbours at a time where the row allows it. UNROLL 1 is for what is
// rare: it compiles faster.
template <int THREADS_, int UNROLL = 4, typename F> DEVICE void for_each(const float* z, F f) {
	if (VOCAB % 4 == 0) {
#pragma unroll UNROLL
		for (int i = row_rank() * THREADS_ + threadIdx.x; i < VOCAB / 4; i += THREADS_ * CLUSTER) {
			const float4 v = *reinterpret_cast<const float4*>(z + 4 * i);
			f(4 * i, v.x);
			f(4 * i + 1, v.y);
			f(4 * i + 2, v.z);
			f(4 * i + 3, v.w);
		}
	} else {
		for (int i = row_rank() * THREADS_ + threadIdx.x; i < VOCAB; i += THREADS_ * CLUSTER) f(i, z[i]);
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
