// w4_gemm_sm90: y[m] = epilogue(x[m] W^T) for M <= 64 tokens with weights of four bits (w4.cuh), on the warpgroup matrix units of sm_90a: warps make bf16
// of W on its way to the registers that the products (wgmma) take it from.
//
// Shapes: W [N, K], x [M, K] bf16, y [M, N]. Rows of W are the M of wgmma, 64 a warpgroup, tokens its N. A CTA makes 64*GROUPS outputs of all tokens, over
// 1/SPLIT of K. Grid: CTAs of one tile are neighbours and a cluster; without SPLIT a CTA takes several tiles if there are more than CTAs.
// 128*GROUPS + 128 threads: the last four warps copy. Shared memory: STAGES of 128 columns of x, W and its scales.
// Bytes: NK/2 + 4NK/GROUP + 2M(K+N), and x again for each tile, from L2; FLOPs 2MNK. A word of eight weights takes 5 integer
// instructions and 4 multiplications. Not bound by memory yet: the products of an 8B layer for 32 tokens take 96 us (H200), W alone would 27.
// Weights enter the products less their zero point and exact; the sums of a group are scaled in fp32. A lane of W holds eight neighbouring columns, four pairs
// that wgmma wants eight columns apart: x is copied by pairs of columns to where those stand. W for all stages is asked for before the wait on the
// previous kernel. Sums of SPLIT CTAs meet in the shared memory of the cluster, in the order of K: the same bits always.
// RMSNorm between two products is no kernel: see gemm_fp8_sm90.cu.
#include "gemm_rows.cuh"
#include "w4.cuh"
#include "wgmma.cuh"

#ifndef SCALES
#error "SCALES: 1 divides by the RMS of rms_of"
#endif
constexpr int CONSUMERS = 128 * GROUPS, COPIERS = 128, THREADS = CONSUMERS + COPIERS;
constexpr int LAG = 3;  // stages of x that a copier has on the way
static_assert(PER_STEP == 1, "a step has one scale for each row");
static_assert(STAGES > LAG, "stages of x wait for each other");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, scale;  // boxes of ROWS/8 blocks of eight rows x 128 columns
	const bf16* x;       // [tokens, K]
	const bf16* bias;    // [N], STORE_BIAS
	bf16* y;             // [M, N], SwiGLU [M, N/2]; RESIDUAL adds to it
	const bf16* gamma;   // RESIDUAL: [N] of the norm that follows; null: none
	bf16* scaled;        // [M, N], y * gamma
	float* squares;      // [CTAs, TOKENS]: sums of the squares of a CTA's outputs
	const float* rms_of; // SCALES: such sums of x [parts, TOKENS]
	i32 tokens;          // M
	i32 parts;
	i32 pad[16];
};

struct alignas(1024) Stage {
	bf16 x[2][TOKENS][64];  // swizzled by 128 bytes
	uint4 w[ROWS / 8][32];
	uint4 scale[ROWS / 8][2];
};
struct Shared {
	Stage stage[STAGES];  // after the last product: sums of the cluster's CTAs
	u64 full[STAGES], empty[STAGES];
	float sums[CONSUMERS];  // of squares, while 1/RMS is made
	float scale[TOKENS];    // 1/RMS
};
static_assert(SPLIT == 1 || SPLIT * SHARE * CONSUMERS * 16 <= (int)sizeof(Stage) * STAGES, "sums do not fit the stages");

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
// copy is what the last four warps do: a thread brings W and its scales, all bring x.
DEVICE void copy(const Params& p, Shared& sh) {
	const int tid = threadIdx.x - CONSUMERS, lane = tid & 31, warp = tid >> 5;
	const int begin = first_step(), steps = end_step() - begin, first = blockIdx.x / SPLIT, stride = gridDim.x / SPLIT;
	const int total = steps * (first < TILES ? ceil_div(TILES - first, stride) : 0);
	const u64 once = policy_evict_first();
	if (tid == 0) {
		tensor_prefetch_map(&p.w);
		tensor_prefetch_map(&p.scale);
	}
	auto load_w = [&](int i) {
		Stage& s = sh.stage[i % STAGES];
		u64* full = &sh.full[i % STAGES];
		const int step = begin + i % steps, block = (first + i / steps * stride) * (ROWS / 8);
		mbarrier_expect(full, sizeof(s.w) + sizeof(s.scale));
		tensor_load(s.w, &p.w, step * 128, block, full, once);
		tensor_load(s.scale, &p.scale, group_of(step, 0) * 8, block, full, once);
	};
	// A lane copies pair l of 32 of each token: pair l%4 of the eight columns l/4 goes to place l/4%4 of the eight columns 4*(l/16) + l%4.
	const int chunk = lane >> 4 << 2 | lane & 3, place = lane >> 2 & 3;
	auto load_x = [&](int i) {
		Stage& s = sh.stage[i % STAGES];
		const int k0 = (begin + i % steps) * STEP + 2 * lane;
#pragma unroll
		for (int m0 = 0; m0 < TOKENS; m0 += 4) {
			const int m = m0 + warp;
			if (m >= p.tokens) break;  // what stands there gets into sums that nobody looks at
#pragma unroll
			for (int half = 0; half < 2; half++) {
				const int k = k0 + 64 * half;
				const bool valid = K % STEP == 0 || k < K;
				cp_async4(smem_addr(&s.x[half][m][(chunk ^ m & 7) * 8 + place * 2]), p.x + (size_t)m * K + (valid ? k : 0), valid);
			}
		}
	};
	if (tid == 0)
		for (int i = 0; i < min(total, STAGES); i++) load_w(i);
	PDL_WAIT();
	for (int i = 0; i < total + LAG; i++) {
		if (i < total) {
			if (i >= STAGES) {
				mbarrier_wait(&sh.empty[i % STAGES], (i / STAGES - 1) & 1);
				if (tid == 0) load_w(i);
			}
			load_x(i);
		}
		cp_async_commit();
		if (i < LAG) continue;
		cp_async_wait<LAG>();
		fence_async_shared();  // wgmma reads what was copied by other means than its own
		__syncwarp();
		if (lane == 0) mbarrier_arrive(&sh.full[(i - LAG) % STAGES]);
	}
}

DEVICE void multiply(const Params& p, Shared& sh) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
	const int begin = first_step(), end = end_step();
	PDL_WAIT();
	if (SCALES) make_scales(p, sh);
	float squares[UNITS] = {};
	int i = 0;  // steps done
	for (int tile = blockIdx.x / SPLIT; tile < TILES; tile += gridDim.x / SPLIT) {
		const int n = tile * ROWS + 16 * warp;
		float total[TOKENS / 2] = {};
		for (int step = begin; step < end; step++, i++) {
			const Stage& s = sh.stage[i % STAGES];
			mbarrier_wait(&sh.full[i % STAGES], i / STAGES & 1);
			uint4 w[2];
			float scale[2];
			u32 zero[2];
#pragma unroll
			for (int r = 0; r < 2; r++) {
				const u32 packed = reinterpret_cast<const u32*>(s.scale[2 * warp + r])[g];
				w[r] = s.w[2 * warp + r][lane];
				scale[r] = WHOLE_SCALE * scale_of(packed);
				zero[r] = zero_pair(packed);
			}
			float d[TOKENS / 2];
#pragma unroll
			for (int part = 0; part < 2; part++) {  // 64 columns
				u32 a[4][4];
#pragma unroll
				for (int j = 0; j < 2; j++)
#pragma unroll
					for (int e = 0; e < 4; e++)
#pragma unroll
						for (int r = 0; r < 2; r++) a[2 * j + e / 2][e % 2 * 2 + r] = whole_pair(word_of(w[r], 2 * part + j), e, zero[r]);
				const u64 b = wgmma_tile(s.x[part]);
				wgmma_fence();
#pragma unroll
				for (int j = 0; j < 4; j++) Wgmma<TOKENS>::product_of_rows(d, a[j], b + 2 * j, part > 0 || j > 0);
				wgmma_commit();
			}
			wgmma_wait<0>();
			if (lane == 0) mbarrier_arrive(&sh.empty[i % STAGES]);
#pragma unroll
			for (int j = 0; j < TOKENS / 2; j++) total[j] = fmaf(scale[j / 2 % 2], d[j], total[j]);
		}
		if (SCALES)
#pragma unroll
			for (int j = 0; j < TOKENS / 2; j += 2) {
				const float2 rms = *reinterpret_cast<const float2*>(sh.scale + 8 * (j / 4) + 2 * (lane & 3));
				total[j] *= rms.x;
				total[j + 1] *= rms.y;
			}
		if constexpr (SPLIT > 1) {
			reduce(p, sh, n, total, squares);
			break;  // a cluster has one tile
		} else {
			Added a[UNITS];
#pragma unroll
			for (int j = 0; j < UNITS; j++) a[j] = added(p, place(n, j));
#pragma unroll
			for (int j = 0; j < UNITS; j++) squares[j] += finish(p, place(n, j), make_float4(total[4 * j], total[4 * j + 1], total[4 * j + 2], total[4 * j + 3]), a[j]);
		}
	}
	if (EPILOGUE == RESIDUAL && p.gamma) store_squares(p, sh, squares);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) w4_gemm_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	PDL_LAUNCH();
	ring_init(sh.full, sh.empty, 1 + COPIERS / 32, 4 * GROUPS);  // who expects W, and each copying warp
	__syncthreads();
	if (threadIdx.x < CONSUMERS) {
		multiply(p, sh);
		return;
	}
	copy(p, sh);
	if (SPLIT > 1) {  // reduce's two
		cluster_sync();
		cluster_sync();
	}
#endif
}
