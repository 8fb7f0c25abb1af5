// gemm_sm90: y[m] = epilogue(x[m] W^T) for M = 17..128 tokens: tensor copies (TMA) feed warpgroup products (wgmma).
//
// Shapes: W [N, K] bf16 row-major, x [M, K], y [M, N]. A CTA makes ROWS outputs of all tokens, over 1/SPLIT of K. Grid: CTAs of one tile
// are neighbours and a cluster; without SPLIT a CTA takes several tiles if there are more than CTAs. 320 threads: two warpgroups that
// multiply, a warp that copies and one that makes scales. Tokens are the M of wgmma (64 a warpgroup; up to 64 tokens the warpgroups share them and
// halve the rows of W), rows of W its N, in steps of 16: so a tile may be cut to fill the device in one wave.
// Shared memory: STAGES of (TOKENS of x + ROWS of W) x 64 columns. x of 32 tokens takes 32 rows of it: the product reads 32 more, of W,
// into rows of D that nobody looks at.
// Bytes: 2NK + 2M(K+N), and x again for each tile, from L2; FLOPs 2MNK. Bound by memory up to about 128 tokens.
//
// W for all stages is asked for before the wait on the previous kernel. Sums of SPLIT CTAs meet in the shared memory of the cluster, each
// CTA finishing a part of the columns, in the order of K: the same bits always.
// Tried before (docs/perf-log.md): equal runs of (tiles x steps) for every SM ("stream-K"), sums through L2: the tail of each kernel was
// longer than what balance gained. A CTA that pulls its successor's first tiles into L2 when its own last load has left: 8 % slower.
#include "linear.cuh"
#include "wgmma.cuh"

#if !defined(TOKENS) || !defined(ROWS) || !defined(SPLIT) || !defined(STAGES)
#error "TOKENS that a tile has room for: 32, 64 or 128; ROWS of W; SPLIT of K: 1, 2 or 4; STAGES"
#endif
#define THREADS 320
constexpr int STEP = 64;                              // columns of a stage
constexpr int STEPS = ceil_div(K, STEP);
constexpr int TILES = ceil_div(N, ROWS);
constexpr int GROUPS_M = TOKENS > 64 ? 2 : 1;         // warpgroups along tokens; the other way they share W's rows
constexpr int COLUMNS = ROWS / (2 / GROUPS_M);        // outputs of a warpgroup
constexpr int BLOCKS = EPILOGUE == SWIGLU ? 2 : 1;    // blocks of 8 columns that are finished together
constexpr int UNITS = COLUMNS / 8 / BLOCKS;
constexpr int SHARE = ceil_div(UNITS, SPLIT);         // units that a CTA of a cluster finishes, at most
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
constexpr bool SCALES = EPILOGUE == STORE || EPILOGUE == STORE_BIAS || EPILOGUE == SWIGLU;  // x may be a norm's input
static_assert(!NORM, "what norms is a run-time matter: squares");
static_assert(COLUMNS % 16 == 0, "a warpgroup multiplies 16 rows of W at least, and gate and up stay together");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap w, x;        // boxes of ROWS and TOKENS rows x 64 columns
	const bf16* bias;      // [N], STORE_BIAS
	bf16* y;
	float* logits;         // [M, N], HEAD_LOGITS
	const i32* slot;       // HEAD_FAST [M]
	const i32* position;
	const SlotParams* slot_param;
	Candidate* best;       // HEAD_FAST [M, CTAs]
	// RMSNorm between two products is split between them, so that it costs no kernel: the first (RESIDUAL) stores gamma * y beside y, and
	// each CTA's sums of y's squares; the second multiplies its outputs by 1 / rms(y).
	const bf16* gamma;     // RESIDUAL, [N], or null: then nothing of the next three lines
	bf16* scaled;          // [M, N]
	float* squares;        // [CTAs, TOKENS]
	const float* rms_of;   // SCALES: the first product's squares, or null: x is normed
	i32 tokens;            // M
	i32 parts;             // CTAs of the first product
	i32 pad[8];
};

struct Stage { bf16 x[TOKENS][STEP], w[ROWS][STEP]; };
struct Shared {
	Stage stage[STAGES];  // after the last product: sums of the cluster's CTAs
	u64 full[STAGES], empty[STAGES];
	Candidate best[64];   // the second warpgroup's, HEAD_FAST
	float squares[64];    // the second warpgroup's, RESIDUAL
	float scale[max_of(TOKENS, 64)];  // SCALES; a warpgroup reads 64
};
static_assert(SPLIT == 1 || (size_t)SPLIT * SHARE * BLOCKS * 256 * 16 <= sizeof(Stage) * STAGES, "sums do not fit the stages");

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
// Walk steps through a CTA's tiles and its part of K.
struct Walk {
	int tile, step, begin, end;
	DEVICE Walk() : tile(blockIdx.x / SPLIT), begin(STEPS * (blockIdx.x % SPLIT) / SPLIT), end(STEPS * (blockIdx.x % SPLIT + 1) / SPLIT) { step = begin; }
	DEVICE void next() {
		if (++step < end) return;
		step = begin;
		tile += gridDim.x / SPLIT;
	}
	DEVICE bool more() const { return tile < TILES; }
};

DEVICE void copy(const Params& p, Shared& sh) {
	const u64 keep = policy_evict_last(), once = policy_evict_first();
	Walk w, x;
	tensor_prefetch_map(&p.w);
	tensor_prefetch_map(&p.x);
	auto load_w = [&](int s) {
		mbarrier_expect(&sh.full[s], sizeof(Stage));
		tensor_load(sh.stage[s].w, &p.w, w.step * STEP, w.tile * ROWS, &sh.full[s], once);
		w.next();
	};
	auto load_x = [&](int s) {
		tensor_load(sh.stage[s].x, &p.x, x.step * STEP, 0, &sh.full[s], keep);
		x.next();
	};
	for (int s = 0; s < STAGES && w.more(); s++) load_w(s);
	PDL_WAIT();
	for (int s = 0; s < STAGES && x.more(); s++) load_x(s);
	u32 round = 0;
	for (int s = 0; w.more();) {
		mbarrier_wait(&sh.empty[s], round & 1);
		load_w(s);
		load_x(s);
		if (++s == STAGES) s = 0, round++;
	}
}

// scales makes 1 / rms of every token, in one warp, while the others multiply.
DEVICE void scales(const Params& p, Shared& sh) {
	constexpr int LANES = TOKENS / 4, TOGETHER = 32 / LANES, BATCH = 8;
	const int lane = threadIdx.x & 31, token = lane % LANES * 4;
	PDL_WAIT();
	float sum[4] = {};
	if (p.rms_of != nullptr)
		for (int first = lane / LANES; first < p.parts; first += TOGETHER * BATCH) {
			uint4 v[BATCH];
#pragma unroll
			for (int i = 0; i < BATCH; i++) {
				const int part = first + i * TOGETHER;
				v[i] = part < p.parts ? ld16_l2(p.rms_of + part * TOKENS + token) : make_uint4(0, 0, 0, 0);
			}
#pragma unroll
			for (int i = 0; i < BATCH; i++) {
				sum[0] += __uint_as_float(v[i].x);
				sum[1] += __uint_as_float(v[i].y);
				sum[2] += __uint_as_float(v[i].z);
				sum[3] += __uint_as_float(v[i].w);
			}
		}
#pragma unroll
	for (int i = 0; i < 4; i++) {
#pragma unroll
		for (int o = LANES; o < 32; o <<= 1) sum[i] += __shfl_xor_sync(~0u, sum[i], o);
		if (lane < LANES) sh.scale[token + i] = p.rms_of != nullptr ? rsqrtf(sum[i] * (1.f / K) + RMS_EPS) : 1.f;
	}
	barrier_sync(2, 256 + 32);  // multiply's
}

// Added is what goes into a unit's outputs besides the product: of token m (first), token m + 8 (second).
struct Added { u32 first, second, gamma; };
// Both is a value of tokens m and m + 8.
struct Both { float first, second; };

DEVICE Added added(const Params& p, int m, int n) {
	Added a{};
	if (EPILOGUE == STORE_BIAS && n < N) a.first = a.second = ld4(p.bias + n);
	if (EPILOGUE == RESIDUAL && p.gamma != nullptr && n < N) a.gamma = ld4(p.gamma + n);
	if (EPILOGUE == RESIDUAL && n < N) {  // not from L1: another SM wrote it, and this kernel may have begun before that
		if (m < p.tokens) a.first = ld4_l2(p.y + (size_t)m * N + n);
		if (m + 8 < p.tokens) a.second = ld4_l2(p.y + (size_t)(m + 8) * N + n);
	}
	return a;
}

DEVICE float square(u32 pair) { return bf16_lo(pair) * bf16_lo(pair) + bf16_hi(pair) * bf16_hi(pair); }

// finish stores outputs of rows n and n + 1 of W for tokens m (v.x, v.y) and m + 8 (v.z, v.w). SwiGLU: n is a gate, up its up. SCALES: both
// is the tokens' scale; RESIDUAL: their squares are added to it.
DEVICE void finish(const Params& p, int m, int n, float4 v, float4 up, Added a, Both& both) {
	if (n >= N) return;
	const bool first = m < p.tokens, second = m + 8 < p.tokens;
	if constexpr (EPILOGUE == HEAD_LOGITS) {
		if (first) *reinterpret_cast<float2*>(p.logits + (size_t)m * N + n) = make_float2(v.x, v.y);
		if (second) *reinterpret_cast<float2*>(p.logits + (size_t)(m + 8) * N + n) = make_float2(v.z, v.w);
	} else if constexpr (EPILOGUE == RESIDUAL) {
		const u32 y[2] = {pack_bf16(v.x + bf16_lo(a.first), v.y + bf16_hi(a.first)), pack_bf16(v.z + bf16_lo(a.second), v.w + bf16_hi(a.second))};
#pragma unroll
		for (int i = 0; i < 2; i++) {
			if (!(i ? second : first)) continue;
			const size_t at = (size_t)(m + 8 * i) * N + n;
			*reinterpret_cast<u32*>(p.y + at) = y[i];
			if (p.gamma != nullptr) *reinterpret_cast<u32*>(p.scaled + at) = mul_bf16x2(y[i], a.gamma);
		}
		both.first += square(y[0]);
		both.second += square(y[1]);
	} else {
		int o = n;
		v = make_float4(v.x * both.first, v.y * both.first, v.z * both.second, v.w * both.second);
		if constexpr (EPILOGUE == SWIGLU) {
			o = (n >> 4) * 8 + (n & 7);
			up = make_float4(up.x * both.first, up.y * both.first, up.z * both.second, up.w * both.second);
			v = make_float4(swiglu(v.x, up.x), swiglu(v.y, up.y), swiglu(v.z, up.z), swiglu(v.w, up.w));
		}
		bf16* to = p.y + (size_t)m * OUTPUTS + o;
		if (first) *reinterpret_cast<u32*>(to) = pack_bf16(v.x + bf16_lo(a.first), v.y + bf16_hi(a.first));
		if (second) *reinterpret_cast<u32*>(to + 8 * (size_t)OUTPUTS) = pack_bf16(v.z + bf16_lo(a.second), v.w + bf16_hi(a.second));
	}
}

DEVICE float4 four(const float* d) { return make_float4(d[0], d[1], d[2], d[3]); }

// first_unit is the first of the units that a CTA of the cluster finishes.
__host__ __device__ constexpr int first_unit(int rank) { return UNITS * rank / SPLIT; }

// reduce adds the sums of the cluster's CTAs and finishes this one's units.
DEVICE void reduce(const Params& p, Shared& sh, int m, int n, const float (&d)[COLUMNS / 2], Both& both) {
	const int rank = blockIdx.x % SPLIT, first = first_unit(rank), count = first_unit(rank + 1) - first;
	float4* sums = reinterpret_cast<float4*>(sh.stage);  // [SPLIT, SHARE, BLOCKS, 256]
	const bool used = (m & ~15) < p.tokens;              // the same for a warp
	Added a[SHARE];
#pragma unroll
	for (int i = 0; i < SHARE; i++)
		if (i < count) a[i] = added(p, m, n + (first + i) * BLOCKS * 8);
	cluster_sync();  // every CTA has multiplied: its stages are free
	if (used) {
#pragma unroll
		for (int r = 0; r < SPLIT; r++) {
			const u32 to = cluster_address(sums + rank * SHARE * BLOCKS * 256 + threadIdx.x, r);
#pragma unroll
			for (int u = first_unit(r); u < first_unit(r + 1); u++)
#pragma unroll
				for (int b = 0; b < BLOCKS; b++)
					st_cluster16(to + ((u - first_unit(r)) * BLOCKS + b) * 256 * 16, four(d + 4 * (u * BLOCKS + b)));
		}
	}
	cluster_sync();
	if (!used) return;
#pragma unroll
	for (int i = 0; i < SHARE; i++) {
		if (i >= count) break;
		float4 v[BLOCKS];
#pragma unroll
		for (int b = 0; b < BLOCKS; b++) {
			v[b] = make_float4(0.f, 0.f, 0.f, 0.f);
#pragma unroll
			for (int s = 0; s < SPLIT; s++) {
				const float4 part = sums[((s * SHARE + i) * BLOCKS + b) * 256 + threadIdx.x];
				v[b] = make_float4(v[b].x + part.x, v[b].y + part.y, v[b].z + part.z, v[b].w + part.w);
			}
		}
		finish(p, m, n + (first + i) * BLOCKS * 8, v[0], v[BLOCKS - 1], a[i], both);
	}
}

// store_squares leaves the squares of this CTA's outputs, summed over the lanes and warpgroups that share tokens.
DEVICE void store_squares(const Params& p, Shared& sh, int m, Both both) {
	const bool shared = GROUPS_M == 1, leader = (threadIdx.x & 3) == 0;
#pragma unroll
	for (int o = 1; o < 4; o <<= 1) {
		both.first += __shfl_xor_sync(~0u, both.first, o);
		both.second += __shfl_xor_sync(~0u, both.second, o);
	}
	if (shared) {
		if (threadIdx.x >= 128 && leader) sh.squares[m] = both.first, sh.squares[m + 8] = both.second;
		barrier_sync(1, 256);
		if (threadIdx.x >= 128) return;
	}
	if (!leader) return;
	float* to = p.squares + blockIdx.x * TOKENS + m;
	if (m < p.tokens) to[0] = both.first + (shared ? sh.squares[m] : 0.f);
	if (m + 8 < p.tokens) to[8] = both.second + (shared ? sh.squares[m + 8] : 0.f);
}

DEVICE void multiply(const Params& p, Shared& sh) {
	const int tid = threadIdx.x, lane = tid & 31, group = tid >> 7;
	const int group_m = GROUPS_M == 2 ? group : 0, group_n = GROUPS_M == 2 ? 0 : group;
	const int m = group_m * 64 + (tid >> 5 & 3) * 16 + (lane >> 2);  // this lane's tokens: m and m + 8
	PDL_WAIT();
	Best best[2];
	Draw draw[2] = {};
	if (EPILOGUE == HEAD_FAST)
		for (int i = 0; i < 2; i++)
			if (m + 8 * i < p.tokens) draw[i] = draw_of(p.slot_param, p.slot[m + 8 * i], p.position[m + 8 * i]);
	Both both{};
	int s = 0;
	u32 round = 0;
	bool scaled = false;
	for (Walk at; at.more();) {
		const int n = at.tile * ROWS + group_n * COLUMNS + (lane & 3) * 2;  // this lane's columns: n and n + 1 of each 8
		float d[COLUMNS / 2];
		for (int step = at.begin; step < at.end; step++, at.next()) {
			mbarrier_wait(&sh.full[s], round & 1);
			const u64 a = wgmma_tile(sh.stage[s].x[64 * group_m]), b = wgmma_tile(sh.stage[s].w[COLUMNS * group_n]);
			wgmma_fence();
#pragma unroll
			for (int j = 0; j < STEP / 16; j++) Wgmma<COLUMNS>::product(d, a + 2 * j, b + 2 * j, j > 0 || step > at.begin);
			wgmma_commit();
			if (step > at.begin) {  // the step before is done: its stage may be filled again
				wgmma_wait<1>();
				if ((tid & 127) == 0) mbarrier_arrive(&sh.empty[s == 0 ? STAGES - 1 : s - 1]);
			}
			if (++s == STAGES) s = 0, round++;
		}
		wgmma_wait<0>();
		if (SCALES && !scaled) {
			barrier_sync(2, 256 + 32);
			both = Both{sh.scale[m], sh.scale[m + 8]};
			scaled = true;
		}
		if constexpr (SPLIT > 1) {
			reduce(p, sh, m, n, d, both);
			break;  // a cluster has one tile
		}
		if ((tid & 127) == 0) mbarrier_arrive(&sh.empty[s == 0 ? STAGES - 1 : s - 1]);
		if ((m & ~15) >= p.tokens) continue;
		if constexpr (EPILOGUE == HEAD_FAST) {
#pragma unroll
			for (int j = 0; j < COLUMNS / 8; j++)
				if (n + 8 * j < N)
#pragma unroll
					for (int i = 0; i < 4; i++) best[i >> 1].add<true>(draw[i >> 1], d[4 * j + i], n + 8 * j + (i & 1));
		} else {
			Added a[UNITS];
#pragma unroll
			for (int u = 0; u < UNITS; u++) a[u] = added(p, m, n + u * BLOCKS * 8);
#pragma unroll
			for (int u = 0; u < UNITS; u++) finish(p, m, n + u * BLOCKS * 8, four(d + 4 * u * BLOCKS), four(d + 4 * (u * BLOCKS + BLOCKS - 1)), a[u], both);
		}
	}
	if (EPILOGUE == RESIDUAL && p.gamma != nullptr) store_squares(p, sh, m, both);
	if constexpr (EPILOGUE == HEAD_FAST) {
#pragma unroll
		for (int i = 0; i < 2; i++)
#pragma unroll
			for (int o = 1; o < 4; o <<= 1) best[i].merge(Candidate{__shfl_xor_sync(~0u, best[i].score, o), __shfl_xor_sync(~0u, best[i].token, o)});
		if (GROUPS_M == 1) {
			if (group == 1 && (lane & 3) == 0)
				for (int i = 0; i < 2; i++) sh.best[m + 8 * i] = Candidate{best[i].score, best[i].token};
			barrier_sync(1, 256);
			if (group == 1) return;
		}
		if ((lane & 3) == 0)
			for (int i = 0; i < 2; i++) {
				if (GROUPS_M == 1) best[i].merge(sh.best[m + 8 * i]);
				if (m + 8 * i < p.tokens) p.best[(size_t)(m + 8 * i) * gridDim.x + blockIdx.x] = Candidate{best[i].score, best[i].token};
			}
	}
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemm_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	PDL_LAUNCH();
	ring_init(sh.full, sh.empty, 1, 2);
	__syncthreads();
	if (threadIdx.x < 256) {
		multiply(p, sh);
		return;
	}
	if (threadIdx.x == 256) copy(p, sh);
	if (SCALES && threadIdx.x >= 288) scales(p, sh);
	__syncwarp();
	if (SPLIT > 1) {  // reduce's two
		cluster_sync();
		cluster_sync();
	}
#endif
}
