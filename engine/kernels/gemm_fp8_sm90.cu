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
#include "gemm_rows.cuh"
#include "wgmma.cuh"

#if !defined(TOKENS) || !defined(GROUPS) || !defined(SPLIT) || !defined(STAGES) || !defined(SCALES)
#error "TOKENS that a tile has room for: 32 or 64; GROUPS of 64 rows of W; SPLIT of K: 1, 2 or 4; STAGES; SCALES: 1 divides by the RMS of rms_of"
#endif
constexpr int THREADS = 128 * GROUPS + 32;

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
