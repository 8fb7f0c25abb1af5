// gemm_large_sm90: y[m] = epilogue(x[m] W^T) for many tokens: tensor copies (TMA) feed warpgroup products (wgmma), tile after tile.
//
// Shapes: W [N, K] bf16 row-major, x [M, K] with room for whole tiles of tokens, y [M, OUTPUTS]. A cluster of two CTAs makes ROWS outputs of 256 tokens: each CTA 128 tokens, 64 a
// warpgroup. Grid: as many clusters as run at once; each takes tiles one by one, and tiles that run at the same time lie in a square, so that W
// and x come from L2 most of the time. 384 threads: two warpgroups that multiply, one of which a thread copies. With SPLIT, where there are too few
// tiles, four CTAs are a cluster and have one tile: two multiply the first half of K and two the second, and each finishes half of the rows. With
// WIDE, four CTAs make 2 x ROWS outputs, and x is copied to two of them at once, too.
// Shared memory: STAGES of (128 tokens of x + ROWS of W) x 64 columns. W's rows are the same for both CTAs: each copies half of them to both.
// Bytes: 2NK + 2M(K + OUTPUTS) at least; FLOPs 2MNK. Bound by the matrix units: 128 x 256 outputs take 1,024 cycles a stage of 48 KB, of which a CTA
// fetches 32 KB, 32 bytes a cycle.
//
// Nothing multiplies while all finish their outputs. So the second warpgroup lets the first pass LEAD stages before the end of a tile: the first's
// epilogue then runs under the second's last products, and the second's under the first's of the next tile.
#include "linear.cuh"
#include "wgmma.cuh"

#if !defined(ROWS) || !defined(SPLIT) || !defined(WIDE) || !defined(STAGES) || !defined(LEAD)
#error "ROWS of W of a CTA, a multiple of 16; SPLIT of K, or CTAs along W (WIDE): 1 or 2; STAGES; LEAD of the first warpgroup at the end of a tile, stages"
#endif
#define THREADS 384
constexpr int TOKENS = 128, STEP = 64;                // of a CTA's tile; columns of a stage
constexpr int STEPS = ceil_div(K, STEP);
constexpr int TILES = ceil_div(N, ROWS * WIDE);
constexpr int CTAS = 2 * SPLIT * WIDE;                // of a cluster
constexpr int SHARERS = 1 + WIDE;                     // CTAs that have something of what one copies
constexpr int BAND = 8;                               // clusters side by side along the tokens: 8 x 8 of them fill a device
constexpr int SHARE = ROWS / SPLIT;                   // rows of a tile that a CTA finishes
constexpr int BLOCKS = EPILOGUE == SWIGLU ? 2 : 1;    // blocks of 8 columns that are finished together
constexpr int UNITS = SHARE / 8 / BLOCKS;
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
constexpr bool SCALES = EPILOGUE == STORE || EPILOGUE == STORE_BIAS || EPILOGUE == SWIGLU;  // x may be a norm's input
constexpr int TURN = LEAD > 0 && STEPS > STAGES ? STEPS - LEAD : STEPS;                     // the step before which the second warpgroup waits
static_assert(SPLIT == 1 || LEAD == 0 && STEPS >= SPLIT, "a cluster that splits K has one tile");
static_assert(SPLIT == 1 || WIDE == 1, "a cluster has four CTAs at most");
static_assert(SHARE % (8 * BLOCKS) == 0, "whole blocks are finished");
static_assert(EPILOGUE != HEAD_FAST && !NORM, "no choice of tokens, and what norms is a run-time matter: squares");
static_assert(ROWS % 16 == 0, "half of a tile's rows starts where the swizzle does, and gate and up stay together");
static_assert(LEAD < STAGES, "the second warpgroup holds a stage while it waits");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, x;        // boxes of ROWS/2 and TOKENS/WIDE rows x 64 columns
	const bf16* bias;      // [N], STORE_BIAS
	bf16* y;
	float* logits;         // [M, N], HEAD_LOGITS
	// RMSNorm between two products is split between them: the first (RESIDUAL) stores gamma * y beside y, and each tile's sums of y's squares;
	// the second multiplies its outputs by 1 / rms(y).
	const bf16* gamma;     // RESIDUAL, [N], or null: then nothing of the next two lines
	bf16* scaled;          // [M, N]
	float* squares;        // [N / SHARE, M]
	const float* rms_of;   // SCALES: the first product's squares, or null: x is normed
	i32 tokens;            // M
	i32 parts;             // N / SHARE of the first product
	i32 pad[16];
};

struct Stage { bf16 x[TOKENS][STEP], w[ROWS][STEP]; };
struct Shared {
	Stage stage[STAGES];  // after the last product, with SPLIT: what another CTA has of this one's share
	u64 full[STAGES], empty[STAGES];
};
static_assert(SPLIT == 1 || SHARE * 512 <= sizeof(Stage) * STAGES, "sums do not fit the stages");

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Walk steps through the tiles of a cluster: bands of BAND tiles along the tokens, in each all tokens of a tile's rows first.
struct Walk {
	int side, part, wide;  // this CTA's half of the cluster's tokens, of K, of its rows
	int pairs, tile, step, begin, end, token, row;  // token and row: this CTA's first
	DEVICE Walk(int tokens) : side(cluster_rank() & 1), part(SPLIT > 1 ? cluster_rank() >> 1 : 0), wide(WIDE > 1 ? cluster_rank() >> 1 : 0), pairs(ceil_div(tokens, 2 * TOKENS)), tile(blockIdx.x / CTAS) {
		begin = STEPS * part / SPLIT;
		end = STEPS * (part + 1) / SPLIT;
		place();
	}
	DEVICE void place() {
		const int band = tile / (BAND * TILES), width = min(BAND, pairs - band * BAND), at = tile - band * BAND * TILES;
		token = ((band * BAND + at % width) * 2 + side) * TOKENS;
		row = (at / width * WIDE + wide) * ROWS;
		step = begin;
	}
	DEVICE bool more() const { return tile < pairs * TILES; }
	DEVICE void next_tile() {
		tile += gridDim.x / CTAS;
		if (more()) place();
	}
	DEVICE void next() {
		if (++step == end) next_tile();
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

// prefetch_residual brings a part of what the tile is added to the L2 at each of its steps: all CTAs end their tiles at the same time.
DEVICE void prefetch_residual(const Params& p, const Walk& at) {
	constexpr int STEPS_ = STEPS / SPLIT, TOGETHER = ceil_div(TOKENS, STEPS_);  // tokens a step
	const int row = at.row + at.part * SHARE, columns = min(SHARE, N - row);
	for (int i = 0; i < TOGETHER; i++) {
		const int m = (at.step - at.begin) * TOGETHER + i;
		if (m < TOKENS && at.token + m < p.tokens && columns > 0) prefetch_l2(p.y + (size_t)(at.token + m) * N + row, columns * 2, policy_evict_normal());
	}
}

DEVICE void copy(const Params& p, Shared& sh) {
	const u64 policy = policy_evict_normal();
	tensor_prefetch_map(&p.w);
	tensor_prefetch_map(&p.x);
	Walk w(p.tokens), x = w;
	auto load_w = [&](int s) {
		mbarrier_expect(&sh.full[s], sizeof(Stage));
		tensor_load_multicast(sh.stage[s].w[w.side * (ROWS / 2)], &p.w, w.step * STEP, w.row + w.side * (ROWS / 2), &sh.full[s], 3 << 2 * (w.part | w.wide), policy);
		w.next();
	};
	auto load_x = [&](int s) {
		if (EPILOGUE == RESIDUAL) prefetch_residual(p, x);
		if (WIDE == 1)
			tensor_load(sh.stage[s].x, &p.x, x.step * STEP, x.token, &sh.full[s], policy);
		else
			tensor_load_multicast(sh.stage[s].x[x.wide * (TOKENS / 2)], &p.x, x.step * STEP, x.token + x.wide * (TOKENS / 2), &sh.full[s], 5 << x.side, policy);
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

// Finish makes outputs of a warpgroup's sums. Lane 4g+t has sums of tokens g and g + 8 of its warp; it stores the 8 outputs of every fourth unit.
struct Finish {
	static constexpr int QUADS = ceil_div(UNITS, 4);  // of units
	static constexpr int AHEAD = 4;                   // parts of the squares that a lane asks for at once
	int token, column;                                // this lane's first token; the first output it stores
	uint4 added[EPILOGUE == RESIDUAL ? QUADS : 1][2]; // what is in y, of token and token + 8
	float first[AHEAD][2];                            // SCALES: the first of the squares that this lane adds

	DEVICE bool stores(const Params& p, int quad, int half) const {
		return token + 8 * half < p.tokens && (UNITS % 4 == 0 || 4 * quad + (threadIdx.x & 3) < UNITS) && column + 32 * quad < OUTPUTS;
	}

	// ahead asks for what the sums are finished with, while the last of them are made.
	DEVICE void ahead(const Params& p, int first_token, int row) {
		const int t = threadIdx.x & 3;
		token = first_token + (threadIdx.x >> 7) * 64 + (threadIdx.x >> 5 & 3) * 16 + (threadIdx.x >> 2 & 7);
		column = row / BLOCKS + 8 * t;
		if constexpr (EPILOGUE == RESIDUAL) {  // not from L1: another SM wrote it, and this kernel may have begun before that
#pragma unroll
			for (int q = 0; q < QUADS; q++)
#pragma unroll
				for (int h = 0; h < 2; h++)
					added[q][h] = stores(p, q, h) ? ld16_l2(p.y + (size_t)(token + 8 * h) * N + column + 32 * q) : make_uint4(0, 0, 0, 0);
		}
		if (SCALES && p.rms_of != nullptr) ask(p, t, first);
	}

	// ask asks for parts i, i + 4 ... of both tokens.
	DEVICE void ask(const Params& p, int i, float (&v)[AHEAD][2]) const {
#pragma unroll
		for (int j = 0; j < AHEAD; j++)
#pragma unroll
			for (int h = 0; h < 2; h++)
				v[j][h] = i + 4 * j < p.parts && token + 8 * h < p.tokens ? __uint_as_float(ld4_l2(p.rms_of + (size_t)(i + 4 * j) * p.tokens + token + 8 * h)) : 0.f;
	}

	// scales makes 1 / rms of both tokens.
	DEVICE void scales(const Params& p, float (&scale)[2]) {
		const int t = threadIdx.x & 3;
		float sum[2] = {};
		for (int i = t; i < p.parts; i += 4 * AHEAD) {
			if (i > t) ask(p, i, first);
#pragma unroll
			for (int j = 0; j < AHEAD; j++) sum[0] += first[j][0], sum[1] += first[j][1];
		}
#pragma unroll
		for (int h = 0; h < 2; h++) {
			sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
			sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
			scale[h] = rsqrtf(sum[h] * (1.f / K) + RMS_EPS);
		}
	}

	// store finishes SHARE rows of a tile, from row on.
	template <int SUMS> DEVICE void store(const Params& p, int row, const float (&d)[SUMS]) {
		if (token - (threadIdx.x >> 2 & 7) >= p.tokens || row >= N) return;  // the same for a warp
		const int t = threadIdx.x & 3;
		if constexpr (EPILOGUE == HEAD_LOGITS) {
#pragma unroll
			for (int u = 0; u < UNITS; u++)
#pragma unroll
				for (int h = 0; h < 2; h++)
					if (row + 8 * u < N && token + 8 * h < p.tokens)
						*reinterpret_cast<float2*>(p.logits + (size_t)(token + 8 * h) * N + row + 8 * u + 2 * t) = make_float2(d[4 * u + 2 * h], d[4 * u + 2 * h + 1]);
			return;
		}
		float scale[2] = {1.f, 1.f}, squares[2] = {};
		if (SCALES && p.rms_of != nullptr) scales(p, scale);
#pragma unroll
		for (int q = 0; q < QUADS; q++) {
			uint4 gamma = make_uint4(0, 0, 0, 0);
			if (EPILOGUE == RESIDUAL && p.gamma != nullptr && column + 32 * q < N) gamma = ld16(p.gamma + column + 32 * q);
#pragma unroll
			for (int h = 0; h < 2; h++) {
				u32 v[4] = {};
				if constexpr (EPILOGUE == RESIDUAL) {
					v[0] = added[q][h].x, v[1] = added[q][h].y, v[2] = added[q][h].z, v[3] = added[q][h].w;
					transpose(v);
				}
#pragma unroll
				for (int i = 0; i < 4; i++) {
					const int u = 4 * q + i;
					if (u >= UNITS) break;
					const float* from = d + 4 * u * BLOCKS + 2 * h;
					float lo = from[0] * scale[h], hi = from[1] * scale[h];
					if constexpr (EPILOGUE == SWIGLU) {
						lo = swiglu(lo, from[4] * scale[h]);
						hi = swiglu(hi, from[5] * scale[h]);
					} else {
						if (EPILOGUE == STORE_BIAS && row + 8 * u < N) v[i] = ld4(p.bias + row + 8 * u + 2 * t);
						lo += bf16_lo(v[i]);
						hi += bf16_hi(v[i]);
					}
					v[i] = pack_bf16(lo, hi);
				}
				transpose(v);
				if (!stores(p, q, h)) continue;
				const uint4 out = make_uint4(v[0], v[1], v[2], v[3]);
				const size_t to = (size_t)(token + 8 * h) * OUTPUTS + column + 32 * q;
				st16(p.y + to, out);
				if (EPILOGUE == RESIDUAL && p.gamma != nullptr) {
					st16(p.scaled + to, mul_bf16x8(out, gamma));
#pragma unroll
					for (int i = 0; i < 4; i++) squares[h] += bf16_lo(v[i]) * bf16_lo(v[i]) + bf16_hi(v[i]) * bf16_hi(v[i]);
				}
			}
		}
		if (EPILOGUE == RESIDUAL && p.gamma != nullptr)
#pragma unroll
			for (int h = 0; h < 2; h++) {
				squares[h] += __shfl_xor_sync(~0u, squares[h], 1);
				squares[h] += __shfl_xor_sync(~0u, squares[h], 2);
				if (t == 0 && token + 8 * h < p.tokens) p.squares[(size_t)(row / SHARE) * p.tokens + token + 8 * h] = squares[h];
			}
	}
};

// Two CTAs that split K give each other their sums of what the other finishes, through its stages: [SHARE / 8, 256] of four.
// give sends them and keeps this CTA's share in mine.
DEVICE void give(Shared& sh, int part, const float (&d)[ROWS / 2], float (&mine)[SHARE / 2]) {
	constexpr int SECOND = (ROWS - SHARE) / 2;  // of d, the other share
	const u32 to = cluster_address(reinterpret_cast<float4*>(sh.stage) + threadIdx.x, cluster_rank() ^ 2);
	cluster_sync();  // every CTA has multiplied: its stages are free
#pragma unroll
	for (int i = 0; i < SHARE / 2; i += 4) {
		float4 other;
		float* theirs = &other.x;
#pragma unroll
		for (int j = 0; j < 4; j++) {
			mine[i + j] = part == 0 ? d[i + j] : d[SECOND + i + j];
			theirs[j] = part == 0 ? d[SECOND + i + j] : d[i + j];
		}
		st_cluster16(to + i / 4 * 256 * 16, other);
	}
}
// take adds what the other CTA gave.
DEVICE void take(Shared& sh, float (&mine)[SHARE / 2]) {
	cluster_sync();
#pragma unroll
	for (int i = 0; i < SHARE / 2; i += 4) {
		const float4 v = reinterpret_cast<float4*>(sh.stage)[i / 4 * 256 + threadIdx.x];
		mine[i] += v.x;
		mine[i + 1] += v.y;
		mine[i + 2] += v.z;
		mine[i + 3] += v.w;
	}
}

DEVICE void multiply(const Params& p, Shared& sh) {
	const int tid = threadIdx.x, group = tid >> 7;
	// A stage is free when all warpgroups are done that have of it what its CTA copies: a warp each tells this CTA, the one with the same rows of W,
	// and the one with the same tokens.
	const int warp = tid >> 5 & 3;
	const bool tells = (tid & 31) == 0 && warp < SHARERS;
	const u32 empty = cluster_address(sh.empty, warp < SHARERS ? cluster_rank() ^ warp : 0);
	PDL_WAIT();
	Ring at;
	for (Walk walk(p.tokens); walk.more(); walk.next_tile()) {
		float d[ROWS / 2];
		Finish finish;
		const int row = walk.row + walk.part * SHARE;  // the first that this CTA finishes
		for (int step = walk.begin; step < walk.end; step++) {
			if (step == TURN && group == 1) barrier_sync(1, 256);
			if (SPLIT == 1 && step == max(walk.begin, walk.end - 2)) finish.ahead(p, walk.token, row);
			mbarrier_wait(&sh.full[at.s], at.round & 1);
			const u64 a = wgmma_tile(sh.stage[at.s].x[64 * group]), b = wgmma_tile(sh.stage[at.s].w);
			wgmma_fence();
#pragma unroll
			for (int j = 0; j < STEP / 16; j++) Wgmma<ROWS>::product(d, a + 2 * j, b + 2 * j, j > 0 || step > walk.begin);
			wgmma_commit();
			if (step > walk.begin) {  // the step before is done: its stage may be filled again
				wgmma_wait<1>();
				if (tells) mbarrier_arrive_at(empty + 8 * (at.s == 0 ? STAGES - 1 : at.s - 1));
			}
			at.next();
		}
		if (TURN < STEPS && group == 0) barrier_arrive(1, 256);
		wgmma_wait<0>();
		if (tells) mbarrier_arrive_at(empty + 8 * (at.s == 0 ? STAGES - 1 : at.s - 1));
		if constexpr (SPLIT > 1) {
			float mine[SHARE / 2];
			give(sh, walk.part, d, mine);
			finish.ahead(p, walk.token, row);
			take(sh, mine);
			finish.store(p, row, mine);
		} else {
			finish.store(p, row, d);
		}
	}
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_large_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	PDL_LAUNCH();
	if (threadIdx.x == 0) {
		for (int i = 0; i < STAGES; i++) {
			mbarrier_init(&sh.full[i], 1);
			mbarrier_init(&sh.empty[i], 2 * SHARERS);
		}
		mbarrier_init_fence();
	}
	cluster_sync();  // the other CTA copies to this one, and tells its barriers
	if (threadIdx.x < 256) {
		registers_more<232>();
		multiply(p, sh);
	} else {
		registers_less<40>();
		if (threadIdx.x == 256) copy(p, sh);
		__syncwarp();
		if (SPLIT > 1) {  // give's and take's
			cluster_sync();
			cluster_sync();
		}
	}
	cluster_sync();  // the other CTA may still do
#endif
}
