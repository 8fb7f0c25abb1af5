// moe_gemm_sm90: y[pair] = end(x[pair] w_expert^T) for any number of pairs, on the warpgroup matrix units of sm_90a.
//
// Shapes: w [EXPERTS, N, K], x [pairs, K], y [pairs, N] bf16 (SwiGLU: [pairs, N/2]). Grid: 1 CTA an SM, 384 threads; shared memory: a ring of
// STAGES x (ROWS + TOKENS) x 64 bf16. Bytes: 2 N K an expert that is needed, 2 (K + N) a pair; FLOPs 2 N K a pair.
// A tile is ROWS rows of one expert's W, as wgmma's M, and up to TOKENS of its pairs, as N. An expert has as few tiles of its pairs as can be, of one
// size but for the last; the product has as many columns as a tile has pairs, rounded up to GRAIN, so that what is multiplied for nothing is little
// whatever the router does. Pairs of other experts in the last box are multiplied and dropped.
// Tiles of an expert lie side by side, those that share pairs first, and are strided over CTAs, so that neighbours run at the same time and
// share L2. How many tiles there are follows from count, on the device. A thread copies, two warpgroups multiply, as in gemm_sm90.
// EARLY: count is read and W asked for before the wait. It is set for the second product: the kernel before it lets it start only after its own
// wait, behind moe_sort.
#include "moe.cuh"
#include "wgmma.cuh"

#if !defined(N) || !defined(K) || !defined(ROWS) || !defined(TOKENS) || !defined(STAGES) || !defined(GATED) || !defined(EARLY)
#error "N, K; ROWS of a tile: 128 or 256; TOKENS of a tile at most, a multiple of 32; STAGES; GATED (1: SwiGLU); EARLY"
#endif
#define THREADS 384  // whole warpgroups, for registers move from the third, which copies, to the first two
constexpr int STEP = 64;
constexpr int KB = ceil_div(K, STEP);           // steps of a tile
constexpr int ROW_TILES = ceil_div(N, ROWS);    // of an expert
constexpr int PARTS = ROWS / 128;               // of 64 rows, of a warpgroup
constexpr int GRAIN = 32;                       // of a tile's columns, and rows of a box of x
constexpr int OUTPUTS = GATED ? N / 2 : N;
static_assert(TOKENS % GRAIN == 0, "whole boxes");
static_assert(N % (GATED ? 16 : 8) == 0 && K % 8 == 0, "gate and up are interleaved in blocks of 8 rows; rows are copied 16 bytes at a time");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, x;    // boxes of ROWS and GRAIN rows x 64 columns
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
struct Tile {
	int expert, row, pair, pairs;  // row of the expert's W, first pair, pairs
	DEVICE int boxes() const { return ceil_div(pairs, GRAIN); }
};

DEVICE Tile tile_of(const Shared& sh, int tile) {
	int low = 0, high = EXPERTS - 1;  // the last expert whose tiles begin at or before tile
	while (low < high) {
		const int middle = (low + high + 1) >> 1;
		if (sh.tiles[middle] <= tile) low = middle;
		else high = middle - 1;
	}
	const int at = tile - sh.tiles[low], count = sh.count[low];
	const int share = ceil_div(ceil_div(count, ceil_div(count, TOKENS)), GRAIN) * GRAIN, token = at / ROW_TILES * share;
	return Tile{low, at % ROW_TILES * ROWS, sh.first[low] + token, min(share, count - token)};
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
		mbarrier_expect(&sh.full[s], (ROWS + t.boxes() * GRAIN) * STEP * 2);
		tensor_load(sh.stage[s].w, &p.w, k * STEP, t.expert * N + t.row, &sh.full[s], t.pairs < sh.count[t.expert] ? keep : once);
	};
	auto load_x = [&](const Tile& t, int k, int s) {
		for (int box = 0; box < t.boxes(); box++) tensor_load(sh.stage[s].x[box * GRAIN], &p.x, k * STEP, t.pair + box * GRAIN, &sh.full[s], keep);
	};
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
template <int COLUMNS> DEVICE void finish(const Params& p, const Tile& tile, int row, const float (&d)[COLUMNS / 2]) {
	const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3;
	const bool odd = g & 1;
	row += (threadIdx.x >> 5 & 3) * 16;  // the warp's
#pragma unroll
	for (int j = 0; j < COLUMNS / 8; j++) {
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

// multiply_tile makes a tile with so many columns as it needs, COLUMNS at most. i counts steps.
template <int COLUMNS> DEVICE void multiply_tile(const Params& p, Shared& sh, const Tile& tile, int& i) {
	if constexpr (COLUMNS > GRAIN)
		if (tile.pairs <= COLUMNS - GRAIN) return multiply_tile<COLUMNS - GRAIN>(p, sh, tile, i);
	const int group = threadIdx.x >> 7;
	const bool speaker = (threadIdx.x & 127) == 0;
	float d[PARTS][COLUMNS / 2] = {};  // or the compiler keeps the sums of every size alive at once
	for (int k = 0; k < KB; k++, i++) {
		const int s = i % STAGES;
		mbarrier_wait(&sh.full[s], i / STAGES & 1);
		const u64 b = wgmma_tile(sh.stage[s].x);
		wgmma_fence();
#pragma unroll
		for (int part = 0; part < PARTS; part++) {
			const u64 a = wgmma_tile(sh.stage[s].w[64 * (group * PARTS + part)]);
#pragma unroll
			for (int j = 0; j < STEP / 16; j++) Wgmma<COLUMNS>::product(d[part], a + 2 * j, b + 2 * j, 1);
		}
		wgmma_commit();
		if (k > 0) {  // the step before is done: its stage may be filled again
			wgmma_wait<1>();
			if (speaker) mbarrier_arrive(&sh.empty[(i - 1) % STAGES]);
		}
	}
	wgmma_wait<0>();
	if (speaker) mbarrier_arrive(&sh.empty[(i - 1) % STAGES]);
#pragma unroll
	for (int part = 0; part < PARTS; part++) finish<COLUMNS>(p, tile, tile.row + 64 * (group * PARTS + part), d[part]);
}

DEVICE void multiply(const Params& p, Shared& sh) {
	const int tiles = sh.tiles[EXPERTS];
	if (EARLY) PDL_WAIT();
	int i = 0;
	for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x) multiply_tile<TOKENS>(p, sh, tile_of(sh, tile), i);
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
	if (threadIdx.x < 256) {
		registers_more<232>();
		multiply(p, sh);
	} else {
		registers_less<40>();
		if (threadIdx.x == 256) copy(p, sh);
	}
#endif
}
