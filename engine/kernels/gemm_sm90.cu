// gemm_sm90: y[m] = epilogue(x[m] W^T) for M = 17..256 tokens: tensor copies (TMA) feed warpgroup products (wgmma), and every SM gets the
// same share of the work.
//
// Shapes: W [N, K] bf16 row-major, x [M, K] (TOKENS rows of it are read), y [M, N]. Grid: 1 CTA an SM, 288 threads: two warpgroups that
// multiply, 64 rows of W each, and one warp that copies; shared memory: STAGES of (128 rows of W + TOKENS of x) x 64 columns.
// Bytes: 2NK + 2M(K+N), and x again for each 128 rows, from L2; FLOPs 2MNK. Bound by memory up to about 128 tokens.
// Rows of W are the M of wgmma, tokens its N: so few tokens waste nothing. Tiles (128 rows) times steps (64 columns) form one
// sequence that is cut into equal runs, one for each CTA ("stream-K", arXiv:2301.03598): no shape leaves SMs idle. A tile that several
// CTAs share is summed by the last of them to arrive, in the order of columns: the same bits every time.
// W for the first stages is asked for before the wait on the previous kernel. One CTA fills an SM, so that grids stay balanced.
#include "linear.cuh"
#include "wgmma.cuh"

#if !defined(TOKENS) || !defined(STAGES)
#error "TOKENS that a tile has room for: 32, 64, 96, 128, 192 or 256; STAGES"
#endif
#define THREADS 288
constexpr int ROWS = 128, STEP = 64;
constexpr int KB = ceil_div(K, STEP);     // steps of a tile
constexpr int TILES = ceil_div(N, ROWS);
constexpr u32 STAGE_BYTES = (ROWS + TOKENS) * STEP * 2;
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
static_assert(!NORM, "x is normed before");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, x;       // boxes of 128 and TOKENS rows x 64 columns
	const bf16* bias;     // [N], STORE_BIAS
	bf16* y;
	float* logits;        // [M, N], HEAD_LOGITS
	const i32* slot;      // HEAD_FAST [M]
	const i32* position;
	const SlotParams* slot_param;
	Candidate* best;      // HEAD_FAST [M, CTAs]
	float4* part;         // [CTAs, 2, TOKENS/8, 256]: sums of tiles that are shared
	u32* arrived;         // [TILES], 0 before and after
	i32 tokens;           // M
	i32 pad[13];
};

struct Stage { bf16 w[ROWS][STEP], x[TOKENS][STEP]; };
struct Shared {
	Stage stage[STAGES];
	u64 full[STAGES], empty[STAGES];
	Candidate best[2][4][TOKENS];  // a warp's, HEAD_FAST
	Draw draw[TOKENS];
	u32 arrived;
};

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Share is a CTA's run of steps.
DEVICE i64 share_begin(int cta) { return (i64)TILES * KB * cta / gridDim.x; }
DEVICE int share_of(i64 step) { return (int)(((step + 1) * gridDim.x - 1) / ((i64)TILES * KB)); }  // the CTA whose run holds step

DEVICE void copy(const Params& p, Shared& sh) {
	const u64 keep = policy_evict_last(), once = policy_evict_first();
	const i64 begin = share_begin(blockIdx.x);
	const int steps = (int)(share_begin(blockIdx.x + 1) - begin);
	tensor_prefetch_map(&p.w);
	tensor_prefetch_map(&p.x);
	auto load_w = [&](int i) {
		const int s = i % STAGES;
		mbarrier_expect(&sh.full[s], STAGE_BYTES);
		tensor_load(sh.stage[s].w, &p.w, (int)((begin + i) % KB) * STEP, (int)((begin + i) / KB) * ROWS, &sh.full[s], once);
	};
	auto load_x = [&](int i) {
		const int s = i % STAGES;
		tensor_load(sh.stage[s].x, &p.x, (int)((begin + i) % KB) * STEP, 0, &sh.full[s], keep);
	};
	for (int i = 0; i < min(steps, STAGES); i++) load_w(i);
	PDL_WAIT();
	for (int i = 0; i < min(steps, STAGES); i++) load_x(i);
	for (int i = STAGES; i < steps; i++) {
		mbarrier_wait(&sh.empty[i % STAGES], (i / STAGES - 1) & 1);
		load_w(i);
		load_x(i);
	}
}

// Lane 4g+t and its neighbour 4(g^1)+t hold rows g and g^1 of the same two tokens; swap gives each lane both rows of one token: an even
// lane group keeps the first token, an odd one the second. The result is (row g & ~1, row g | 1).
DEVICE float2 swap(float first, float second, bool odd) {
	const float got = __shfl_xor_sync(~0u, odd ? first : second, 4);
	return odd ? make_float2(got, second) : make_float2(first, got);
}

// store_pair finishes outputs o and o + 1 of token m.
DEVICE void store_pair(const Params& p, int m, int o, float2 v) {
	if (m >= p.tokens || o >= N) return;
	if constexpr (EPILOGUE == HEAD_LOGITS) {
		p.logits[(size_t)m * N + o] = v.x;
		if (o + 1 < N) p.logits[(size_t)m * N + o + 1] = v.y;
	} else {
		u32* to = reinterpret_cast<u32*>(p.y + (size_t)m * N + o);
		u32 add = 0;
		if (EPILOGUE == STORE_BIAS) add = *reinterpret_cast<const u32*>(p.bias + o);
		if (EPILOGUE == RESIDUAL) add = ld4_l2(to);  // not from L1: another SM wrote it, and this kernel may have begun before that
		*to = pack_bf16(v.x + bf16_lo(add), v.y + bf16_hi(add));
	}
}

DEVICE void finish(const Params& p, Shared& sh, int tile, const float (&d)[TOKENS / 2]) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
	const bool odd = g & 1;
	const int row0 = tile * ROWS + warp * 16;  // warps 0..7 hold 16 rows each
	if constexpr (EPILOGUE == HEAD_FAST) {
#pragma unroll
		for (int j = 0; j < TOKENS / 8; j++)
#pragma unroll
			for (int c = 0; c < 2; c++) {
				const int m = 8 * j + 2 * t + c;
				Best best;
				if (row0 + g < N) best.add(sh.draw[m], d[4 * j + c], row0 + g);
				if (row0 + g + 8 < N) best.add(sh.draw[m], d[4 * j + 2 + c], row0 + g + 8);
#pragma unroll
				for (int o = 4; o < 32; o <<= 1) best.merge(Candidate{__shfl_xor_sync(~0u, best.score, o), __shfl_xor_sync(~0u, best.token, o)});
				if (g == 0) {
					Candidate& slot = sh.best[warp >> 2][warp & 3][m];
					best.merge(slot);
					slot = Candidate{best.score, best.token};
				}
			}
	} else if constexpr (EPILOGUE == SWIGLU) {
		const int o = row0 / 2 + (g & ~1);
#pragma unroll
		for (int j = 0; j < TOKENS / 8; j++) {
			const int m = 8 * j + 2 * t + odd;
			const float2 v = swap(swiglu(d[4 * j], d[4 * j + 2]), swiglu(d[4 * j + 1], d[4 * j + 3]), odd);
			if (m < p.tokens && o < OUTPUTS) *reinterpret_cast<u32*>(p.y + (size_t)m * OUTPUTS + o) = pack_bf16(v.x, v.y);
		}
	} else {
#pragma unroll
		for (int i = 0; i < TOKENS / 4; i++) {
			const int m = i / 2 * 8 + 2 * t + odd, o = row0 + i % 2 * 8 + (g & ~1);
			store_pair(p, m, o, swap(d[2 * i], d[2 * i + 1], odd));
		}
	}
}

DEVICE void multiply(const Params& p, Shared& sh) {
	const int tid = threadIdx.x, group = tid >> 7;
	const i64 begin = share_begin(blockIdx.x), end = share_begin(blockIdx.x + 1);
	PDL_WAIT();
	if (EPILOGUE == HEAD_FAST) {
		for (int m = tid; m < TOKENS; m += 256) {
			sh.draw[m] = m < p.tokens ? draw_of(p.slot_param, p.slot[m], p.position[m]) : Draw{0, 0.f, 0};
			for (int i = 0; i < 8; i++) sh.best[i >> 2][i & 3][m] = Candidate{-__int_as_float(0x7F800000), ~NONFINITE};
		}
		barrier_sync(1, 256);
	}
	int i = 0;  // steps done
	for (i64 at = begin; at < end;) {
		const int tile = (int)(at / KB), from = (int)(at % KB), to = (int)min((i64)KB, from + end - at);
		float d[TOKENS / 2];
		for (int k = from; k < to; k++, i++) {
			const int s = i % STAGES;
			mbarrier_wait(&sh.full[s], i / STAGES & 1);
			const u64 a = wgmma_tile(sh.stage[s].w[64 * group]), b = wgmma_tile(sh.stage[s].x);
			wgmma_fence();
#pragma unroll
			for (int j = 0; j < STEP / 16; j++) Wgmma<TOKENS>::product(d, a + 2 * j, b + 2 * j, j > 0 || k > from);
			wgmma_commit();
			if (k > from) {  // the step before is done: its stage may be filled again
				wgmma_wait<1>();
				if ((tid & 127) == 0) mbarrier_arrive(&sh.empty[(i - 1) % STAGES]);
			}
		}
		wgmma_wait<0>();
		if ((tid & 127) == 0) mbarrier_arrive(&sh.empty[(i - 1) % STAGES]);
		at += to - from;

		const int first = share_of((i64)tile * KB), last = share_of((i64)tile * KB + KB - 1);
		if (first == last) {
			finish(p, sh, tile, d);
			continue;
		}
		// A CTA has at most two shared tiles: the one its run begins in, and the one it ends in.
		auto part_of = [&](int cta) { return p.part + (size_t)(2 * cta + (share_begin(cta) / KB != tile)) * (TOKENS / 8) * 256 + tid; };
		float4* mine = part_of(blockIdx.x);
#pragma unroll
		for (int j = 0; j < TOKENS / 8; j++) mine[j * 256] = make_float4(d[4 * j], d[4 * j + 1], d[4 * j + 2], d[4 * j + 3]);
		barrier_sync(1, 256);
		if (tid == 0) sh.arrived = atom_inc_acq_rel(p.arrived + tile);
		barrier_sync(1, 256);
		const bool merge = sh.arrived == last - first;
		barrier_sync(1, 256);  // arrived has been read
		if (!merge) continue;
		if (tid == 0) p.arrived[tile] = 0;
#pragma unroll
		for (int j = 0; j < TOKENS / 2; j++) d[j] = 0.f;
		for (int cta = first; cta <= last; cta++) {
			const float4* from = part_of(cta);
#pragma unroll
			for (int j = 0; j < TOKENS / 8; j++) {
				const uint4 v = ld16_l2(from + j * 256);
				d[4 * j] += __uint_as_float(v.x);
				d[4 * j + 1] += __uint_as_float(v.y);
				d[4 * j + 2] += __uint_as_float(v.z);
				d[4 * j + 3] += __uint_as_float(v.w);
			}
		}
		finish(p, sh, tile, d);
	}
	if (EPILOGUE == HEAD_FAST) {
		barrier_sync(1, 256);
		for (int m = tid; m < p.tokens; m += 256) {
			Best best;
			for (int w = 0; w < 8; w++) best.merge(sh.best[w >> 2][w & 3][m]);
			p.best[(size_t)m * gridDim.x + blockIdx.x] = Candidate{best.score, best.token};
		}
	}
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	PDL_LAUNCH();
	if (threadIdx.x == 0) {
		for (int i = 0; i < STAGES; i++) {
			mbarrier_init(&sh.full[i], 1);
			mbarrier_init(&sh.empty[i], 2);
		}
		mbarrier_init_fence();
	}
	__syncthreads();
	if (threadIdx.x < 256) multiply(p, sh);
	else if (threadIdx.x == 256) copy(p, sh);
#endif
}
