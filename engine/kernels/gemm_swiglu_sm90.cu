// gemm_swiglu_sm90: y[m] = silu(gate) * up of x[m] W^T for many tokens: tensor copies (TMA) feed warpgroup products (wgmma), tile after tile.
//
// Shapes: W [N, K] bf16 row-major, gate and up interleaved in blocks of 8 rows; x [M, K] with room for whole tiles of tokens; y [M, N/2]. A cluster
// of two CTAs makes ROWS rows of W by 256 tokens: each CTA 128 tokens, 64 a warpgroup. Grid: as many clusters as run at once; each takes tiles one by
// one, and tiles that run at the same time lie in a square, so that W and x come from L2 most of the time. 384 threads: two warpgroups that
// multiply, and one of which a thread copies. Shared memory: STAGES of (128 tokens of x + ROWS of W) x 64 columns. Both CTAs need the same rows of W:
// each copies half of them to both.
// Bytes: 2NK + 2M(K + N/2) at least; FLOPs 2MNK. Bound by the matrix units, and from about 1,000 tokens on by the card's power: 128 x 256 sums take 1,024
// cycles for a stage of 48 KB, of which a CTA fetches 32 KB.
//
// Nothing multiplies while all finish their outputs. So the second warpgroup lets the first pass LEAD stages before the end of a tile: the first's
// epilogue then runs under the second's last products, and the second's under the first's of the next tile.
// Tried (docs/perf-log.md): the other products of a layer with their epilogues, and RMSNorm split between them; K split between two pairs of CTAs; clusters
// of four that share x as well.
#include "linear.cuh"
#include "wgmma.cuh"

#if !defined(ROWS) || !defined(STAGES) || !defined(LEAD)
#error "ROWS of W of a tile, a multiple of 16; STAGES; LEAD: stages that the first warpgroup is ahead at the end of a tile"
#endif
#define THREADS 384
constexpr int TOKENS = 128, STEP = 64;      // of a CTA's tile; columns of a stage
constexpr int STEPS = ceil_div(K, STEP);
constexpr int TILES = ceil_div(N, ROWS);
constexpr int BAND = 8;                     // clusters side by side along the tokens: 8 x 8 of them fill a device
constexpr int UNITS = ROWS / 16;            // blocks of 8 outputs
constexpr int OUTPUTS = N / 2;
constexpr int TURN = STEPS > STAGES ? STEPS - LEAD : STEPS;  // the step before which the second warpgroup waits
static_assert(EPILOGUE == SWIGLU && !NORM, "x is normed before");
static_assert(ROWS % 16 == 0, "half of a tile's rows starts where the swizzle does, and gate and up stay together");
static_assert(LEAD > 0 && LEAD < STAGES, "the second warpgroup holds a stage while it waits");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, x;  // boxes of ROWS/2 and TOKENS rows x 64 columns
	bf16* y;         // [M, OUTPUTS]
	i32 tokens;      // M
	i32 pad[29];
};

struct Stage { bf16 x[TOKENS][STEP], w[ROWS][STEP]; };
struct Shared {
	Stage stage[STAGES];
	u64 full[STAGES], empty[STAGES];
};

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Walk steps through the tiles of a cluster: bands of BAND tiles along the tokens, in each all tokens of a tile's rows first.
struct Walk {
	int rank, pairs, tile, step, token, row;  // token and row: this CTA's first
	DEVICE Walk(int tokens) : rank(cluster_rank()), pairs(ceil_div(tokens, 2 * TOKENS)), tile(blockIdx.x / 2) { place(); }
	DEVICE void place() {
		const int band = tile / (BAND * TILES), width = min(BAND, pairs - band * BAND), at = tile - band * BAND * TILES;
		token = ((band * BAND + at % width) * 2 + rank) * TOKENS;
		row = at / width * ROWS;
		step = 0;
	}
	DEVICE bool more() const { return tile < pairs * TILES; }
	DEVICE void next_tile() {
		tile += gridDim.x / 2;
		if (more()) place();
	}
	DEVICE void next() {
		if (++step == STEPS) next_tile();
	}
};

// Ring is a place in the stages, and how often it has been around.
struct Ring {
	int s = 0;
	u32 round = 0;
	DEVICE void next() {
		if (++s == STAGES) s = 0, round++;
	}
};

DEVICE void copy(const Params& p, Shared& sh) {
	const u64 policy = policy_evict_normal();
	tensor_prefetch_map(&p.w);
	tensor_prefetch_map(&p.x);
	Walk w(p.tokens), x = w;
	auto load_w = [&](int s) {
		mbarrier_expect(&sh.full[s], sizeof(Stage));
		tensor_load_multicast(sh.stage[s].w[w.rank * (ROWS / 2)], &p.w, w.step * STEP, w.row + w.rank * (ROWS / 2), &sh.full[s], 3, policy);
		w.next();
	};
	auto load_x = [&](int s) {
		tensor_load(sh.stage[s].x, &p.x, x.step * STEP, x.token, &sh.full[s], policy);
		x.next();
	};
	for (int s = 0; s < STAGES && w.more(); s++) load_w(s);
	PDL_WAIT();
	for (int s = 0; s < STAGES && x.more(); s++) load_x(s);
	for (Ring at; w.more(); at.next()) {
		mbarrier_wait(&sh.empty[at.s], at.round & 1);
		load_w(at.s);
		load_x(at.s);
	}
}

// transpose gives lane t of four neighbours word t of each of them: word i of the result was lane i's.
DEVICE void transpose(u32 (&v)[4]) {
#pragma unroll
	for (int o = 1; o < 4; o <<= 1) {
		const bool high = threadIdx.x & o;
#pragma unroll
		for (int i = 0; i < 4; i++) {
			if (i & o) continue;
			const u32 got = __shfl_xor_sync(~0u, high ? v[i] : v[i | o], o);
			if (high) v[i] = got;
			else v[i | o] = got;
		}
	}
}

// finish stores a warpgroup's outputs of its sums. Lane 4g+t has sums of tokens g and g + 8 of its warp, two columns of each block of 8; it stores
// the 8 outputs of every fourth unit.
DEVICE void finish(const Params& p, const Walk& at, const float (&d)[ROWS / 2]) {
	const int warp = threadIdx.x >> 5, t = threadIdx.x & 3;  // warps count through both warpgroups
	const int first = at.token + 16 * warp, token = first + (threadIdx.x >> 2 & 7), column = at.row / 2 + 8 * t;
	if (first >= p.tokens) return;
#pragma unroll
	for (int u = 0; u < UNITS; u += 4)
#pragma unroll
		for (int h = 0; h < 2; h++) {
			u32 v[4] = {};
#pragma unroll
			for (int i = 0; i < 4; i++) {
				if (u + i >= UNITS) break;
				const float *gate = d + 8 * (u + i) + 2 * h, *up = gate + 4;
				v[i] = pack_bf16(swiglu(gate[0], up[0]), swiglu(gate[1], up[1]));
			}
			transpose(v);
			if (token + 8 * h < p.tokens && u + t < UNITS && column + 8 * u < OUTPUTS)
				st16(p.y + (size_t)(token + 8 * h) * OUTPUTS + column + 8 * u, make_uint4(v[0], v[1], v[2], v[3]));
		}
}

DEVICE void multiply(const Params& p, Shared& sh) {
	const int tid = threadIdx.x, group = tid >> 7, warp = tid >> 5 & 3;
	// A stage is free when both warpgroups of both CTAs are done: the first two warps of a warpgroup tell one CTA each.
	const bool tells = (tid & 31) == 0 && warp < 2;
	const u32 empty = cluster_address(sh.empty, warp & 1);
	PDL_WAIT();
	Ring at;
	for (Walk walk(p.tokens); walk.more(); walk.next_tile()) {
		float d[ROWS / 2];
		for (int step = 0; step < STEPS; step++) {
			if (step == TURN && group == 1) barrier_sync(1, 256);
			mbarrier_wait(&sh.full[at.s], at.round & 1);
			const u64 a = wgmma_tile(sh.stage[at.s].x[64 * group]), b = wgmma_tile(sh.stage[at.s].w);
			wgmma_fence();
#pragma unroll
			for (int j = 0; j < STEP / 16; j++) Wgmma<ROWS>::product(d, a + 2 * j, b + 2 * j, j > 0 || step > 0);
			wgmma_commit();
			if (step > 0) {  // the step before is done: its stage may be filled again
				wgmma_wait<1>();
				if (tells) mbarrier_arrive_at(empty + 8 * (at.s == 0 ? STAGES - 1 : at.s - 1));
			}
			at.next();
		}
		if (TURN < STEPS && group == 0) barrier_arrive(1, 256);
		wgmma_wait<0>();
		if (tells) mbarrier_arrive_at(empty + 8 * (at.s == 0 ? STAGES - 1 : at.s - 1));
		finish(p, walk, d);
	}
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_swiglu_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	PDL_LAUNCH();
	ring_init(sh.full, sh.empty, 1, 4);
	cluster_sync();  // the other CTA copies to this one, and tells its barriers
	if (threadIdx.x < 256) {
		registers_more<232>();
		multiply(p, sh);
	} else {
		registers_less<40>();
		if (threadIdx.x == 256) copy(p, sh);
		__syncwarp();
	}
	cluster_sync();  // the other CTA may still do
#endif
}
