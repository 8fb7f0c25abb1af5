// gemv_mma: y[m] = epilogue(norm?(x[m]) W^T) for M <= 16 tokens on the matrix units, reading W once at the speed of memory.
//
// Shapes: W [N, K] bf16 row-major, x [M, K], y [M, N]. Grid: 1 CTA an SM or fewer, 512 threads = 16 warps that split K; shared memory
// for the warps' sums. Bytes: 2NK + 2M(K+N); FLOPs 2MNK. Bound by memory.
// mma.m16n8k16 with 16 rows of W as A and 8 tokens as B. The order of k is free as long as both operands agree, so lane 4g+t takes
// the 16 bytes at k+8t of rows g and g+8 and of token g straight from memory: element pairs 0,1 feed one mma, 2,3 the next. No
// shared memory, no ldmatrix, no special weight layout. The warps' sums meet in shared memory, in warp order. The first loads of W are
// issued before the wait on the previous kernel.
// Where a warp's share of x fits registers (KEEP_X) it is read, normed by gamma and squared once for all of the CTA's rows; else x streams
// beside W, and a CTA takes BLOCKS blocks of 16 rows at once so that it is read the fewer times. The sum of squares is the diagonal of
// X X^T, two more mma a step.
// With FP8, W is e4m3 with a scale for each row (fp8.cuh): 16 bytes are 16 k, widened to bf16 in registers, and x is bf16 all the same
// (W8A16): the products are those of the bf16 kernel for the same values.
// Two CTAs fit no SM (512 threads of 128 registers), which keeps grids balanced: a successor's CTA starts where one of this grid ended.
// With room for two, the scheduler puts two of the successor on SMs that finish first, and those take twice as long: a chain of 8B
// layers at M = 8 took 9.5 ms so, 5.7 with 256 threads and 128 registers (H100, 4.82 the floor).
#include "stream.cuh"
#ifdef FP8
#include "fp8.cuh"
constexpr int LANE_K = 16;  // k of a lane's 16 bytes of W
typedef u8 Weight;
#else
constexpr int LANE_K = 8;
typedef bf16 Weight;
DEVICE uint4 lift(uint4 v) { return v; }
#endif

#ifndef BLOCKS
#error "BLOCKS: blocks of 16 rows that a CTA works on at once, 1..4"
#endif
#define THREADS 512

constexpr int WARPS = THREADS / 32;
constexpr int TILES = ceil_div(M, 8);                    // token tiles
constexpr int STEP_K = 4 * LANE_K;
constexpr int XV = LANE_K / 8;                           // 16-byte pieces of x that a lane needs in a step
constexpr int STEPS = ceil_div(ceil_div(K, STEP_K), WARPS);  // steps of one warp
#ifdef FP8
// whole_depth is the most steps up to `most` that divide STEPS, or, if those are few, most.
__host__ __device__ constexpr int whole_depth(int most) {
	for (int d = most; 2 * d > most; d--)
		if (STEPS % d == 0) return d;
	return most;
}
constexpr int DEPTH = whole_depth(max_of(1, min_of((TILES == 1 ? 8 : 7) / BLOCKS, STEPS)));
#else
constexpr int DEPTH = max_of(1, min_of((TILES == 1 ? 8 : STEPS > 4 && STEPS <= 8 ? 4 : 6) / BLOCKS, STEPS));  // steps of W in flight
#endif
constexpr bool KEEP_X = ceil_div(STEPS, DEPTH) * DEPTH * XV <= 8 && (TILES == 1 || STEPS % DEPTH == 0);
constexpr int SPAN = KEEP_X ? ceil_div(STEPS, DEPTH) * DEPTH : DEPTH;  // steps of a round
constexpr int ROUNDS = ceil_div(STEPS, SPAN);
constexpr int X_DEPTH = KEEP_X ? SPAN : DEPTH % 2 == 0 ? 2 : 1;  // of x: where it streams, from L1 or L2, a step of W takes longer than its trip
constexpr int UNIT_ROWS = 16 * BLOCKS;
constexpr int UNITS = ceil_div(N, UNIT_ROWS);
constexpr int OUT = EPILOGUE == SWIGLU ? UNIT_ROWS / 2 : UNIT_ROWS;
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
constexpr int PER_THREAD = ceil_div(OUT * TILES * 8, THREADS);
constexpr bool WHOLE = STEPS * WARPS * STEP_K == K && ROUNDS * SPAN == STEPS;  // no step runs past K
static_assert(M <= 16, "more tokens than two tiles");
static_assert(N >= UNIT_ROWS, "fewer rows than a unit");

// first_output is a unit's first output; the last unit reaches back to stay inside W and drops what others make.
DEVICE int first_output(int unit) { return OUTPUTS % OUT == 0 ? unit * OUT : min(unit * OUT, OUTPUTS - OUT); }

struct Shared {
	float sum[2][WARPS][BLOCKS][TILES][16][8];  // two units: one barrier a unit is enough
	float squares[WARPS][16];
	float scale[16];
	uint4 gamma[NORM ? ceil_div(K, 8) : 1];
	Candidate found[HEAD_FAST == EPILOGUE ? THREADS : 1];
	Draw draw[HEAD_FAST == EPILOGUE ? 16 : 1];
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) gemv_mma(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int k_lane = warp * STEPS * STEP_K + t * LANE_K;  // the lane's k in the warp's first step
	const int first = blockIdx.x, stride = gridDim.x;
	PDL_LAUNCH();

	auto valid = [&](int step) { return WHOLE || (step < STEPS && k_lane + step * STEP_K < K); };  // else zeros
	auto load_w = [&](uint4(&dst)[BLOCKS][2], const Weight* row, int step) {  // row: the lane's first row at the step
#pragma unroll
		for (int i = 0; i < BLOCKS * 2; i++) {
			dst[i / 2][i % 2] = make_uint4(0, 0, 0, 0);
			if (valid(step)) dst[i / 2][i % 2] = ld_weight(row + i * 8 * K);
		}
	};
	const Weight* w_lane = reinterpret_cast<const Weight*>(p.w) + (size_t)g * K + k_lane;
	auto unit_rows = [&](int unit) { return w_lane + (size_t)first_output(unit) * (UNIT_ROWS / OUT) * K; };
	uint4 w[DEPTH][BLOCKS][2];
	if (first < UNITS) {
#pragma unroll
		for (int d = 0; d < DEPTH; d++) load_w(w[d], unit_rows(first) + d * STEP_K, d);
	}
	if (NORM)
		for (int i = tid; i < K / 8; i += THREADS) sh.gamma[i] = lift(ld16(p.gamma + i * 8));
	PDL_WAIT();
	if (NORM) __syncthreads();

	const bf16* x_row[TILES];
#pragma unroll
	for (int i = 0; i < TILES; i++) x_row[i] = p.x + (size_t)token_row(p, min(i * 8 + g, p.tokens - 1)) * K + k_lane;
	auto load_x = [&](uint4(&dst)[TILES][XV], int step) {
#pragma unroll
		for (int i = 0; i < TILES * XV; i++) {
			dst[i / XV][i % XV] = make_uint4(0, 0, 0, 0);
			if (valid(step)) dst[i / XV][i % XV] = ld16(x_row[i / XV] + step * STEP_K + i % XV * 8);
		}
	};
	uint4 x[X_DEPTH][TILES][XV];
	if (first < UNITS) {
#pragma unroll
		for (int d = 0; d < X_DEPTH; d++) load_x(x[d], d);
	}

	Best best[PER_THREAD];  // of the rows whose outputs this thread finishes
	if (EPILOGUE == HEAD_FAST && tid < p.tokens) sh.draw[tid] = draw_of(p.slot_param, p.slot[tid], p.position[tid]);

	float squares[NORM ? TILES : 1][4] = {};
	auto square = [&](const uint4(&v)[TILES][XV]) {
#pragma unroll
		for (int j = 0; j < XV; j++)
#pragma unroll
			for (int i = 0; i < TILES; i++) {
				const uint4 high = TILES == 2 ? v[TILES - 1][j] : make_uint4(0, 0, 0, 0);
				mma_bf16(squares[i], v[0][j].x, high.x, v[0][j].y, high.y, v[i][j].x, v[i][j].y);
				mma_bf16(squares[i], v[0][j].z, high.z, v[0][j].w, high.w, v[i][j].z, v[i][j].w);
			}
	};
	auto store_squares = [&] {  // the diagonal: token g at column 2t or 2t+1
		if (g >> 1 != t) return;
		sh.squares[warp][g] = g & 1 ? squares[0][1] : squares[0][0];
		if (TILES == 2) sh.squares[warp][8 + g] = g & 1 ? squares[TILES - 1][3] : squares[TILES - 1][2];
	};
	auto scale_by_gamma = [&](uint4(&v)[TILES][XV], int step) {
#pragma unroll
		for (int j = 0; j < XV; j++) {
			const int at = (k_lane + step * STEP_K) / 8 + j;
			const uint4 gm = sh.gamma[WHOLE ? at : min(at, K / 8 - 1)];
#pragma unroll
			for (int i = 0; i < TILES; i++) v[i][j] = mul_bf16x8(v[i][j], gm);
		}
	};
	auto lift_x = [&](uint4(&v)[TILES][XV]) {
#pragma unroll
		for (int i = 0; i < TILES * XV; i++) v[i / XV][i % XV] = lift(v[i / XV][i % XV]);
	};
	if (KEEP_X && first < UNITS) {
#pragma unroll
		for (int d = 0; d < X_DEPTH; d++) {
			if (NORM) square(x[d]);
			if (NORM) scale_by_gamma(x[d], d);
			else lift_x(x[d]);
		}
		if (NORM) store_squares();
	}
	int parity = 0;
	for (int unit = first; unit < UNITS; unit += stride, parity ^= 1) {
		float c[BLOCKS][TILES][4] = {};
		const int next_unit = unit + stride;
		const Weight* here = unit_rows(unit);
#pragma unroll 1
		for (int round = 0; round < ROUNDS; round++) {
			const bool last = round + 1 == ROUNDS;
			const bool more = !last || next_unit < UNITS;
			const int next_step = last ? 0 : (round + 1) * SPAN;
			const Weight* next = last ? unit_rows(next_unit) : here + SPAN * STEP_K;  // the first step of the next round
#pragma unroll
			for (int d = 0; d < SPAN; d++) {
				uint4 xv[TILES][XV];
#pragma unroll
				for (int i = 0; i < TILES * XV; i++) xv[i / XV][i % XV] = x[d % X_DEPTH][i / XV][i % XV];
				if (!KEEP_X) {
					const bool in_round = d + X_DEPTH < SPAN;
					if (in_round || more) load_x(x[d % X_DEPTH], in_round ? round * SPAN + d + X_DEPTH : next_step + d + X_DEPTH - SPAN);
					if (NORM) {
						if (unit == first) square(xv);
						scale_by_gamma(xv, round * SPAN + d);
					} else {
						lift_x(xv);
					}
				}
#pragma unroll
				for (int b = 0; b < BLOCKS; b++) {
					const uint4 lo = w[d % DEPTH][b][0], hi = w[d % DEPTH][b][1];
#ifdef FP8
					const u32 rows[2][4] = {{lo.x, lo.y, lo.z, lo.w}, {hi.x, hi.y, hi.z, hi.w}};
#pragma unroll
					for (int j = 0; j < 4; j++) {
						u32 a0, a1, a2, a3;
						widen(rows[0][j], a0, a2);
						widen(rows[1][j], a1, a3);
#pragma unroll
						for (int i = 0; i < TILES; i++) mma_bf16(c[b][i], a0, a1, a2, a3, word_of(xv[i][0], j), word_of(xv[i][1], j));
					}
#else
#pragma unroll
					for (int i = 0; i < TILES; i++) {
						mma_bf16(c[b][i], lo.x, hi.x, lo.y, hi.y, xv[i][0].x, xv[i][0].y);
						mma_bf16(c[b][i], lo.z, hi.z, lo.w, hi.w, xv[i][0].z, xv[i][0].w);
					}
#endif
				}
				if (d + DEPTH < SPAN) load_w(w[d % DEPTH], here + (d + DEPTH) * STEP_K, round * SPAN + d + DEPTH);
				else if (more) load_w(w[d % DEPTH], next + (d + DEPTH - SPAN) * STEP_K, next_step + d + DEPTH - SPAN);
			}
			here = next;
		}

#pragma unroll
		for (int b = 0; b < BLOCKS; b++)
#pragma unroll
			for (int i = 0; i < TILES; i++) {
				float(&s)[16][8] = sh.sum[parity][warp][b][i];
				*reinterpret_cast<float2*>(&s[g][2 * t]) = make_float2(c[b][i][0], c[b][i][1]);
				*reinterpret_cast<float2*>(&s[g + 8][2 * t]) = make_float2(c[b][i][2], c[b][i][3]);
			}
		// Thread i finishes output i / tokens of token i % tokens, and what it adds to is on its way while the warps meet.
		float old[PER_THREAD];
#ifdef FP8
		float row_scale[PER_THREAD][EPILOGUE == SWIGLU ? 2 : 1];
#endif
#pragma unroll
		for (int i = 0; i < PER_THREAD; i++) {
			int e = tid + i * THREADS, o = first_output(unit) + e / (TILES * 8), m = e % (TILES * 8);
			old[i] = 0.f;
#ifdef FP8
			if (e < OUT * TILES * 8) {
				row_scale[i][0] = UNLIFT * p.row_scale[EPILOGUE == SWIGLU ? gate_row(o) : o];
				if (EPILOGUE == SWIGLU) row_scale[i][EPILOGUE == SWIGLU] = UNLIFT * p.row_scale[gate_row(o) + 8];
			}
#endif
			if ((EPILOGUE == RESIDUAL || EPILOGUE == STORE_BIAS) && e < OUT * TILES * 8 && o >= unit * OUT && m < p.tokens)
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
			int e = tid + i * THREADS, r = e / (TILES * 8), m = e % (TILES * 8), o = first_output(unit) + r;
			if (e >= OUT * TILES * 8 || o < unit * OUT || m >= p.tokens) continue;
			float scale = NORM ? sh.scale[m] : 1.f;
			auto total = [&](int block, int row, int part) {  // part: 1 for up rows
				float s = 0.f;
#pragma unroll 4  // x and the next W hold the registers
				for (int j = 0; j < WARPS; j++) s += sh.sum[parity][j][block][m / 8][row][m % 8];
#ifdef FP8
				return s * (scale * row_scale[i][part]);
#else
				return s * scale;
#endif
			};
			float value = EPILOGUE == SWIGLU ? swiglu(total(r / 8, r % 8, 0), total(r / 8, r % 8 + 8, EPILOGUE == SWIGLU)) : total(r / 16, r % 16, 0);
			if (EPILOGUE == HEAD_FAST) best[i].add(sh.draw[m], value, o);
			else if (EPILOGUE == HEAD_LOGITS) p.logits[(size_t)m * N + o] = value;
			else p.y[(size_t)m * OUTPUTS + o] = to_bf16(value + old[i]);
		}
	}

	if (EPILOGUE == HEAD_FAST) {
#pragma unroll
		for (int i = 1; i < PER_THREAD; i++) best[0].merge(Candidate{best[i].score, best[i].token});
		sh.found[tid] = Candidate{best[0].score, best[0].token};
		__syncthreads();
		if (tid < p.tokens) {  // THREADS is a multiple of the tokens, so thread i holds token i % tokens
			for (int i = tid + TILES * 8; i < THREADS; i += TILES * 8) best[0].merge(sh.found[i]);
			p.best[(size_t)tid * gridDim.x + blockIdx.x] = Candidate{best[0].score, best[0].token};
		}
	}
}
