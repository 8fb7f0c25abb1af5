// gemv: y[m] = epilogue(norm?(x[m]) W^T) for M <= 2 tokens, on CUDA cores: reads W once at the speed of memory.
//
// Shapes: W [N, K] bf16 row-major, x [M, K], y [M, N]. Grid: 2 CTAs an SM or fewer, 256 threads; shared memory M*K bf16 (padded
// to whole passes). Bytes: 2NK + 2M(K+N); FLOPs 2MNK: bound by memory at these M.
// A warp owns whole rows and keeps U 16-byte loads a lane in flight; each register is loaded again right after its use, across
// rows, so the stream never stops. The first U loads are issued before the wait on the previous kernel. x is scaled by gamma (rounded
// to bf16) on its way to shared memory; 1/RMS multiplies the sum, so no reduction stands between x and the products.
// With FP8, W is e4m3 with a scale for each row (fp8.cuh): 16 bytes are 16 columns, made f16 by the conversion instruction and fp32 from there; x
// lies in shared memory in two planes, a lane's first and last eight. A step of one token of 8B takes 2.30 ms so, 2.45 with gemv_mma (H200).
// U = 16 x 256 threads x 2 CTAs: the setting that let one successor in and reached 0.92 of the read ceiling as a chain on an H200
// (kernels of 128 threads x 3 CTAs leave room for several waiting grids and lost 40 %).
#include "stream.cuh"
#ifdef FP8
#include "fp8.cuh"
constexpr int LANE_K = 16;  // columns of a lane's 16 bytes of W
typedef u8 Weight;
#else
constexpr int LANE_K = 8;
typedef bf16 Weight;
#endif

#ifndef ROWS_PER_PASS
#error "ROWS_PER_PASS: rows whose loads are in flight together, 1 unless K is small"
#endif
#define THREADS 256

constexpr int WARPS = THREADS / 32;
constexpr int STEP_K = 32 * LANE_K;
constexpr int STEPS = ceil_div(K, STEP_K);                 // 512-byte loads of a warp in a row
constexpr int R = ROWS_PER_PASS;
constexpr int CHUNKS = R > 1 ? 1 : ceil_div(STEPS, 16);    // passes over a row
constexpr int CS = ceil_div(STEPS, CHUNKS);                // steps of a pass
constexpr bool PAIR = EPILOGUE == SWIGLU && R == 1;           // the unit's gate row, then its up row
constexpr int PASSES = (PAIR ? 2 : 1) * CHUNKS;              // of a unit
constexpr int OUT = EPILOGUE == SWIGLU ? max_of(R / 2, 1) : R;  // outputs of a unit
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
constexpr int UNITS = ceil_div(OUTPUTS, OUT);
constexpr int KP = CHUNKS * CS * STEP_K;                     // K padded to whole passes
constexpr bool RAGGED = KP != K;
constexpr int VECS = ceil_div(KP / 8, THREADS);              // 16-byte pieces of x a thread stages
static_assert(STEPS * R <= 24 || R == 1, "too many loads in flight");
static_assert(EPILOGUE != SWIGLU || R == 1 || R == 2 || R == 4 || R == 8, "gate and up rows come in pairs inside a block of 16");
static_assert(N >= R, "fewer rows than a unit");

// first_output is a unit's first output; the last unit reaches back to stay inside W and drops what others make.
DEVICE int first_output(int unit) { return OUTPUTS % OUT == 0 ? unit * OUT : min(unit * OUT, OUTPUTS - OUT); }

// unit_rows points at the first row of W of a unit's outputs; pass_row is the offset of row r there, up rows behind gate rows.
DEVICE const Weight* unit_rows(const bf16* base, int unit) {
	const Weight* w = reinterpret_cast<const Weight*>(base);
	int o = first_output(unit);
	return w + (size_t)(EPILOGUE == SWIGLU ? gate_row(o) : o) * K;
}
DEVICE constexpr int row_offset(int r) { return (EPILOGUE == SWIGLU && r >= OUT ? r - OUT + 8 : r) * K; }

// load takes the lane's 16 bytes of a row's step; row points at the step.
DEVICE void load(uint4& dst, const Weight* row, int step, int lane) {
	dst = make_uint4(0, 0, 0, 0);
	if (!RAGGED || step * 32 + lane < K / LANE_K) dst = ld_weight(row + lane * LANE_K);
}

DEVICE void dot8(float& acc, uint4 w, uint4 x) {
	acc = fmaf(bf16_lo(w.x), bf16_lo(x.x), acc);
	acc = fmaf(bf16_hi(w.x), bf16_hi(x.x), acc);
	acc = fmaf(bf16_lo(w.y), bf16_lo(x.y), acc);
	acc = fmaf(bf16_hi(w.y), bf16_hi(x.y), acc);
	acc = fmaf(bf16_lo(w.z), bf16_lo(x.z), acc);
	acc = fmaf(bf16_hi(w.z), bf16_hi(x.z), acc);
	acc = fmaf(bf16_lo(w.w), bf16_lo(x.w), acc);
	acc = fmaf(bf16_hi(w.w), bf16_hi(x.w), acc);
}

#ifdef FP8
// dot16 adds the products of 16 columns; low has the first eight of x, high the others. Bytes of W stand in the order of fp8.cuh.
DEVICE void dot16(float& acc, uint4 w, uint4 low, uint4 high) {
#pragma unroll
	for (int j = 0; j < 4; j++) {
		const uint2 pairs = widen_e4m3(word_of(w, j));
		acc = fmaf(f16_lo(pairs.x), bf16_lo(word_of(low, j)), acc);
		acc = fmaf(f16_hi(pairs.x), bf16_lo(word_of(high, j)), acc);
		acc = fmaf(f16_lo(pairs.y), bf16_hi(word_of(low, j)), acc);
		acc = fmaf(f16_hi(pairs.y), bf16_hi(word_of(high, j)), acc);
	}
}
#endif

DEVICE float squares(uint4 v) {
	float s = 0.f;
	dot8(s, v, v);
	return s;
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) gemv(const __grid_constant__ Params p) {
	extern __shared__ uint4 xs[];  // [M][KP/8]; FP8: two planes, the first and the second eight of each 16 columns
	__shared__ float partial[M][WARPS];
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
	const int first = blockIdx.x * WARPS + warp, stride = gridDim.x * WARPS;
	PDL_LAUNCH();

	uint4 w[R][CS];
	if (first < UNITS) {
#pragma unroll
		for (int r = 0; r < R; r++)
#pragma unroll
			for (int s = 0; s < CS; s++) load(w[r][s], unit_rows(p.w, first) + row_offset(r) + s * STEP_K, s, lane);
	}
	uint4 g[NORM ? VECS : 1];
	if (NORM) {
#pragma unroll
		for (int v = 0; v < VECS; v++) {
			int i = v * THREADS + tid;
			if (i < K / 8) g[v] = ld16(p.gamma + i * 8);
		}
	}
	PDL_WAIT();

#pragma unroll
	for (int m = 0; m < M; m++) {
		const bf16* x = p.x + (size_t)token_row(p, m) * K;
		float ss = 0.f;
#pragma unroll
		for (int v = 0; v < VECS; v++) {
			int i = v * THREADS + tid;
			uint4 xv = make_uint4(0, 0, 0, 0);
			if (i < K / 8) {
				xv = ld16(x + i * 8);
				if (NORM) {
					ss += squares(xv);
					xv = make_uint4(mul_bf16x2(xv.x, g[v].x), mul_bf16x2(xv.y, g[v].y), mul_bf16x2(xv.z, g[v].z), mul_bf16x2(xv.w, g[v].w));
				}
			}
			if (i < KP / 8) xs[m * (KP / 8) + (LANE_K == 16 ? i % 2 * (KP / 16) + i / 2 : i)] = xv;
		}
		if (NORM) {
			ss = warp_sum(ss);
			if (lane == 0) partial[m][warp] = ss;
		}
	}
	__syncthreads();
	float scale[M];
#pragma unroll
	for (int m = 0; m < M; m++) {
		scale[m] = 1.f;
		if (NORM) {
			float ss = 0.f;
#pragma unroll
			for (int i = 0; i < WARPS; i++) ss += partial[m][i];
			scale[m] = rsqrtf(ss * (1.f / K) + RMS_EPS);
		}
	}

	Best best;  // of row m = lane
	Draw draw;
	if (EPILOGUE == HEAD_FAST && lane < M) draw = draw_of(p.slot_param, p.slot[lane], p.position[lane]);

	for (int unit = first; unit < UNITS; unit += stride) {
		// Lane o*M + m finishes output o of row m; what it adds to is on its way meanwhile.
		const int out = first_output(unit) + lane / M, m_out = lane % M;
		const bool owner = lane < OUT * M && out >= unit * OUT;
		float old = 0.f;
		if (EPILOGUE == RESIDUAL && owner) old = to_float(p.y[(size_t)m_out * N + out]);
		if (EPILOGUE == STORE_BIAS && owner) old = to_float(p.bias[out]);
		float acc[R][M] = {}, gate[M] = {};
		float row_scale[OUT], up_scale[OUT];
#pragma unroll
		for (int o = 0; o < OUT; o++) {
			row_scale[o] = up_scale[o] = 1.f;
#ifdef FP8
			const int row = first_output(unit) + o;
			row_scale[o] = p.row_scale[EPILOGUE == SWIGLU ? gate_row(row) : row];
			if (EPILOGUE == SWIGLU) up_scale[o] = p.row_scale[gate_row(row) + 8];
#endif
		}
#pragma unroll 1
		for (int pass = 0; pass < PASSES; pass++) {
			const int chunk = CHUNKS == 1 ? 0 : pass % CHUNKS;
			if (PAIR && pass == CHUNKS) {
#pragma unroll
				for (int m = 0; m < M; m++) {
					gate[m] = acc[0][m];
					acc[0][m] = 0.f;
				}
			}
			// Where the next pass's rows lie: further along this row, in the unit's up row, or in the next unit.
			const bool last = pass + 1 == PASSES;
			const bool more = !last || unit + stride < UNITS;
			const int next_chunk = CHUNKS == 1 || chunk + 1 == CHUNKS ? 0 : chunk + 1;
			const Weight* next = unit_rows(p.w, last ? unit + stride : unit);
			if (PAIR && !last && pass + 1 >= CHUNKS) next += 8 * K;
			next += next_chunk * CS * STEP_K;
#ifdef FP8
#pragma unroll
			for (int s = 0; s < CS; s++)
#pragma unroll
				for (int r = 0; r < R; r++) {  // rows share what is read of x
#pragma unroll
					for (int m = 0; m < M; m++) {
						const uint4* x = xs + m * (KP / 8) + (chunk * CS + s) * 32 + lane;
						dot16(acc[r][m], w[r][s], x[0], x[KP / 16]);
					}
					if (more) load(w[r][s], next + row_offset(r) + s * STEP_K, next_chunk * CS + s, lane);
				}
#else
#pragma unroll
			for (int r = 0; r < R; r++)
#pragma unroll
				for (int s = 0; s < CS; s++) {
#pragma unroll
					for (int m = 0; m < M; m++) dot8(acc[r][m], w[r][s], xs[m * (KP / 8) + (chunk * CS + s) * 32 + lane]);
					if (more) load(w[r][s], next + row_offset(r) + s * STEP_K, next_chunk * CS + s, lane);
				}
#endif
		}

		float value = 0.f;  // of this lane's output
#pragma unroll
		for (int o = 0; o < OUT; o++)
#pragma unroll
			for (int m = 0; m < M; m++) {
				float v = warp_sum(acc[o][m]) * scale[m];
				if (EPILOGUE == SWIGLU) {
					float other = warp_sum(PAIR ? gate[m] : acc[R == 1 ? 0 : OUT + o][m]) * scale[m];
					v = PAIR ? swiglu(other * row_scale[o], v * up_scale[o]) : swiglu(v * row_scale[o], other * up_scale[o]);
				} else {
					v *= row_scale[o];
				}
				if (EPILOGUE == HEAD_FAST) {
					if (lane == m && first_output(unit) + o >= unit * OUT) best.add(draw, v, first_output(unit) + o);
				} else if (lane == o * M + m) {
					value = v;
				}
			}
		if (EPILOGUE != HEAD_FAST && owner) {
			if (EPILOGUE == HEAD_LOGITS) p.logits[(size_t)m_out * N + out] = value;
			else p.y[(size_t)m_out * OUTPUTS + out] = to_bf16(value + old);
		}
	}

	if (EPILOGUE == HEAD_FAST) {
		__shared__ Candidate found[WARPS][M];
		if (lane < M) found[warp][lane] = Candidate{best.score, best.token};
		__syncthreads();
		if (tid < M) {
			for (int i = 0; i < WARPS; i++) best.merge(found[i][tid]);
			p.best[(size_t)tid * gridDim.x + blockIdx.x] = Candidate{best.score, best.token};
		}
	}
}
