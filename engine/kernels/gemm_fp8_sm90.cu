// gemm_fp8_sm90: y[m] = epilogue(x[m] W^T) for M = 17..64 tokens, W of e4m3 and x of bf16 (W8A16): tensor copies (TMA) bring both to shared memory,
// warps widen W on its way to the registers that warpgroup products (wgmma) take it from.
//
// Shapes: W [N, K] e4m3 (fp8.cuh), x [M, K], y [M, N]. Rows of W are the M of wgmma, 64 a warpgroup, tokens its N. A CTA makes 64*GROUPS outputs of all
// tokens, over 1/SPLIT of K. Grid: CTAs of one tile are neighbours and a cluster; without SPLIT a CTA takes several tiles if there are more than
// CTAs. 128*GROUPS*TURNS threads that multiply, a warp that copies, and one for the RMS. Shared memory: STAGES of 128 columns of W (a byte each) and
// of x. Bytes: NK + 2M(K+N), and x again for each tile, from L2; FLOPs 2MNK. Bound by memory, where several warpgroups share an SM's widening.
// W for all stages is asked for before the wait on the previous kernel. Sums of SPLIT CTAs meet in the shared memory of the cluster, each CTA
// finishing a part of the tokens, in the order of K: the same bits always.
// RMSNorm between two products is no kernel: the first (RESIDUAL) leaves y * gamma beside y, and the squares of its outputs; the second
// multiplies by 1/RMS of its tokens (SCALES).
// Where this kernel makes what the next one multiplies (y * gamma, or with Y_F16 act), it leaves it as f16 of x / 16, of each 16 columns 0, 8, 2, 10
// .. 6, 14, 1, 9 .. 7, 15, and the next one (X_F16) widens W by the conversion instruction, two for four weights where bf16 takes nine, in just that
// order. f16 holds a sixteenth of every bf16 between 2^-13 and 10^6 exactly, and of smaller ones to within 2^-21.
#include "fp8.cuh"
#include "gemm_rows.cuh"
#include "wgmma.cuh"

#if !defined(TURNS) || !defined(SCALES) || !defined(X_F16) || !defined(Y_F16)
#error "TURNS: 1 or 2; SCALES: 1 divides by the RMS of rms_of; X_F16, Y_F16"
#endif
constexpr int TURN = 128 * GROUPS;  // threads that multiply a stage
constexpr int THREADS = TURN * TURNS + 32 * (1 + SCALES);
constexpr float UNSCALE = X_F16 ? 1.f / F16_SCALE : 1.f;
#if Y_F16
typedef f16 y_t;
#else
typedef bf16 y_t;
#endif

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, x;          // boxes of ROWS x 128 bytes and of the tokens, rounded up to eights, x 64 of x
	const float* row_scale;  // [N]
	const bf16* bias;        // [N], STORE_BIAS
	y_t* y;                  // [M, N], SwiGLU [M, N/2]; RESIDUAL adds to it
	const bf16* gamma;       // RESIDUAL: [N] of the norm that follows; null: none
	f16* scaled;             // [M, N], y * gamma as X_F16 has it
	float* squares;          // [CTAs, TOKENS]: sums of the squares of a CTA's outputs
	const float* rms_of;     // SCALES: such sums of x [parts, TOKENS]
	i32 tokens;              // M
	i32 parts;
	i32 stage_bytes;         // that are copied for a stage: what is in x past the tokens is anything, and nobody looks at what comes of it
	i32 pad[15];
};

struct Stage {
	u8 w[ROWS][STEP];
	bf16 x[2][TOKENS][64];
};
struct Shared {
	Stage stage[STAGES];  // after the last product: sums of the cluster's CTAs
	u64 full[STAGES], empty[STAGES];
	float scale[TOKENS];                         // 1/RMS, SCALES
	float4 other[TURNS > 1 ? UNITS * TURN : 1];  // the second turn's sums
};
static_assert(sizeof(Stage) % 1024 == 0, "swizzled rows repeat every 1024 bytes");
static_assert(SPLIT == 1 || SPLIT * SHARE * TURN * 16 <= (int)sizeof(Stage) * STAGES, "sums do not fit the stages");

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
DEVICE void copy(const Params& p, Shared& sh) {
	const u64 keep = policy_evict_last(), once = policy_evict_first();
	const int begin = first_step(), steps = end_step() - begin, first = blockIdx.x / SPLIT, stride = gridDim.x / SPLIT;
	const int total = steps * (first < TILES ? ceil_div(TILES - first, stride) : 0);
	tensor_prefetch_map(&p.w);
	tensor_prefetch_map(&p.x);
	auto load_w = [&](int i) {
		const int s = i % STAGES;
		mbarrier_expect(&sh.full[s], p.stage_bytes);
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

// scales_of makes 1/RMS of every token from the parts of its squares, in one warp, while the others multiply.
DEVICE void scales_of(const Params& p, Shared& sh) {
	constexpr int LANES = TOKENS / 4, TOGETHER = 32 / LANES, BATCH = 8;
	const int lane = threadIdx.x & 31, token = lane % LANES * 4;
	PDL_WAIT();
	float sum[4] = {};
	for (int first = lane / LANES; first < p.parts; first += TOGETHER * BATCH) {
		uint4 v[BATCH];
#pragma unroll
		for (int i = 0; i < BATCH; i++) {
			const int part = first + i * TOGETHER;
			v[i] = part < p.parts ? ld16_l2(p.rms_of + part * TOKENS + token) : make_uint4(0, 0, 0, 0);
		}
#pragma unroll
		for (int i = 0; i < BATCH; i++)
#pragma unroll
			for (int j = 0; j < 4; j++) sum[j] += __uint_as_float(word_of(v[i], j));
	}
#pragma unroll
	for (int j = 0; j < 4; j++) {
#pragma unroll
		for (int o = LANES; o < 32; o <<= 1) sum[j] += __shfl_xor_sync(~0u, sum[j], o);
		if (lane < LANES) sh.scale[token + j] = rsqrtf(sum[j] * (1.f / K) + RMS_EPS);
	}
	barrier_sync(2, TURN + 32);  // multiply's
}

#if X_F16
typedef f16 x_t;
DEVICE void widen_pairs(u32 word, u32& first, u32& second) {
	const uint2 pairs = widen_e4m3(word);
	first = pairs.x;
	second = pairs.y;
}
#else
typedef bf16 x_t;
DEVICE void widen_pairs(u32 word, u32& first, u32& second) { widen_whole(word, first, second); }
#endif

// multiply makes the tiles' products. With two turns, two sets of warpgroups have the same rows and take the stages in turn; the first adds the
// second's sums to its own and finishes the outputs.
template <int MINE> DEVICE void multiply(const Params& p, Shared& sh) {
	const int tid = threadIdx.x - MINE * TURN, lane = tid & 31, warp = tid >> 5, g = lane >> 2;
	const int begin = first_step(), end = end_step();
	// ldmatrix: lanes 8q..8q+7 name the rows of matrix q. Matrices are rows 0-7 and 8-15 of the warp's 16, of 16 bytes, then of the next 16.
	const int row = 16 * warp + (lane & 15), half = lane >> 4;
	PDL_WAIT();
	bool scaled = !SCALES;
	float squares[UNITS] = {};
	int i = 0;  // steps done, by both turns
	for (int tile = blockIdx.x / SPLIT; tile < TILES; tile += gridDim.x / SPLIT) {
		const int n = tile * ROWS + 16 * warp;
		float scale = 0.f, scale8 = 0.f;
		Added a[SHARE];
		auto load_added = [&] {
#pragma unroll
			for (int j = 0; j < SHARE; j++) a[j] = added(p, place(n, blockIdx.x % SPLIT * SHARE + j));
		};
		if (MINE == 0) {
			if (n + g < N) scale = p.row_scale[n + g] * UNSCALE;
			if (n + g + 8 < N) scale8 = p.row_scale[n + g + 8] * UNSCALE;
			if (TOKENS <= 32) load_added();  // with more, registers are short
		}
		float d[TOKENS / 2] = {};
		int before = -1;  // the stage of this turn's step before
		for (int step = begin; step < end; step++, i++) {
			if (TURNS > 1 && i % TURNS != MINE) continue;
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
						widen_pairs(words[2 * q], a[2 * j + q][0], a[2 * j + q][2]);
						widen_pairs(words[2 * q + 1], a[2 * j + q][1], a[2 * j + q][3]);
					}
				}
				const u64 b = wgmma_tile(sh.stage[s].x[part]);
				wgmma_fence();
#pragma unroll
				for (int j = 0; j < 4; j++) Wgmma<TOKENS, x_t>::product_of_rows(d, a[j], b + 2 * j, 1);
				wgmma_commit();
				wgmma_wait<1>();
				if (part == 0 && before >= 0 && lane == 0) mbarrier_arrive(&sh.empty[before]);  // it is done
			}
			before = s;
		}
		wgmma_wait<0>();
		if (before >= 0 && lane == 0) mbarrier_arrive(&sh.empty[before]);
		if (TURNS > 1) {
#pragma unroll
			for (int j = 0; j < UNITS; j++)
				if (MINE == 1) sh.other[j * TURN + tid] = make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]);
			barrier_sync(3, TURN * TURNS);
			if (MINE == 0)
#pragma unroll
				for (int j = 0; j < UNITS; j++) {
					const float4 more = sh.other[j * TURN + tid];
					d[4 * j] += more.x;
					d[4 * j + 1] += more.y;
					d[4 * j + 2] += more.z;
					d[4 * j + 3] += more.w;
				}
			barrier_sync(3, TURN * TURNS);  // the room is free again
		}
		if (MINE == 1) continue;
		if (!scaled) barrier_sync(2, TURN + 32);
		scaled = true;
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
		if (TOKENS > 32) load_added();
		if constexpr (SPLIT > 1) {
			reduce(p, sh, n, d, a, squares);
			break;  // a cluster has one tile
		} else {
#pragma unroll
			for (int j = 0; j < UNITS; j++) squares[j] += finish(p, place(n, j), make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]), a[j]);
		}
	}
	if (MINE == 0 && EPILOGUE == RESIDUAL && p.gamma) store_squares(p, sh, squares);
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_fp8_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	PDL_LAUNCH();
	ring_init(sh.full, sh.empty, 1, 4 * GROUPS);
	__syncthreads();
	if (threadIdx.x < TURN) {
		multiply<0>(p, sh);
		return;
	}
	if constexpr (TURNS > 1)
		if (threadIdx.x < TURN * TURNS) multiply<1>(p, sh);
	if (SCALES && threadIdx.x >= TURN * TURNS + 32) scales_of(p, sh);
	if (threadIdx.x == TURN * TURNS) copy(p, sh);
	__syncwarp();
	if (SPLIT > 1) {  // reduce's two
		cluster_sync();
		cluster_sync();
	}
#endif
}
