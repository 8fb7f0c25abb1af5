// w4_gemv: y[m] = epilogue(norm?(x[m]) W^T) for M <= 16 tokens with weights of four bits (w4.cuh), on the matrix units: reads W once at the
// speed of memory, which asks for four times the arithmetic a byte that bf16 does.
//
// Shapes: W [N, K], x [M, K] bf16, y [M, N]. Grid: 1 CTA an SM or fewer, 512 threads = 16 warps that split K; shared memory for the warps'
// sums. Bytes: NK/2 + 4NK/GROUP + 2M(K+N); FLOPs 2MNK.
// As gemv_mma: 16 rows of W are the A of mma.m16n8k16, tokens its columns; the warps' sums meet in shared memory, in warp order; one CTA fills
// an SM. Weights enter the product as 128 + q: exact, and half an instruction each. What is too much, (128 + zero) times the group's
// sum of x, comes off in fp32 once for each group, where the scale multiplies: sums of groups are what a product with ones gives.
// Where a warp's share of x fits registers or shared memory (KEEP_X) it is read, normed and summed once for all rows, and loads run
// UNROLL units ahead; else it streams beside W.
#include "linear.cuh"
#include "w4.cuh"

#if !defined(SPAN) || !defined(X_PLACE)
#error "SPAN: steps of 128 columns in flight of a unit; X_PLACE: 0 x stays in registers, 1 in shared memory, 2 it streams beside W"
#endif
#define THREADS 512

constexpr int WARPS = THREADS / 32;
constexpr int TILES = ceil_div(M, 8);             // token tiles
constexpr int STEPS = ceil_div(KB, WARPS);        // of one warp
constexpr int ROUNDS = ceil_div(STEPS, SPAN);
constexpr bool KEEP_X = X_PLACE < 2, X_SHARED = X_PLACE == 1;
constexpr int UNROLL = KEEP_X ? max_of(1, (PER_STEP == 1 ? 4 : 2) / STEPS) : 1;  // units whose loads are in flight together
constexpr int DEPTH = UNROLL * SPAN;
constexpr int PIECES = STEPS * 4;  // of 32 columns, of a warp
constexpr int X_SLOTS = X_PLACE == 0 ? PIECES : TILES == 1 ? 8 : 2;  // pieces in registers; where x streams, two steps or half a step ahead
constexpr int UNITS = ceil_div(N, 16);
constexpr int OUT = EPILOGUE == SWIGLU ? 8 : 16;  // outputs of a unit
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
constexpr int PER_THREAD = ceil_div(OUT * TILES * 8, THREADS);
constexpr bool WHOLE = ROUNDS * SPAN * WARPS * 128 == K;  // no step runs past K
static_assert(M <= 16, "more tokens than two tiles");
static_assert(X_PLACE != 0 || SPAN == STEPS, "x in registers is indexed by the step of a unit");
static_assert(SPAN * 4 % X_SLOTS == 0 || X_SHARED, "each round begins with the same piece");
static_assert(!IS_HEAD, "the head is not kept in four bits");

struct Params {
	const uint4* w;     // [N/8, KB, 32 lanes]
	const u32* scale;   // [N/8, GROUPS, 8]
	const bf16* x;      // [tokens, K]
	const bf16* gamma;  // [K], NORM
	const bf16* bias;   // [N], STORE_BIAS
	bf16* y;            // [M, N], SwiGLU [M, N/2]; RESIDUAL adds to it
	const u8* next;     // weights that the next product begins with
	i32 tokens;         // at most M
	u32 next_bytes;     // of which each CTA brings a part to the L2 when its own loads are on their way; 0: none
};

struct Shared {
	float sum[2][WARPS][TILES][16][8];  // two units: one barrier a unit is enough
	float squares[WARPS][16];
	float scale[16];
	uint4 gamma[NORM ? ceil_div(K, 8) : 1];
	float2 group_sum[X_SHARED ? WARPS : 1][X_SHARED ? STEPS * PER_STEP : 1][TILES][4];
};  // behind it, X_SHARED: uint4 x[WARPS][PIECES][tokens][4]; a lane uses what it brought

extern "C" __global__ void __launch_bounds__(THREADS, 1) w4_gemv(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int first_step = warp * STEPS, k_lane = first_step * 128 + t * 8;
	const int first = blockIdx.x, stride = gridDim.x;
	PDL_LAUNCH();

	uint4 w[DEPTH][2];
	u32 packed[DEPTH][2][PER_STEP];  // scales and zero points
	auto load_w = [&](int slot, int unit, int step) {
		const bool valid = WHOLE || (step < STEPS && first_step + step < KB);
#pragma unroll
		for (int r = 0; r < 2; r++) {
			const int rows = unit * 2 + r;
			const bool there = valid && (N % 16 == 0 || rows < N / 8);
			w[slot][r] = make_uint4(0, 0, 0, 0);
			if (there) w[slot][r] = ld_weight(p.w + ((size_t)rows * KB + first_step + step) * 32 + lane);
#pragma unroll
			for (int q = 0; q < PER_STEP; q++) {
				packed[slot][r][q] = 0;
				if (there) packed[slot][r][q] = ld_weight4(p.scale + (rows * GROUPS + group_of(first_step + step, q)) * 8 + g);
			}
		}
	};
#pragma unroll
	for (int d = 0; d < DEPTH; d++)
		if (first + d / SPAN * stride < UNITS) load_w(d, first + d / SPAN * stride, d % SPAN);
	if (NORM)
		for (int i = tid; i < K / 8; i += THREADS) sh.gamma[i] = ld16(p.gamma + i * 8);
	PDL_WAIT();
	if (NORM) __syncthreads();

	uint4 x[X_SLOTS][TILES];  // X_SHARED has none
	auto load_x = [&](uint4(&dst)[TILES], int step, int j) {  // columns 32j.. of the step
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			dst[i] = make_uint4(0, 0, 0, 0);
			const int k = k_lane + step * 128 + j * 32;
			if (i * 8 + g < p.tokens && (WHOLE || (step < STEPS && k < K))) dst[i] = ld16(p.x + (size_t)(i * 8 + g) * K + k);
		}
	};
	auto shared_x = [&](int piece, int i) -> uint4& { return reinterpret_cast<uint4*>(&sh + 1)[((warp * PIECES + piece) * p.tokens + i * 8 + g) * 4 + t]; };
	auto read_x = [&](uint4(&dst)[TILES], int piece) {
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			dst[i] = make_uint4(0, 0, 0, 0);
			if (i * 8 + g < p.tokens) dst[i] = shared_x(piece, i);
		}
	};
	if (first < UNITS) {
		if (X_SHARED) {
#pragma unroll
			for (int s = 0; s < PIECES; s++)
#pragma unroll
				for (int i = 0; i < TILES; i++) {
					const int m = i * 8 + g, k = k_lane + s * 32;
					if (m < p.tokens) cp_async16(smem_addr(&shared_x(s, i)), p.x + (size_t)m * K + (WHOLE || k < K ? k : 0), WHOLE || k < K);
				}
			cp_async_commit();
			cp_async_wait<0>();
		} else {
#pragma unroll
			for (int s = 0; s < X_SLOTS; s++) load_x(x[s], s / 4, s % 4);
		}
	}

	float squares[NORM ? TILES : 1][4] = {};
	auto square = [&](const uint4(&v)[TILES]) {  // on the diagonal of X X^T
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			const uint4 high = TILES == 2 ? v[TILES - 1] : make_uint4(0, 0, 0, 0);
			mma_bf16(squares[i], v[0].x, high.x, v[0].y, high.y, v[i].x, v[i].y);
			mma_bf16(squares[i], v[0].z, high.z, v[0].w, high.w, v[i].z, v[i].w);
		}
	};
	auto store_squares = [&] {  // token g is at column 2t or 2t+1
		if (g >> 1 != t) return;
		sh.squares[warp][g] = g & 1 ? squares[0][1] : squares[0][0];
		if (TILES == 2) sh.squares[warp][8 + g] = g & 1 ? squares[TILES - 1][3] : squares[TILES - 1][2];
	};
	auto scale_by_gamma = [&](uint4(&v)[TILES], int step, int j) {
		const int at = (k_lane + step * 128 + j * 32) / 8;
		const uint4 gm = sh.gamma[WHOLE ? at : min(at, K / 8 - 1)];
#pragma unroll
		for (int i = 0; i < TILES; i++)
			v[i] = make_uint4(mul_bf16x2(v[i].x, gm.x), mul_bf16x2(v[i].y, gm.y), mul_bf16x2(v[i].z, gm.z), mul_bf16x2(v[i].w, gm.w));
	};
	auto add_up = [&](float(&sum)[TILES][4], const uint4(&v)[TILES]) {  // every row of C gets the sums of tokens 2t and 2t+1
		constexpr u32 ones = 0x3F803F80u;
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			mma_bf16(sum[i], ones, ones, ones, ones, v[i].x, v[i].y);
			mma_bf16(sum[i], ones, ones, ones, ones, v[i].z, v[i].w);
		}
	};
	float group_sum[X_PLACE == 0 ? STEPS * PER_STEP : 1][TILES][2];
	if (KEEP_X && first < UNITS) {
#pragma unroll
		for (int q = 0; q < STEPS * PER_STEP; q++) {
			float sum[TILES][4] = {};
#pragma unroll
			for (int s = q * 4 / PER_STEP; s < (q + 1) * 4 / PER_STEP; s++) {
				uint4(&v)[TILES] = x[X_SHARED ? 0 : s];
				if (X_SHARED) read_x(v, s);
				if (NORM) {
					square(v);
					scale_by_gamma(v, s / 4, s % 4);
					if (X_SHARED) {
#pragma unroll
						for (int i = 0; i < TILES; i++)
							if (i * 8 + g < p.tokens) shared_x(s, i) = v[i];
					}
				}
				add_up(sum, v);
			}
#pragma unroll
			for (int i = 0; i < TILES; i++) {
				if (X_SHARED) {
					if (g == 0) sh.group_sum[warp][q][i][t] = make_float2(sum[i][0], sum[i][1]);
				} else {
					group_sum[X_SHARED ? 0 : q][i][0] = sum[i][0];
					group_sum[X_SHARED ? 0 : q][i][1] = sum[i][1];
				}
			}
		}
		if (NORM) store_squares();
		__syncwarp();
	}

	int parity = 0;
	for (int unit0 = first; unit0 < UNITS; unit0 += UNROLL * stride) {
		if (tid == 0 && unit0 + UNROLL * stride >= UNITS && p.next_bytes > 0) {  // the last round: its loads are on their way
			const u32 share = ceil_div(p.next_bytes, gridDim.x * 128) * 128, to = min((blockIdx.x + 1) * share, p.next_bytes);
			for (u32 at = blockIdx.x * share; at < to; at += 8192) prefetch_l2(p.next + at, min(8192u, to - at), policy_evict_last());
		}
#pragma unroll
		for (int u = 0; u < UNROLL; u++) {
			const int unit = unit0 + u * stride;
			if (u > 0 && unit >= UNITS) break;
			float total[TILES][4] = {};
#pragma unroll 1
			for (int round = 0; round < ROUNDS; round++) {
				const bool last = round + 1 == ROUNDS;
				const int next_unit = last ? unit + UNROLL * stride : unit, next_round = last ? 0 : round + 1;
#pragma unroll
				for (int d = 0; d < SPAN; d++) {
					const int slot = u * SPAN + d;
#pragma unroll
					for (int q = 0; q < PER_STEP; q++) {
						float c[TILES][4] = {}, sum[TILES][4] = {};
#pragma unroll
						for (int j = q * 4 / PER_STEP; j < (q + 1) * 4 / PER_STEP; j++) {
							uint4 xv[TILES];
							if (X_SHARED) {
								read_x(xv, min((round * SPAN + d) * 4 + j, PIECES - 1));
							} else {
#pragma unroll
								for (int i = 0; i < TILES; i++) xv[i] = x[(d * 4 + j) % X_SLOTS][i];
							}
							if (!KEEP_X) {
								const int ahead = d * 4 + j + X_SLOTS;  // in pieces of the round
								const bool in_round = ahead < SPAN * 4;
								if (in_round || next_unit < UNITS)
									load_x(x[ahead % X_SLOTS], in_round ? round * SPAN + ahead / 4 : next_round * SPAN + ahead / 4 - SPAN, ahead % 4);
								if (NORM) {
									if (unit == first) square(xv);
									scale_by_gamma(xv, round * SPAN + d, j);
								}
								add_up(sum, xv);
							}
							const u32 upper = word_of(w[slot][0], j), lower = word_of(w[slot][1], j);
							u32 a[4][2];
#pragma unroll
							for (int i = 0; i < 4; i++) {
								a[i][0] = biased_pair(upper, i);
								a[i][1] = biased_pair(lower, i);
							}
#pragma unroll
							for (int i = 0; i < TILES; i++) {
								mma_bf16(c[i], a[0][0], a[0][1], a[1][0], a[1][1], xv[i].x, xv[i].y);
								mma_bf16(c[i], a[2][0], a[2][1], a[3][0], a[3][1], xv[i].z, xv[i].w);
							}
						}
#pragma unroll
						for (int i = 0; i < TILES; i++) {  // tokens 2t and 2t+1
							if (X_SHARED) {
								const float2 v = sh.group_sum[warp][min((round * SPAN + d) * PER_STEP + q, STEPS * PER_STEP - 1)][i][t];
								sum[i][0] = v.x;
								sum[i][1] = v.y;
							} else if (X_PLACE == 0) {
								sum[i][0] = group_sum[X_SHARED ? 0 : d * PER_STEP + q][i][0];
								sum[i][1] = group_sum[X_SHARED ? 0 : d * PER_STEP + q][i][1];
							}
						}
#pragma unroll
						for (int r = 0; r < 2; r++) {
							const float scale = scale_of(packed[slot][r][q]), zero = biased_zero(packed[slot][r][q]);
#pragma unroll
							for (int i = 0; i < TILES; i++)
#pragma unroll
								for (int e = 0; e < 2; e++)
									total[i][2 * r + e] = fmaf(scale, fmaf(-zero, sum[i][e], c[i][2 * r + e]), total[i][2 * r + e]);
						}
					}
					if (next_unit < UNITS) load_w(slot, next_unit, next_round * SPAN + d);
				}
			}

#pragma unroll
			for (int i = 0; i < TILES; i++) {
				float(&s)[16][8] = sh.sum[parity][warp][i];
				*reinterpret_cast<float2*>(&s[g][2 * t]) = make_float2(total[i][0], total[i][1]);
				*reinterpret_cast<float2*>(&s[g + 8][2 * t]) = make_float2(total[i][2], total[i][3]);
			}
			// Thread i finishes output i / tokens of token i % tokens, and what it adds to is on its way while the warps meet.
			float old[PER_THREAD];
#pragma unroll
			for (int i = 0; i < PER_THREAD; i++) {
				const int e = tid + i * THREADS, o = unit * OUT + e / (TILES * 8), m = e % (TILES * 8);
				old[i] = 0.f;
				if ((EPILOGUE == RESIDUAL || EPILOGUE == STORE_BIAS) && e < OUT * TILES * 8 && o < OUTPUTS && m < p.tokens)
					old[i] = EPILOGUE == RESIDUAL ? to_float(p.y[(size_t)m * N + o]) : to_float(p.bias[o]);
			}
			if (NORM && !KEEP_X && unit == first) store_squares();
			__syncthreads();
			if (NORM && unit == first) {
				if (tid < 8 * TILES) {
					float ss = 0.f;
					for (int i = 0; i < WARPS; i++) ss += sh.squares[i][tid];
					sh.scale[tid] = rsqrtf(ss * (1.f / K) + RMS_EPS);
				}
				__syncthreads();
			}
#pragma unroll
			for (int i = 0; i < PER_THREAD; i++) {
				const int e = tid + i * THREADS, r = e / (TILES * 8), m = e % (TILES * 8), o = unit * OUT + r;
				if (e >= OUT * TILES * 8 || o >= OUTPUTS || m >= p.tokens) continue;
				auto sum_of = [&](int row) {
					float s = 0.f;
#pragma unroll 4  // x and the next W hold the registers
					for (int j = 0; j < WARPS; j++) s += sh.sum[parity][j][m / 8][row][m % 8];
					return NORM ? s * sh.scale[m] : s;
				};
				const float value = EPILOGUE == SWIGLU ? swiglu(sum_of(r), sum_of(r + 8)) : sum_of(r);
				p.y[(size_t)m * OUTPUTS + o] = to_bf16(value + old[i]);
			}
			parity ^= 1;
		}
	}
}
