// moe_gemm_sm90: y[pair] = end(x[pair] w_expert^T) for any number of pairs, on the warpgroup matrix units of sm_90a.
//
// Shapes: w [EXPERTS, N, K], x [pairs, K], y [pairs, N] bf16 (SwiGLU: [pairs, N/2]). Grid: 1 CTA an SM, 288 threads; shared memory: a ring of
// STAGES x (ROWS + TOKENS) x 64 bf16. Bytes: 2 N K an expert that is needed, 2 (K + N) a pair; FLOPs 2 N K a pair.
// A tile is ROWS rows of one expert's W, as wgmma's M, and TOKENS of its pairs, as N; pairs of other experts in the box are multiplied and dropped.
// Tiles of an expert lie side by side, those that share pairs first, and are strided over CTAs, so that neighbours run at the same time and
// share L2. How many tiles there are follows from count, on the device. A thread copies, two warpgroups multiply, as in gemm_sm90.
// EARLY: count is read and W asked for before the wait. It is set for the second product: the kernel before it lets it start only after its own
// wait, behind moe_sort.
#include "moe.cuh"
#include "wgmma.cuh"

#if !defined(N) || !defined(K) || !defined(ROWS) || !defined(TOKENS) || !defined(STAGES) || !defined(GATED) || !defined(EARLY)
#error "N, K; ROWS of a tile: 128 or 256; TOKENS of a tile: 32, 64 or 128; STAGES; GATED (1: SwiGLU); EARLY"
#endif
#define THREADS 288
constexpr int STEP = 64;
constexpr int KB = ceil_div(K, STEP);           // steps of a tile
constexpr int ROW_TILES = ceil_div(N, ROWS);    // of an expert
constexpr int PARTS = ROWS / 128;               // of 64 rows, of a warpgroup
constexpr u32 STAGE_BYTES = (ROWS + TOKENS) * STEP * 2;
constexpr int OUTPUTS = GATED ? N / 2 : N;
static_assert(N % (GATED ? 16 : 8) == 0 && K % 8 == 0, "gate and up are interleaved in blocks of 8 rows; rows are copied 16 bytes at a time");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, x;    // boxes of ROWS and TOKENS rows x 64 columns
	bf16* y;
	const i32* count;  // [EXPERTS] pairs of each
	const i32* first;  // [EXPERTS] before them
	i32 pad[26];
};

struct Stage { bf16 w[ROWS][STEP], x[TOKENS][STEP]; };
struct Shared {
	Stage stage[STAGES];
	u64 full[STAGES], empty[STAGES];
	i32 count[EXPERTS], first[EXPERTS];
	i32 tiles[EXPERTS + 1];  // before an expert's
};

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
struct Tile { int expert, row, pair, pairs; };  // row of the expert's W, first pair, pairs

DEVICE Tile tile_of(const Shared& sh, int tile) {
	int low = 0, high = EXPERTS - 1;  // the last expert whose tiles begin at or before tile
	while (low < high) {
		const int middle = (low + high + 1) >> 1;
		if (sh.tiles[middle] <= tile) low = middle;
		else high = middle - 1;
	}
	const int at = tile - sh.tiles[low], token = at / ROW_TILES * TOKENS;
	return Tile{low, at % ROW_TILES * ROWS, sh.first[low] + token, min(TOKENS, sh.count[low] - token)};
}

// plan counts every expert's tiles.
DEVICE void plan(const Params& p, Shared& sh) {
	const int tid = threadIdx.x;
	for (int e = tid; e < EXPERTS; e += THREADS) {
		sh.count[e] = (i32)ld4_l2(p.count + e);
		sh.first[e] = (i32)ld4_l2(p.first + e);
	}
	__syncthreads();
	if (tid < 32) {
		int mine = 0;
		for (int i = 0; i < PER_LANE; i++)
			if (tid * PER_LANE + i < EXPERTS) mine += ceil_div(sh.count[tid * PER_LANE + i], TOKENS) * ROW_TILES;
		int before = mine;
#pragma unroll
		for (int o = 1; o < 32; o <<= 1) {
			const int v = __shfl_up_sync(~0u, before, o);
			if (tid >= o) before += v;
		}
		if (tid == 31) sh.tiles[EXPERTS] = before;
		before -= mine;
		for (int i = 0; i < PER_LANE; i++)
			if (tid * PER_LANE + i < EXPERTS) {
				sh.tiles[tid * PER_LANE + i] = before;
				before += ceil_div(sh.count[tid * PER_LANE + i], TOKENS) * ROW_TILES;
			}
	}
	__syncthreads();
}

DEVICE void copy(const Params& p, Shared& sh) {
	const u64 keep = policy_evict_last(), once = policy_evict_first();
	const int tiles = sh.tiles[EXPERTS];
	tensor_prefetch_map(&p.w);
	tensor_prefetch_map(&p.x);
	auto load_w = [&](const Tile& t, int k, int s) {
		mbarrier_expect(&sh.full[s], STAGE_BYTES);
		tensor_load(sh.stage[s].w, &p.w, k * STEP, t.expert * N + t.row, &sh.full[s], t.pairs < sh.count[t.expert] ? keep : once);
	};
	auto load_x = [&](const Tile& t, int k, int s) { tensor_load(sh.stage[s].x, &p.x, k * STEP, t.pair, &sh.full[s], keep); };
	// The first tile's stages are filled with W ahead of the wait.
	int ahead = 0;
	if ((int)blockIdx.x < tiles) {
		const Tile t = tile_of(sh, blockIdx.x);
		ahead = min(KB, STAGES);
		for (int k = 0; k < ahead; k++) load_w(t, k, k);
	}
	if (EARLY) PDL_WAIT();
	int i = 0;  // steps
	for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
		const Tile t = tile_of(sh, tile);
		for (int k = 0; k < KB; k++, i++) {
			const int s = i % STAGES;
			if (i >= ahead) {
				if (i >= STAGES) mbarrier_wait(&sh.empty[s], (i / STAGES - 1) & 1);
				load_w(t, k, s);
			}
			load_x(t, k, s);
		}
	}
}

// Lane 4g+t and its neighbour 4(g^1)+t hold rows g and g^1 of the same two pairs; after the swap an even lane group has both rows of the first
// pair, an odd one those of the second: (row g & ~1, row g | 1).
DEVICE float2 swap(float first, float second, bool odd) {
	const float got = __shfl_xor_sync(~0u, odd ? first : second, 4);
	return odd ? make_float2(got, second) : make_float2(first, got);
}

DEVICE float gated(float gate, float up) { return __fdividef(gate, 1.f + __expf(-gate)) * up; }

// finish stores 64 rows from row on of the tile's pairs.
DEVICE void finish(const Params& p, const Tile& tile, int row, const float (&d)[TOKENS / 2]) {
	const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
	const bool odd = g & 1;
	row += (threadIdx.x >> 5 & 3) * 16;  // the warp's
#pragma unroll
	for (int j = 0; j < TOKENS / 8; j++) {
		const int m = 8 * j + 2 * t + odd;
		bf16* to = p.y + (size_t)(tile.pair + m) * OUTPUTS;
		if (GATED) {
			const float2 v = swap(gated(d[4 * j], d[4 * j + 2]), gated(d[4 * j + 1], d[4 * j + 3]), odd);
			const int o = row / 2 + (g & ~1);
			if (m < tile.pairs && o < OUTPUTS) *reinterpret_cast<u32*>(to + o) = pack_bf16(v.x, v.y);
		} else {
#pragma unroll
			for (int h = 0; h < 2; h++) {
				const float2 v = swap(d[4 * j + 2 * h], d[4 * j + 2 * h + 1], odd);
				const int o = row + 8 * h + (g & ~1);
				if (m < tile.pairs && o < OUTPUTS) *reinterpret_cast<u32*>(to + o) = pack_bf16(v.x, v.y);
			}
		}
	}
}

DEVICE void multiply(const Params& p, Shared& sh) {
	const int group = threadIdx.x >> 7, tiles = sh.tiles[EXPERTS];
	const bool speaker = (threadIdx.x & 127) == 0;
	if (EARLY) PDL_WAIT();
	int i = 0;  // steps done
	for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
		float d[PARTS][TOKENS / 2];
		for (int k = 0; k < KB; k++, i++) {
			const int s = i % STAGES;
			mbarrier_wait(&sh.full[s], i / STAGES & 1);
			const u64 b = wgmma_tile(sh.stage[s].x);
			wgmma_fence();
#pragma unroll
			for (int part = 0; part < PARTS; part++) {
				const u64 a = wgmma_tile(sh.stage[s].w[64 * (group * PARTS + part)]);
#pragma unroll
				for (int j = 0; j < STEP / 16; j++) Wgmma<TOKENS>::product(d[part], a + 2 * j, b + 2 * j, j > 0 || k > 0);
			}
			wgmma_commit();
			if (k > 0) {  // the step before is done: its stage may be filled again
				wgmma_wait<1>();
				if (speaker) mbarrier_arrive(&sh.empty[(i - 1) % STAGES]);
			}
		}
		wgmma_wait<0>();
		if (speaker) mbarrier_arrive(&sh.empty[(i - 1) % STAGES]);
		const Tile t = tile_of(sh, tile);
#pragma unroll
		for (int part = 0; part < PARTS; part++) finish(p, t, t.row + 64 * (group * PARTS + part), d[part]);
	}
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) moe_gemm_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	if (!EARLY) PDL_WAIT();
	PDL_LAUNCH();
	if (threadIdx.x == 0) {
		for (int i = 0; i < STAGES; i++) {
			mbarrier_init(&sh.full[i], 1);
			mbarrier_init(&sh.empty[i], 2);
		}
		mbarrier_init_fence();
	}
	plan(p, sh);
	if (threadIdx.x < 256) multiply(p, sh);
	else if (threadIdx.x == 256) copy(p, sh);
#endif
}
