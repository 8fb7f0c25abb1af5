// w4_gemv: products that follow each other, for M <= 16 tokens with weights of four bits (w4.cuh): y = epilogue(norm?(x) W^T), each reading what the one before
// wrote, on the matrix units: reads each W once at the speed of memory, which asks for four times the arithmetic a byte that bf16 does.
//
// Shapes: PRODUCTS matrices W [N, K], x [M, K] bf16, y [M, N]. Grid: 1 CTA an SM or fewer, all of which run at once: they meet between products. 512 threads =
// 16 warps that split K. Shared memory: the ring, the warps' sums, x. Bytes: of each, NK/2 + 4NK/GROUP + 2M(K+N); FLOPs 2MNK. A lane takes about 120
// instructions for a step (16 rows, 128 columns, 8 words of its own), 43 of them integer ones: half of what an SM issues at 4.6 TB/s.
// As gemv_mma: 16 rows of W are the A of mma.m16n8k16, tokens its columns; the warps' sums meet in shared memory. The zero point times the group's sum of x
// comes off in fp32 once for each group, where the scale multiplies: sums of groups are what a product with ones gives. A warp's share of x is read, normed,
// lifted and summed once for all rows, and stays in registers or shared memory; where it fits neither it streams beside two units of rows.
// W comes by asynchronous copies into a ring of each warp's own, where a lane finds what it asked for: 190 KB of an SM are on their way before the wait on
// the previous kernel, and the ring goes on from product to product. So memory streams while x, which takes 2 to 3 us to arrive, be normed and multiplied,
// is waited for, and while the last sums are added. Between two products each CTA adds to a counter and waits until all have: none starts late, as
// each lets the next kernel start only when it runs itself. The sums of a product are the same alone and among others, bit for bit.
#define N N0
#define K K0
#define EPILOGUE EPILOGUE0
#define NORM 0
#include "linear.cuh"
#undef N
#undef K
#undef EPILOGUE
#undef NORM
#include "w4.cuh"

#if !defined(PRODUCTS) || !defined(ROW_GROUP) || !defined(RING) || !defined(RAGGED) || !defined(X_STEPS) || !defined(GAMMA)
#error "PRODUCTS: 1..4, with N0, K0, EPILOGUE0, NORM0 and so on; ROW_GROUP: columns that share a scale, 32, 64, a multiple of 128, or 0: a row; RING: steps that a warp has room for; RAGGED: 1, rows or columns of a product end inside a unit or a warp's share; X_STEPS: those of an x that is kept in shared memory; GAMMA: columns of the widest x that is normed"
#endif
#define THREADS 512
constexpr int WARPS = THREADS / 32;
constexpr int TILES = ceil_div(M, 8);  // token tiles
constexpr int PER_STEP = ROW_GROUP == 32 || ROW_GROUP == 64 ? 128 / ROW_GROUP : 1;  // scales of a row in a step
static_assert(M <= 16, "more tokens than two tiles");
static_assert(RING >= 2, "a step is read while another comes");

template <int ROWS, int COLUMNS, int END, bool NORMED> struct Product {
	static constexpr int n = ROWS, k = COLUMNS, end = END, kb = ceil_div(COLUMNS, 128), steps = ceil_div(kb, WARPS), pieces = steps * 4, units = ceil_div(ROWS, 16);
	static constexpr int out = END == SWIGLU ? 8 : 16, outputs = END == SWIGLU ? ROWS / 2 : ROWS;  // of a unit, and of all
	static constexpr bool norm = NORMED, whole = steps * WARPS * 128 == COLUMNS;                    // whole: no step runs past K
	static constexpr bool shared = steps * TILES > 4 && X_STEPS > 0, stream = steps * TILES > 4 && X_STEPS == 0;
	static constexpr int finishers = THREADS / (out * TILES * 8);  // threads that finish an output together
	static_assert(RAGGED || (ROWS % 16 == 0 && COLUMNS % (128 * WARPS) == 0), "not whole");
	static_assert(ROWS % 8 == 0 && (END != SWIGLU || ROWS % 16 == 0), "rows come in blocks of eight, gate and up in two");
	static_assert(!(NORMED && stream), "x that streams is not normed");
};
typedef Product<N0, K0, EPILOGUE0, NORM0> P0;
#if PRODUCTS > 1
typedef Product<N1, K1, EPILOGUE1, NORM1> P1;
#endif
#if PRODUCTS > 2
typedef Product<N2, K2, EPILOGUE2, NORM2> P2;
#endif
#if PRODUCTS > 3
typedef Product<N3, K3, EPILOGUE3, NORM3> P3;
#endif

struct Weights {
	const uint4* w;        // [N/8, kb, 32 lanes]
	const u32* scale;      // [N/8, groups, 8]
	const bf16* x;         // [tokens, K]
	const bf16* gamma;     // [K], NORM
	const bf16* bias;      // [N], STORE_BIAS
	bf16* y;               // [M, N], SwiGLU [M, N/2]; RESIDUAL adds to it
	i32 blocks, kb;        // of eight rows; of 128 columns
	i32 groups, together;  // of a row; units whose steps come by turns: 2 where x streams, else 1
};
struct Params {
	Weights product[4];
	u32* arrived;    // [4], 0 before and after: of each meeting, and of CTAs that have ended
	const u8* next;  // weights that the next kernel begins with
	i32 tokens;      // at most M
	u32 next_bytes;  // of which each CTA brings a part to the L2 when its own loads are on their way; 0: none
};

struct Slot {  // a step of a unit
	uint4 w[2][32];
	u32 scale[2][PER_STEP][8];
};
struct Shared {
	Slot ring[WARPS][RING];
	float sum[2][WARPS][TILES * 128 + 4];  // of two units, [TILES, 16, 8]: one barrier a unit is enough
	float squares[WARPS][16];
	float scale[16];
	uint4 gamma[max_of(GAMMA, 8) / 8];
	float2 group_sum[X_STEPS > 0 ? WARPS : 1][max_of(X_STEPS, 1) * PER_STEP][TILES][4];
};  // behind it: uint4 x[WARPS][tokens][X_STEPS * 16]

// Loader asks for one step after the other, through all products.
struct Loader {
	const Params& p;
	Slot* ring;
	const uint4* from;    // the lane's part of the next step, of the unit's first eight rows
	const u32* scales;    // of the lane's row and part
	int product, unit, second, step, steps, slot;  // second: of two units that come together
	bool ahead;
	DEVICE Loader(const Params& params, Slot* slots) : p(params), ring(slots), product(0), unit(blockIdx.x), second(0), step(0), slot(0) {
		steps = ceil_div(p.product[0].kb, WARPS);
		ahead = threadIdx.x == 0 && p.next_bytes > 0;
		aim();
	}
	// aim goes to the next unit, of the next product with one for this CTA.
	DEVICE void aim() {
		while (product < PRODUCTS && unit * 2 >= p.product[product].blocks) {
			if (++product == PRODUCTS) return;
			unit = blockIdx.x;
			steps = ceil_div(p.product[product].kb, WARPS);
		}
		const Weights& w = p.product[product];
		const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
		from = w.w + ((size_t)unit * 2 * w.kb + warp * steps) * 32 + lane;
		scales = w.scale + (size_t)(unit * 2 + lane / (2 * PER_STEP)) * w.groups * 8 + lane % 2 * 4;
	}
	// group_of is the group of piece i of a step, PER_STEP of them. Past K it is the last.
	static DEVICE int group_of(const Weights& w, int at, int i) {
		if (ROW_GROUP == 0) return 0;
		if (PER_STEP == 1) return at / max_of(ROW_GROUP / 128, 1);
		return RAGGED ? min(at * PER_STEP + i, w.groups - 1) : at * PER_STEP + i;
	}
	DEVICE void next() {
		if (product < PRODUCTS) {
			const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, at = warp * steps + step;
			const Weights& w = p.product[product];
			Slot& s = ring[slot];
			auto there = [&](int row) { return !RAGGED || at < w.kb && (unit + second) * 2 + row < w.blocks; };
			const uint4* rows = from + second * 2 * w.kb * 32;
			cp_async16(smem_addr(&s.w[0][lane]), rows, there(0));
			cp_async16(smem_addr(&s.w[1][lane]), rows + w.kb * 32, there(1));
			if (lane < 4 * PER_STEP) {
				const int row = lane / (2 * PER_STEP), i = lane / 2 % PER_STEP;
				cp_async16(smem_addr(&s.scale[row][i][lane % 2 * 4]), scales + (second * 2 * w.groups + group_of(w, at, i)) * 8, there(row));
			}
			slot = slot + 1 == RING ? 0 : slot + 1;
			second = w.together == 2 && second == 0 && (unit + gridDim.x) * 2 < w.blocks ? gridDim.x : 0;
			if (second == 0) {
				from += 32;
				if (++step == steps) {
					step = 0;
					unit += gridDim.x * w.together;
					aim();
				}
			}
		}
		cp_async_commit();
	}
	DEVICE void look_ahead() {
		if (!ahead || product < PRODUCTS) return;  // all of this CTA's weights are on their way
		ahead = false;
		const u32 share = ceil_div(p.next_bytes, gridDim.x * 128) * 128, to = min((blockIdx.x + 1) * share, p.next_bytes);
		for (u32 at = blockIdx.x * share; at < to; at += 8192) prefetch_l2(p.next + at, min(8192u, to - at), policy_evict_last());
	}
};

// finish_unit adds the warps' sums of a unit, total, and stores its outputs.
template <typename P> DEVICE void finish_unit(const Params& p, const Weights& w, Shared& sh, int unit, int parity, const float (&total)[TILES][4]) {
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	constexpr int STRIDE = TILES * 128 + 4;  // of a warp's sums: those who finish an output together meet in no bank
	float* sums = sh.sum[0][0] + parity * sizeof(sh.sum[0]) / 4;
#pragma unroll
	for (int i = 0; i < TILES; i++) {
		float* s = sums + warp * STRIDE + i * 128 + g * 8 + 2 * t;
		*reinterpret_cast<float2*>(s) = make_float2(total[i][0], total[i][1]);
		*reinterpret_cast<float2*>(s + 64) = make_float2(total[i][2], total[i][3]);
	}
	// Output o of token m, whose old value is on its way while the warps meet.
	const int part = tid % P::finishers, e = tid / P::finishers, r = e / (TILES * 8), m = e % (TILES * 8), o = unit * P::out + r;
	const bool there = o < P::outputs && m < p.tokens, stores = there && part == 0;
	float old = 0.f;
	if (P::end == RESIDUAL && stores) old = __uint_as_float(ld2_l2(w.y + (size_t)m * P::n + o) << 16);
	if (P::end == STORE_BIAS && stores) old = to_float(w.bias[o]);
	__syncthreads();
	if (P::norm && unit == blockIdx.x) {
		if (tid < 8 * TILES) {
			float ss = 0.f;
			for (int i = 0; i < WARPS; i++) ss += sh.squares[i][tid];
			sh.scale[tid] = rsqrtf(ss * (1.f / P::k) + RMS_EPS);
		}
		__syncthreads();
	}
	auto sum_of = [&](int row) {  // warps j and j + 8, then by pairs: the order does not depend on how many tokens there are
		constexpr int PAIRS = 8 / P::finishers;
		float s[PAIRS];
#pragma unroll
		for (int i = 0; i < PAIRS; i++) {
			const float* from = sums + (part * PAIRS + i) * STRIDE + m / 8 * 128 + row * 8 + m % 8;
			s[i] = from[0] + from[8 * STRIDE];
		}
#pragma unroll
		for (int n = PAIRS / 2; n > 0; n /= 2)
#pragma unroll
			for (int i = 0; i < n; i++) s[i] = s[2 * i] + s[2 * i + 1];
#pragma unroll
		for (int i = 1; i < P::finishers; i <<= 1) s[0] += __shfl_xor_sync(~0u, s[0], i);
		return s[0] * (P::norm ? UNLIFT * sh.scale[m] : UNLIFT);
	};
	float value = sum_of(r);
	if (P::end == SWIGLU) value = swiglu(value, sum_of(r + 8));
	if (stores) w.y[(size_t)m * P::outputs + o] = to_bf16(value + old);
}

// multiply_step takes the next step from the ring: total += scale (W - zero) x. x of piece j is what piece(j) gives, sum(q) its group's sums of tokens 2t and
// 2t+1, by tiles.
template <typename Piece, typename Sum> DEVICE void multiply_step(Shared& sh, Loader& loader, int& slot, float (&total)[TILES][4], Piece piece, Sum sum) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2;
	cp_async_wait<RING - 2>();
	__syncwarp();  // scales came by other lanes; and all have read the slot that is filled now
	loader.next();
	const Slot& s = sh.ring[warp][slot];
	slot = slot + 1 == RING ? 0 : slot + 1;
	const uint4 upper = s.w[0][lane], lower = s.w[1][lane];
#pragma unroll
	for (int q = 0; q < PER_STEP; q++) {
		float c[2][TILES][4] = {};  // two chains of products: each waits for the one before it
#pragma unroll
		for (int j = q * 4 / PER_STEP; j < (q + 1) * 4 / PER_STEP; j++) {
			uint4 xv[TILES];
			piece(xv, j);
			u32 a[4][2];
#pragma unroll
			for (int i = 0; i < 4; i++) {
				a[i][0] = tiny_pair(word_of(upper, j), i);
				a[i][1] = tiny_pair(word_of(lower, j), i);
			}
#pragma unroll
			for (int i = 0; i < TILES; i++) {
				mma_bf16(c[0][i], a[0][0], a[0][1], a[1][0], a[1][1], xv[i].x, xv[i].y);
				mma_bf16(c[1][i], a[2][0], a[2][1], a[3][0], a[3][1], xv[i].z, xv[i].w);
			}
		}
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			const float2 v = sum(q, i);
			const float sums[2] = {v.x, v.y};
#pragma unroll
			for (int r = 0; r < 2; r++) {
				const u32 packed = s.scale[r][q][g];
				const float scale = scale_of(packed), zero = zero_of(packed);
#pragma unroll
				for (int e = 0; e < 2; e++)
					total[i][2 * r + e] = fmaf(scale, fmaf(-zero, sums[e], c[0][i][2 * r + e] + c[1][i][2 * r + e]), total[i][2 * r + e]);
			}
		}
	}
}

// lift_and_sum lifts a piece of x and adds it to its group's sums: every row of the product gets those of tokens 2t and 2t+1.
DEVICE void lift_and_sum(uint4 (&v)[TILES], float (&sum)[TILES][4]) {
	constexpr u32 ones = 0x00010001u, ones_of_odd = 0x00100010u;  // tiny_pair's
#pragma unroll
	for (int i = 0; i < TILES; i++) {
		v[i] = lift(v[i]);
		mma_bf16(sum[i], ones, ones, ones_of_odd, ones_of_odd, v[i].x, v[i].y);
		mma_bf16(sum[i], ones, ones, ones_of_odd, ones_of_odd, v[i].z, v[i].w);
	}
}

template <typename P> DEVICE void multiply(const Params& p, const Weights& w, Shared& sh, Loader& loader, int& slot) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
	constexpr int PIECES = P::pieces, K = P::k;
	const int k0 = warp * P::steps * 128;

	uint4 x[P::shared ? 1 : PIECES][TILES];
	uint4* const own_x = reinterpret_cast<uint4*>(&sh + 1) + (size_t)warp * p.tokens * PIECES * 4;
	auto shared_x = [&](int piece, int i) -> uint4& { return own_x[(i * 8 + g) * (PIECES * 4) + piece * 4 + t]; };
	auto read_x = [&](uint4(&dst)[TILES], int piece) {
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			dst[i] = make_uint4(0, 0, 0, 0);
			if (i * 8 + g < p.tokens) dst[i] = shared_x(piece, i);
		}
	};
	// Not from L1: other CTAs of this kernel wrote it.
	if constexpr (P::shared) {
#pragma unroll 4
		for (int i = lane; i < p.tokens * PIECES * 4; i += 32) {
			const int k = k0 + i % (PIECES * 4) * 8;
			own_x[i] = P::whole || k < K ? ld16_l2(w.x + (size_t)(i / (PIECES * 4)) * K + k) : make_uint4(0, 0, 0, 0);
		}
		__syncwarp();
	} else {
#pragma unroll
		for (int s = 0; s < PIECES; s++)
#pragma unroll
			for (int i = 0; i < TILES; i++) {
				const int k = k0 + s * 32 + t * 8;
				x[s][i] = make_uint4(0, 0, 0, 0);
				if (i * 8 + g < p.tokens && (P::whole || k < K)) x[s][i] = ld16_l2(w.x + (size_t)(i * 8 + g) * K + k);
			}
	}

	// What is done to x once: it is normed but for its RMS, lifted, and each group summed.
	float squares[P::norm ? TILES : 1][4] = {};
	float group_sum[P::shared ? 1 : P::steps * PER_STEP][TILES][2];
#pragma unroll
	for (int q = 0; q < P::steps * PER_STEP; q++) {
		float sum[TILES][4] = {};
#pragma unroll
		for (int s = q * 4 / PER_STEP; s < (q + 1) * 4 / PER_STEP; s++) {
			uint4(&v)[TILES] = x[P::shared ? 0 : s];
			if constexpr (P::shared) read_x(v, s);
			if constexpr (P::norm) {
				const int at = k0 / 8 + s * 4 + t;
				const uint4 gm = sh.gamma[P::whole ? at : min(at, K / 8 - 1)];
#pragma unroll
				for (int i = 0; i < TILES; i++) {  // squares are on the diagonal of X X^T
					const uint4 low = v[0], high = TILES == 2 ? v[TILES - 1] : make_uint4(0, 0, 0, 0);
					mma_bf16(squares[i], low.x, high.x, low.y, high.y, v[i].x, v[i].y);
					mma_bf16(squares[i], low.z, high.z, low.w, high.w, v[i].z, v[i].w);
				}
#pragma unroll
				for (int i = 0; i < TILES; i++) v[i] = mul_bf16x8(v[i], gm);
			}
			lift_and_sum(v, sum);
			if constexpr (P::shared)
#pragma unroll
				for (int i = 0; i < TILES; i++)
					if (i * 8 + g < p.tokens) shared_x(s, i) = v[i];
		}
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			if constexpr (P::shared) {
				if (g == 0) sh.group_sum[warp][q][i][t] = make_float2(sum[i][0], sum[i][1]);
			} else {
				group_sum[q][i][0] = sum[i][0];
				group_sum[q][i][1] = sum[i][1];
			}
		}
	}
	if (P::norm && g >> 1 == t) {  // token g is at column 2t or 2t+1
		sh.squares[warp][g] = g & 1 ? squares[0][1] : squares[0][0];
		if (TILES == 2) sh.squares[warp][8 + g] = g & 1 ? squares[P::norm ? TILES - 1 : 0][3] : squares[P::norm ? TILES - 1 : 0][2];
	}
	__syncwarp();

	int parity = 0;
	for (int unit = blockIdx.x; unit < P::units; unit += gridDim.x) {
		float total[TILES][4] = {};
#pragma unroll
		for (int d = 0; d < P::steps; d++)
			multiply_step(
			    sh, loader, slot, total,
			    [&](uint4(&xv)[TILES], int j) {
				    if constexpr (P::shared) {
					    read_x(xv, d * 4 + j);
				    } else {
#pragma unroll
					    for (int i = 0; i < TILES; i++) xv[i] = x[d * 4 + j][i];
				    }
			    },
			    [&](int q, int i) {
				    if constexpr (P::shared) return sh.group_sum[warp][d * PER_STEP + q][i][t];
				    else return make_float2(group_sum[d * PER_STEP + q][i][0], group_sum[d * PER_STEP + q][i][1]);
			    });
		loader.look_ahead();
		finish_unit<P>(p, w, sh, unit, parity, total);
		parity ^= 1;
	}
}

// multiply_streaming is multiply where x fits neither registers nor shared memory: two units are worked on together, so that each step's x, read from L2
// while the step before is multiplied, serves both.
template <typename P> DEVICE void multiply_streaming(const Params& p, const Weights& w, Shared& sh, Loader& loader, int& slot) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, stride = gridDim.x;
	auto load_x = [&](uint4(&v)[4][TILES], int step) {
#pragma unroll
		for (int j = 0; j < 4; j++)
#pragma unroll
			for (int i = 0; i < TILES; i++) {
				const int k = (warp * P::steps + step) * 128 + j * 32 + t * 8;
				v[j][i] = make_uint4(0, 0, 0, 0);
				if (i * 8 + g < p.tokens && (P::whole || k < P::k)) v[j][i] = ld16_l2(w.x + (size_t)(i * 8 + g) * P::k + k);
			}
	};
	for (int unit = blockIdx.x; unit < P::units; unit += 2 * stride) {
		const bool both = unit + stride < P::units;
		float total[2][TILES][4] = {};
		uint4 x[2][4][TILES];
		load_x(x[0], 0);
		auto step = [&](int d, uint4(&now)[4][TILES], uint4(&next)[4][TILES]) {
			if (d + 1 < P::steps) load_x(next, d + 1);
			float sums[PER_STEP][TILES][4] = {};
#pragma unroll
			for (int j = 0; j < 4; j++) lift_and_sum(now[j], sums[j * PER_STEP / 4]);
			auto piece = [&](uint4(&xv)[TILES], int j) {
#pragma unroll
				for (int i = 0; i < TILES; i++) xv[i] = now[j][i];
			};
			auto sum = [&](int q, int i) { return make_float2(sums[q][i][0], sums[q][i][1]); };
			multiply_step(sh, loader, slot, total[0], piece, sum);
			if (both) multiply_step(sh, loader, slot, total[1], piece, sum);
		};
#pragma unroll 1
		for (int d = 0; d < P::steps; d += 2) {
			step(d, x[0], x[1]);
			if (d + 1 < P::steps) step(d + 1, x[1], x[0]);
		}
		loader.look_ahead();
		finish_unit<P>(p, w, sh, unit, 0, total[0]);
		if (both) finish_unit<P>(p, w, sh, unit + stride, 1, total[1]);
		else __syncthreads();  // the next unit's sums go where these were
	}
}

template <typename P> DEVICE void run(const Params& p, const Weights& w, Shared& sh, Loader& loader, int& slot) {
	if constexpr (P::stream) multiply_streaming<P>(p, w, sh, loader, slot);
	else multiply<P>(p, w, sh, loader, slot);
}

template <typename P> DEVICE void load_gamma(const Weights& w, Shared& sh) {
	if (P::norm)
		for (int i = threadIdx.x; i < P::k / 8; i += THREADS) sh.gamma[i] = ld16(w.gamma + i * 8);
}

#if PRODUCTS > 1
// meet waits for all CTAs: what they wrote before is seen after. The next product's gamma comes meanwhile.
template <typename Next> DEVICE void meet(const Params& p, int meeting, Shared& sh) {
	__syncthreads();
	if (threadIdx.x == 0) atom_inc_acq_rel(p.arrived + meeting);
	load_gamma<Next>(p.product[meeting + 1], sh);
	if (threadIdx.x == 0)
		while (ld_acquire(p.arrived + meeting) < gridDim.x) {}
	__syncthreads();
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) w4_gemv(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	Loader loader(p, sh.ring[threadIdx.x >> 5]);
	int slot = 0;
	PDL_LAUNCH();
#pragma unroll 1
	for (int i = 0; i < RING - 1; i++) loader.next();
	loader.look_ahead();
	load_gamma<P0>(p.product[0], sh);
	PDL_WAIT();
	__syncthreads();
	run<P0>(p, p.product[0], sh, loader, slot);
#if PRODUCTS > 1
	meet<P1>(p, 0, sh);
	run<P1>(p, p.product[1], sh, loader, slot);
#endif
#if PRODUCTS > 2
	meet<P2>(p, 1, sh);
	run<P2>(p, p.product[2], sh, loader, slot);
#endif
#if PRODUCTS > 3
	meet<P3>(p, 2, sh);
	run<P3>(p, p.product[3], sh, loader, slot);
#endif
#if PRODUCTS > 1
	if (threadIdx.x == 0 && atom_inc_acq_rel(p.arrived + 3) == gridDim.x - 1)  // the last to end: no CTA looks at them any more
		for (int i = 0; i < 4; i++) p.arrived[i] = 0;
#endif
}
