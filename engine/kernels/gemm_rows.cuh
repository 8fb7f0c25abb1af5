// What gemm_fp8_sm90 and w4_gemm_sm90 share: rows of W are the M of wgmma, 64 a warpgroup, tokens its N; clusters whose CTAs share K; what becomes of
// a finished output. A kernel's Params have bias, y, gamma, scaled, squares, rms_of, tokens and parts, its Shared stage and, for make_scales, sums and scale.
#pragma once
#include "linear.cuh"

#if !defined(TOKENS) || !defined(GROUPS) || !defined(SPLIT) || !defined(STAGES)
#error "TOKENS that a tile has room for: 16, 32 or 64; GROUPS of 64 rows of W; SPLIT of K: 1, 2 or 4; STAGES"
#endif
constexpr int ROWS = 64 * GROUPS, STEP = 128;  // rows and columns of a stage
constexpr int STEPS = ceil_div(K, STEP);
constexpr int TILES = ceil_div(N, ROWS);
constexpr int UNITS = TOKENS / 8;              // eight tokens are finished together
constexpr int SHARE = UNITS / SPLIT;           // by each CTA of a cluster
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
static_assert(!NORM, "x is normed before");
static_assert(UNITS % SPLIT == 0, "a cluster's CTAs finish the same number of tokens");

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
DEVICE int first_step() { return STEPS * (blockIdx.x % SPLIT) / SPLIT; }
DEVICE int end_step() { return STEPS * (blockIdx.x % SPLIT + 1) / SPLIT; }

// Lane 4g+t and its neighbour 4(g^1)+t hold rows g and g^1 of the same two tokens; swap gives each lane both rows of one token: an even lane
// group keeps the first token, an odd one the second. The result is (row g & ~1, row g | 1).
DEVICE float2 swap(float first, float second, bool odd) {
	const float got = __shfl_xor_sync(~0u, odd ? first : second, 4);
	return odd ? make_float2(got, second) : make_float2(first, got);
}

// A unit's outputs of one lane are those of token m: rows n, n + 1 of W and n + 8, n + 9; SwiGLU has one pair of outputs for the two.
struct Place { int m, n; };
DEVICE Place place(int row, int unit) {  // row: the warp's first
	const int lane = threadIdx.x & 31, g = lane >> 2;
	return Place{8 * unit + 2 * (lane & 3) + (g & 1), row + (g & ~1)};
}

struct Added { u32 low, high, gamma_low, gamma_high; };  // what outputs n, n + 1 and n + 8, n + 9 are added to, and the next norm's gamma
template <typename P> DEVICE Added added(const P& p, Place at) {
	Added a{0, 0, 0, 0};
	if (EPILOGUE == STORE_BIAS) {
		if (at.n < N) a.low = ld4(p.bias + at.n);
		if (at.n + 8 < N) a.high = ld4(p.bias + at.n + 8);
	}
	if constexpr (EPILOGUE == RESIDUAL) {  // not from L1: another SM wrote it, and this kernel may have begun before that
		const bf16* y = p.y + (size_t)at.m * N + at.n;
		if (at.m >= p.tokens) return a;
		if (at.n < N) a.low = ld4_l2(y);
		if (at.n + 8 < N) a.high = ld4_l2(y + 8);
		if (p.gamma) {
			if (at.n < N) a.gamma_low = ld4(p.gamma + at.n);
			if (at.n + 8 < N) a.gamma_high = ld4(p.gamma + at.n + 8);
		}
	}
	return a;
}

// put4 stores columns n, n + 1 (low) and n + 8, n + 9 (high) of a row, bf16 pairs, where to is column n; put2 columns o, o + 1 of row. The order of f16
// is that of x / 16, of each 16 columns 0, 8, 2, 10 .. 6, 14, 1, 9 .. 7, 15: gemm_fp8_sm90.cu.
constexpr float F16_SCALE = 0x1p-4f;
DEVICE void put4(bf16* to, int n, u32 low, u32 high) {
	if (n < N) *reinterpret_cast<u32*>(to) = low;
	if (n + 8 < N) *reinterpret_cast<u32*>(to + 8) = high;
}
DEVICE void put4(f16* to, int n, u32 low, u32 high) {  // N is a multiple of 16
	if (n >= N) return;
	*reinterpret_cast<u32*>(to) = pack_f16(bf16_lo(low) * F16_SCALE, bf16_lo(high) * F16_SCALE);
	*reinterpret_cast<u32*>(to + 8) = pack_f16(bf16_hi(low) * F16_SCALE, bf16_hi(high) * F16_SCALE);
}
DEVICE void put2(bf16* row, int o, u32 pair) { *reinterpret_cast<u32*>(row + o) = pair; }
DEVICE void put2(f16* row, int o, u32 pair) {
	f16* to = row + (o & ~8) + (o >> 3 & 1);
	put_f16(to, bf16_lo(pair) * F16_SCALE);
	put_f16(to + 8, bf16_hi(pair) * F16_SCALE);
}

// finish stores a unit's outputs: v has rows g (x, y: two tokens) and g + 8 (z, w), times their scales already.
// It returns the squares' sum.
template <typename P> DEVICE float finish(const P& p, Place at, float4 v, Added a) {
	const bool odd = threadIdx.x >> 2 & 1;
	if constexpr (EPILOGUE == SWIGLU) {
		const float2 out = swap(swiglu(v.x, v.z), swiglu(v.y, v.w), odd);
		if (at.m < p.tokens && at.n < N) put2(p.y + (size_t)at.m * OUTPUTS, (at.n >> 4) * 8 + (at.n & 7), pack_bf16(out.x, out.y));
		return 0.f;
	} else {
		const float2 low = swap(v.x, v.y, odd), high = swap(v.z, v.w, odd);
		if (at.m >= p.tokens) return 0.f;
		const size_t to = (size_t)at.m * N + at.n;
		const u32 out[2] = {pack_bf16(low.x + bf16_lo(a.low), low.y + bf16_hi(a.low)), pack_bf16(high.x + bf16_lo(a.high), high.y + bf16_hi(a.high))};
		float squares = 0.f;
#pragma unroll
		for (int i = 0; i < 2; i++) {
			if (at.n + 8 * i >= N) continue;
			*reinterpret_cast<u32*>(p.y + to + 8 * i) = out[i];
			squares += bf16_lo(out[i]) * bf16_lo(out[i]) + bf16_hi(out[i]) * bf16_hi(out[i]);
		}
		if (EPILOGUE == RESIDUAL && p.gamma) put4(p.scaled + to, at.n, mul_bf16x2(out[0], a.gamma_low), mul_bf16x2(out[1], a.gamma_high));
		return squares;
	}
}

// make_scales adds the parts of the squares of each token: its 1/RMS.
template <typename P, typename Shared> DEVICE void make_scales(const P& p, Shared& sh) {
	const int tid = threadIdx.x, m = tid % TOKENS, slices = 128 * GROUPS / TOKENS;
	float sum = 0.f;
	for (int i = tid / TOKENS; i < p.parts; i += slices) sum += __uint_as_float(ld4_l2(p.rms_of + i * TOKENS + m));
	sh.sums[tid] = sum;
	barrier_sync(1, 128 * GROUPS);
	if (tid < TOKENS) {
		for (int i = 1; i < slices; i++) sum += sh.sums[i * TOKENS + tid];
		sh.scale[tid] = rsqrtf(sum * (1.f / K) + RMS_EPS);
	}
	barrier_sync(1, 128 * GROUPS);
}

// store_squares leaves this CTA's sums, of all tokens; squares has those of this lane's units.
template <typename P, typename Shared> DEVICE void store_squares(const P& p, Shared& sh, float (&squares)[UNITS]) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
	float* sums = reinterpret_cast<float*>(sh.stage);  // [4*GROUPS, TOKENS]
	barrier_sync(1, 128 * GROUPS);                     // reduce has read its sums
#pragma unroll
	for (int j = 0; j < UNITS; j++) {
		for (int o = 8; o < 32; o <<= 1) squares[j] += __shfl_xor_sync(~0u, squares[j], o);
		if (lane < 8) sums[warp * TOKENS + 8 * j + 2 * (lane & 3) + (lane >> 2)] = squares[j];
	}
	barrier_sync(1, 128 * GROUPS);
	if (threadIdx.x >= TOKENS) return;
	float sum = 0.f;
	for (int i = 0; i < 4 * GROUPS; i++) sum += sums[i * TOKENS + threadIdx.x];
	p.squares[blockIdx.x * TOKENS + threadIdx.x] = sum;
}

// reduce adds the sums of the cluster's CTAs and finishes this one's units, to which a is added.
template <typename P, typename Shared> DEVICE void reduce(const P& p, Shared& sh, int row, const float (&d)[TOKENS / 2], const Added (&a)[SHARE], float (&squares)[UNITS]) {
	const int rank = blockIdx.x % SPLIT, tid = threadIdx.x;
	float4* sums = reinterpret_cast<float4*>(sh.stage);  // [SPLIT, SHARE, 128*GROUPS]
	cluster_sync();  // every CTA has multiplied: its stages are free
#pragma unroll
	for (int r = 0; r < SPLIT; r++) {
		const u32 to = cluster_address(sums + rank * SHARE * 128 * GROUPS + tid, r);
#pragma unroll
		for (int i = 0; i < SHARE; i++) {
			const float* from = d + 4 * (r * SHARE + i);
			st_cluster16(to + i * 128 * GROUPS * 16, make_float4(from[0], from[1], from[2], from[3]));
		}
	}
	cluster_sync();
#pragma unroll
	for (int i = 0; i < SHARE; i++) {
		float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
		for (int s = 0; s < SPLIT; s++) {
			const float4 part = sums[(s * SHARE + i) * 128 * GROUPS + tid];
			v = make_float4(v.x + part.x, v.y + part.y, v.z + part.z, v.w + part.w);
		}
		const float sum = finish(p, place(row, rank * SHARE + i), v, a[i]);
#pragma unroll
		for (int j = 0; j < UNITS; j++)
			if (j == rank * SHARE + i) squares[j] += sum;
	}
}
template <typename P, typename Shared> DEVICE void reduce(const P& p, Shared& sh, int row, const float (&d)[TOKENS / 2], float (&squares)[UNITS]) {
	Added a[SHARE];
#pragma unroll
	for (int i = 0; i < SHARE; i++) a[i] = added(p, place(row, blockIdx.x % SPLIT * SHARE + i));
	reduce(p, sh, row, d, a, squares);
}
#endif
