// gemm_fp8_sm90: y[m] = epilogue(x[m] W^T) for M = 17..64 tokens, W of e4m3 and x of bf16 (W8A16): tensor copies (TMA) bring both to shared memory,
// warps widen W on its way to the registers that warpgroup products (wgmma) take it from.
//
// Shapes: W [N, K] e4m3 (fp8.cuh), x [M, K], y [M, N]. Rows of W are the M of wgmma, 64 a warpgroup, tokens its N. A CTA makes 64*GROUPS outputs of all
// tokens, over 1/SPLIT of K. Grid: CTAs of one tile are neighbours and a cluster; without SPLIT a CTA takes several tiles if there are more than
// CTAs. 128*GROUPS + 32 threads: the last warp copies. Shared memory: STAGES of 128 columns of W (a byte each) and of x.
// Bytes: NK + 2M(K+N), and x again for each tile, from L2; FLOPs 2MNK. Bound by memory; widening takes half of the integer units at 4.5 TB/s.
// W for all stages is asked for before the wait on the previous kernel. Sums of SPLIT CTAs meet in the shared memory of the cluster, each CTA
// finishing a part of the tokens, in the order of K: the same bits always.
// RMSNorm between two products is no kernel: the first (RESIDUAL) leaves y * gamma beside y, and the squares of its outputs; the second
// multiplies by 1/RMS of its tokens (SCALES).
#include "fp8.cuh"
#include "linear.cuh"
#include "wgmma.cuh"

#if !defined(TOKENS) || !defined(GROUPS) || !defined(SPLIT) || !defined(STAGES) || !defined(SCALES)
#error "TOKENS that a tile has room for: 32 or 64; GROUPS of 64 rows of W; SPLIT of K: 1, 2 or 4; STAGES; SCALES: 1 divides by the RMS of rms_of"
#endif
constexpr int THREADS = 128 * GROUPS + 32;
constexpr int ROWS = 64 * GROUPS, STEP = 128;  // rows and columns of a stage
constexpr int STEPS = ceil_div(K, STEP);
constexpr int TILES = ceil_div(N, ROWS);
constexpr int UNITS = TOKENS / 8;              // eight tokens are finished together
constexpr int SHARE = UNITS / SPLIT;           // by each CTA of a cluster
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
static_assert(!NORM, "x is normed before");
static_assert(UNITS % SPLIT == 0, "a cluster's CTAs finish the same number of tokens");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, x;          // boxes of ROWS x 128 bytes and TOKENS x 64 bf16
	const float* row_scale;  // [N]
	const bf16* bias;        // [N], STORE_BIAS
	bf16* y;                 // [M, N], SwiGLU [M, N/2]; RESIDUAL adds to it
	const bf16* gamma;       // RESIDUAL: [N] of the norm that follows; null: none
	bf16* scaled;            // [M, N], y * gamma
	float* squares;          // [CTAs, TOKENS]: sums of the squares of a CTA's outputs
	const float* rms_of;     // SCALES: such sums of x [parts, TOKENS]
	i32 tokens;              // M
	i32 parts;
	i32 pad[16];
};

struct Stage {
	u8 w[ROWS][STEP];
	bf16 x[2][TOKENS][64];
};
struct Shared {
	Stage stage[STAGES];  // after the last product: sums of the cluster's CTAs
	u64 full[STAGES], empty[STAGES];
	float sums[128 * GROUPS];  // of squares, while 1/RMS is made
	float scale[TOKENS];       // 1/RMS
};
static_assert(sizeof(Stage) % 1024 == 0, "swizzled rows repeat every 1024 bytes");
static_assert(SPLIT == 1 || SPLIT * SHARE * 128 * GROUPS * 16 <= (int)sizeof(Stage) * STAGES, "sums do not fit the stages");

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
DEVICE int first_step() { return STEPS * (blockIdx.x % SPLIT) / SPLIT; }
DEVICE int end_step() { return STEPS * (blockIdx.x % SPLIT + 1) / SPLIT; }

DEVICE void copy(const Params& p, Shared& sh) {
	const u64 keep = policy_evict_last(), once = policy_evict_first();
	const int begin = first_step(), steps = end_step() - begin, first = blockIdx.x / SPLIT, stride = gridDim.x / SPLIT;
	const int total = steps * (first < TILES ? ceil_div(TILES - first, stride) : 0);
	tensor_prefetch_map(&p.w);
	tensor_prefetch_map(&p.x);
	auto load_w = [&](int i) {
		const int s = i % STAGES;
		mbarrier_expect(&sh.full[s], sizeof(Stage));
		tensor_load(sh.stage[s].w, &p.w, (begin + i % steps) * STEP, (first + i / steps * stride) * ROWS, &sh.full[s], once);
	};
	auto load_x = [&](int i) {
		const int s = i % STAGES, column = (begin + i % steps) * STEP;
		tensor_load(sh.stage[s].x[0], &p.x, column, 0, &sh.full[s], keep);
		tensor_load(sh.stage[s].x[1], &p.x, column + 64, 0, &sh.full[s], keep);
	};
	for (int i = 0; i < min(total, STAGES); i++) load_w(i);
	PDL_WAIT();
	for (int i = 0; i < min(total, STAGES); i++) load_x(i);
	for (int i = STAGES; i < total; i++) {
		mbarrier_wait(&sh.empty[i % STAGES], (i / STAGES - 1) & 1);
		load_w(i);
		load_x(i);
	}
}

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
DEVICE Added added(const Params& p, Place at) {
	Added a{0, 0, 0, 0};
	if (EPILOGUE == STORE_BIAS) {
		if (at.n < N) a.low = ld4(p.bias + at.n);
		if (at.n + 8 < N) a.high = ld4(p.bias + at.n + 8);
	}
	if (EPILOGUE == RESIDUAL && at.m < p.tokens) {  // not from L1: another SM wrote it, and this kernel may have begun before that
		const bf16* y = p.y + (size_t)at.m * N + at.n;
		if (at.n < N) a.low = ld4_l2(y);
		if (at.n + 8 < N) a.high = ld4_l2(y + 8);
		if (p.gamma) {
			if (at.n < N) a.gamma_low = ld4(p.gamma + at.n);
			if (at.n + 8 < N) a.gamma_high = ld4(p.gamma + at.n + 8);
		}
	}
	return a;
}

// finish stores a unit's outputs: v has rows g (x, y: two tokens) and g + 8 (z, w), times their scales already.
// It returns the squares' sum.
DEVICE float finish(const Params& p, Place at, float4 v, Added a) {
	const bool odd = threadIdx.x >> 2 & 1;
	if constexpr (EPILOGUE == SWIGLU) {
		const float2 out = swap(swiglu(v.x, v.z), swiglu(v.y, v.w), odd);
		if (at.m < p.tokens && at.n < N) *reinterpret_cast<u32*>(p.y + (size_t)at.m * OUTPUTS + (at.n >> 4) * 8 + (at.n & 7)) = pack_bf16(out.x, out.y);
		return 0.f;
	} else {
		const float2 low = swap(v.x, v.y, odd), high = swap(v.z, v.w, odd);
		if (at.m >= p.tokens) return 0.f;
		const size_t to = (size_t)at.m * N + at.n;
		const u32 out[2] = {pack_bf16(low.x + bf16_lo(a.low), low.y + bf16_hi(a.low)), pack_bf16(high.x + bf16_lo(a.high), high.y + bf16_hi(a.high))};
		const u32 gamma[2] = {a.gamma_low, a.gamma_high};
		float squares = 0.f;
#pragma unroll
		for (int i = 0; i < 2; i++) {
			if (at.n + 8 * i >= N) continue;
			*reinterpret_cast<u32*>(p.y + to + 8 * i) = out[i];
			if (EPILOGUE == RESIDUAL && p.gamma) {
				*reinterpret_cast<u32*>(p.scaled + to + 8 * i) = mul_bf16x2(out[i], gamma[i]);
				squares += bf16_lo(out[i]) * bf16_lo(out[i]) + bf16_hi(out[i]) * bf16_hi(out[i]);
			}
		}
		return squares;
	}
}

// make_scales adds the parts of the squares of each token: its 1/RMS.
DEVICE void make_scales(const Params& p, Shared& sh) {
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
DEVICE void store_squares(const Params& p, Shared& sh, float (&squares)[UNITS]) {
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

// reduce adds the sums of the cluster's CTAs and finishes this one's units.
DEVICE void reduce(const Params& p, Shared& sh, int row, const float (&d)[TOKENS / 2], float (&squares)[UNITS]) {
	const int rank = blockIdx.x % SPLIT, tid = threadIdx.x;
	float4* sums = reinterpret_cast<float4*>(sh.stage);  // [SPLIT, SHARE, 128*GROUPS]
	Added a[SHARE];
#pragma unroll
	for (int i = 0; i < SHARE; i++) a[i] = added(p, place(row, rank * SHARE + i));
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

DEVICE void multiply(const Params& p, Shared& sh) {
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2;
	const int begin = first_step(), end = end_step();
	// ldmatrix: lanes 8q..8q+7 name the rows of matrix q. Matrices are rows 0-7 and 8-15 of the warp's 16, of 16 bytes, then of the next 16.
	const int row = 16 * warp + (lane & 15), half = lane >> 4;
	PDL_WAIT();
	if (SCALES) make_scales(p, sh);
	float squares[UNITS] = {};
	int i = 0;  // steps done
	for (int tile = blockIdx.x / SPLIT; tile < TILES; tile += gridDim.x / SPLIT) {
		const int n = tile * ROWS + 16 * warp;
		const float scale = n + g < N ? p.row_scale[n + g] : 0.f, scale8 = n + g + 8 < N ? p.row_scale[n + g + 8] : 0.f;
		float d[TOKENS / 2];
		for (int step = begin; step < end; step++, i++) {
			const int s = i % STAGES;
			mbarrier_wait(&sh.full[s], i / STAGES & 1);
			const u32 w = smem_addr(sh.stage[s].w[row]);
#pragma unroll
			for (int part = 0; part < 2; part++) {  // 64 columns
				u32 a[4][4];
#pragma unroll
				for (int j = 0; j < 2; j++) {
					u32 words[4];
					ldmatrix4(words, w + (((4 * part + 2 * j + half) ^ (row & 7)) << 4));
#pragma unroll
					for (int q = 0; q < 2; q++) {
						widen_whole(words[2 * q], a[2 * j + q][0], a[2 * j + q][2]);
						widen_whole(words[2 * q + 1], a[2 * j + q][1], a[2 * j + q][3]);
					}
				}
				const u64 b = wgmma_tile(sh.stage[s].x[part]);
				wgmma_fence();
#pragma unroll
				for (int j = 0; j < 4; j++) Wgmma<TOKENS>::product_of_rows(d, a[j], b + 2 * j, part > 0 || j > 0 || step > begin);
				wgmma_commit();
				wgmma_wait<1>();
				if (part == 0 && step > begin && lane == 0) mbarrier_arrive(&sh.empty[(i - 1) % STAGES]);  // the step before is done
			}
		}
		wgmma_wait<0>();
		if (lane == 0) mbarrier_arrive(&sh.empty[(i - 1) % STAGES]);
#pragma unroll
		for (int j = 0; j < UNITS; j++) {
			d[4 * j] *= scale;
			d[4 * j + 1] *= scale;
			d[4 * j + 2] *= scale8;
			d[4 * j + 3] *= scale8;
			if (SCALES) {
				const float2 rms = *reinterpret_cast<const float2*>(sh.scale + 8 * j + 2 * (lane & 3));
				d[4 * j] *= rms.x;
				d[4 * j + 1] *= rms.y;
				d[4 * j + 2] *= rms.x;
				d[4 * j + 3] *= rms.y;
			}
		}
		if constexpr (SPLIT > 1) {
			reduce(p, sh, n, d, squares);
			break;  // a cluster has one tile
		} else {
			Added a[UNITS];
#pragma unroll
			for (int j = 0; j < UNITS; j++) a[j] = added(p, place(n, j));
#pragma unroll
			for (int j = 0; j < UNITS; j++) squares[j] += finish(p, place(n, j), make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]), a[j]);
		}
	}
	if (EPILOGUE == RESIDUAL && p.gamma) store_squares(p, sh, squares);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_fp8_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	PDL_LAUNCH();
	if (threadIdx.x == 0) {
		for (int i = 0; i < STAGES; i++) {
			mbarrier_init(&sh.full[i], 1);
			mbarrier_init(&sh.empty[i], 4 * GROUPS);
		}
		mbarrier_init_fence();
	}
	__syncthreads();
	if (threadIdx.x < 128 * GROUPS) {
		multiply(p, sh);
		return;
	}
	if (threadIdx.x == 128 * GROUPS) copy(p, sh);
	__syncwarp();
	if (SPLIT > 1) {  // reduce's two
		cluster_sync();
		cluster_sync();
	}
#endif
}
