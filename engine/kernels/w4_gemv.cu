// w4_gemv: y[m] = epilogue(norm?(x[m]) W^T) for M <= 16 tokens with weights of four bits (w4.cuh), on the matrix units: reads W once at the
// speed of memory, which asks for four times the arithmetic a byte that bf16 does.
//
// Shapes: W [N, K], x [M, K] bf16, y [M, N]. Grid: 1 CTA an SM or fewer, 512 threads = 16 warps that split K. Shared memory: the ring, the warps'
// sums, x. Bytes: NK/2 + 4NK/GROUP + 2M(K+N); FLOPs 2MNK. A lane takes 112 to 122 instructions
// for a step (16 rows, 128 columns, 8 words of its own), 43 to 48 of them integer ones.
// As gemv_mma: 16 rows of W are the A of mma.m16n8k16, tokens its columns; the warps' sums meet in shared memory, in warp order; one CTA fills
// an SM. The zero point times the group's sum of x comes off in fp32 once for each group, where the scale multiplies: sums of groups are what a
// product with ones gives. A warp's share of x is read, normed, lifted and summed once for all rows, and stays in registers or shared memory.
// W comes by asynchronous copies into a ring of each warp's own, where a lane finds what it asked for: 190 KB of an SM are on their way before the
// wait on the previous kernel, and memory streams on while x, which takes 2 to 3 us to arrive, be normed and multiplied, is waited for.
// With 64 KB, in registers, it stood still meanwhile: docs/perf-log.md.
#include "linear.cuh"
#include "w4.cuh"

#if !defined(RING) || !defined(X_SHARED)
#error "RING: steps of 128 columns that a warp has room for; X_SHARED: 1 x is kept in shared memory, 0 in registers"
#endif
#define THREADS 512

constexpr int WARPS = THREADS / 32;
constexpr int TILES = ceil_div(M, 8);             // token tiles
constexpr int STEPS = ceil_div(KB, WARPS);        // of a warp for a unit
constexpr int PIECES = STEPS * 4;                 // of 32 columns
constexpr int UNITS = ceil_div(N, 16);
constexpr int OUT = EPILOGUE == SWIGLU ? 8 : 16;  // outputs of a unit
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
constexpr int PER_THREAD = ceil_div(OUT * TILES * 8, THREADS);
constexpr bool WHOLE = STEPS * WARPS * 128 == K;  // no step runs past K
static_assert(M <= 16, "more tokens than two tiles");
static_assert(RING >= 2, "a step is read while another comes");
static_assert(!IS_HEAD, "the head is not kept in four bits");

struct Params {
	const uint4* w;     // [N/8, KB, 32 lanes]
	const u32* scale;   // [N/8, ROW_GROUPS, 8]
	const bf16* x;      // [tokens, K]
	const bf16* gamma;  // [K], NORM
	const bf16* bias;   // [N], STORE_BIAS
	bf16* y;            // [M, N], SwiGLU [M, N/2]; RESIDUAL adds to it
	const u8* next;     // weights that the next product begins with
	i32 tokens;         // at most M
	u32 next_bytes;     // of which each CTA brings a part to the L2 when its own loads are on their way; 0: none
};

struct Slot {  // a step of a unit
	uint4 w[2][32];
	u32 scale[2][PER_STEP][8];
};
struct Shared {
	Slot ring[WARPS][RING];
	float sum[2][WARPS][TILES][16][8];  // two units: one barrier a unit is enough
	float squares[WARPS][16];
	float scale[16];
	uint4 gamma[NORM ? ceil_div(K, 8) : 1];
	float2 group_sum[X_SHARED ? WARPS : 1][X_SHARED ? STEPS * PER_STEP : 1][TILES][4];
};  // behind it, X_SHARED: uint4 x[WARPS][tokens][PIECES * 4]

extern "C" __global__ void __launch_bounds__(THREADS, 1) w4_gemv(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int first_step = warp * STEPS;
	const int first = blockIdx.x, stride = gridDim.x;
	PDL_LAUNCH();

	// The step that is asked for next: of a unit, and where it goes.
	int load_unit = first, load_slot = 0;
	const int scale_row = lane / (2 * PER_STEP), scale_part = lane / 2 % PER_STEP;  // lanes below 4 * PER_STEP bring scales
	auto load = [&](int step) {
		if (load_unit >= UNITS) return;
		Slot& s = sh.ring[warp][load_slot];
		const bool valid = WHOLE || (step < STEPS && first_step + step < KB);
		const int at = WHOLE ? first_step + step : min(first_step + step, KB - 1);
#pragma unroll
		for (int r = 0; r < 2; r++) {
			const bool there = valid && (N % 16 == 0 || load_unit * 2 + r < N / 8);
			const int rows = N % 16 == 0 ? load_unit * 2 + r : min(load_unit * 2 + r, N / 8 - 1);
			cp_async16(smem_addr(&s.w[r][lane]), p.w + ((size_t)rows * KB + at) * 32 + lane, there);
		}
		if (lane < 4 * PER_STEP) {
			const bool there = valid && (N % 16 == 0 || load_unit * 2 + scale_row < N / 8);
			const int rows = N % 16 == 0 ? load_unit * 2 + scale_row : min(load_unit * 2 + scale_row, N / 8 - 1);
			cp_async16(smem_addr(&s.scale[scale_row][scale_part][lane % 2 * 4]), p.scale + (rows * ROW_GROUPS + group_of(at, scale_part)) * 8 + lane % 2 * 4, there);
		}
	};
	auto loaded = [&](bool unit_ends) {  // behind each load
		cp_async_commit();
		load_slot = load_slot + 1 == RING ? 0 : load_slot + 1;
		if (unit_ends) load_unit += stride;
	};
	bool ahead = tid == 0 && p.next_bytes > 0;
	auto look_ahead = [&] {
		if (!ahead || load_unit < UNITS) return;  // all of this CTA's weights are on their way
		ahead = false;
		const u32 share = ceil_div(p.next_bytes, gridDim.x * 128) * 128, to = min((blockIdx.x + 1) * share, p.next_bytes);
		for (u32 at = blockIdx.x * share; at < to; at += 8192) prefetch_l2(p.next + at, min(8192u, to - at), policy_evict_last());
	};
#pragma unroll
	for (int i = 0; i < RING - 1; i++) {
		load(i % STEPS);
		loaded((i + 1) % STEPS == 0);
	}
	look_ahead();
	if (NORM)
		for (int i = tid; i < K / 8; i += THREADS) sh.gamma[i] = ld16(p.gamma + i * 8);
	PDL_WAIT();
	if (NORM) __syncthreads();

	uint4 x[X_SHARED ? 1 : PIECES][TILES];
	uint4* const own_x = reinterpret_cast<uint4*>(&sh + 1) + (size_t)warp * p.tokens * PIECES * 4;
	auto shared_x = [&](int piece, int i) -> uint4& { return own_x[(i * 8 + g) * (PIECES * 4) + piece * 4 + t]; };
	auto read_x = [&](uint4(&dst)[TILES], int piece) {
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			dst[i] = make_uint4(0, 0, 0, 0);
			if (i * 8 + g < p.tokens) dst[i] = shared_x(piece, i);
		}
	};
	if (X_SHARED) {
		const int count = p.tokens * PIECES * 4, k0 = first_step * 128;
#pragma unroll 4
		for (int i = lane; i < count; i += 32) {
			const int k = k0 + i % (PIECES * 4) * 8;
			own_x[i] = WHOLE || k < K ? ld16(p.x + (size_t)(i / (PIECES * 4)) * K + k) : make_uint4(0, 0, 0, 0);
		}
		__syncwarp();
	} else {
#pragma unroll
		for (int s = 0; s < PIECES; s++)
#pragma unroll
			for (int i = 0; i < TILES; i++) {
				const int k = first_step * 128 + s * 32 + t * 8;
				x[X_SHARED ? 0 : s][i] = make_uint4(0, 0, 0, 0);
				if (i * 8 + g < p.tokens && (WHOLE || k < K)) x[X_SHARED ? 0 : s][i] = ld16(p.x + (size_t)(i * 8 + g) * K + k);
			}
	}

	// What is done to x once: it is normed but for its RMS, and each group summed.
	float squares[NORM ? TILES : 1][4] = {};
	float group_sum[X_SHARED ? 1 : STEPS * PER_STEP][TILES][2];
#pragma unroll
	for (int q = 0; q < STEPS * PER_STEP; q++) {
		float sum[TILES][4] = {};
#pragma unroll
		for (int s = q * 4 / PER_STEP; s < (q + 1) * 4 / PER_STEP; s++) {
			uint4(&v)[TILES] = x[X_SHARED ? 0 : s];
			if (X_SHARED) read_x(v, s);
			if (NORM) {
				const int at = first_step * 16 + s * 4 + t;
				const uint4 gm = sh.gamma[WHOLE ? at : min(at, K / 8 - 1)];
#pragma unroll
				for (int i = 0; i < TILES; i++) {  // squares are on the diagonal of X X^T
					const uint4 low = v[0], high = TILES == 2 ? v[TILES - 1] : make_uint4(0, 0, 0, 0);
					mma_bf16(squares[i], low.x, high.x, low.y, high.y, v[i].x, v[i].y);
					mma_bf16(squares[i], low.z, high.z, low.w, high.w, v[i].z, v[i].w);
				}
#pragma unroll
				for (int i = 0; i < TILES; i++) v[i] = mul_bf16x8(v[i], gm);
			}
#pragma unroll
			for (int i = 0; i < TILES; i++) {  // every row of the product gets the sums of tokens 2t and 2t+1
				constexpr u32 ones = 0x00010001u, ones_of_odd = 0x00100010u;  // tiny_pair's
				v[i] = lift(v[i]);
				if (X_SHARED && i * 8 + g < p.tokens) shared_x(s, i) = v[i];
				mma_bf16(sum[i], ones, ones, ones_of_odd, ones_of_odd, v[i].x, v[i].y);
				mma_bf16(sum[i], ones, ones, ones_of_odd, ones_of_odd, v[i].z, v[i].w);
			}
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
	if (NORM && g >> 1 == t) {  // token g is at column 2t or 2t+1
		sh.squares[warp][g] = g & 1 ? squares[0][1] : squares[0][0];
		if (TILES == 2) sh.squares[warp][8 + g] = g & 1 ? squares[TILES - 1][3] : squares[TILES - 1][2];
	}

	int parity = 0, slot = 0;
	for (int unit = first; unit < UNITS; unit += stride) {
		float total[TILES][4] = {};
#pragma unroll
		for (int d = 0; d < STEPS; d++) {
			cp_async_wait<RING - 2>();
			__syncwarp();  // scales came by other lanes; and all have read the slot that is filled now
			load((d + RING - 1) % STEPS);
			loaded((d + RING) % STEPS == 0);
			const Slot& s = sh.ring[warp][slot];
			slot = slot + 1 == RING ? 0 : slot + 1;
			const uint4 upper = s.w[0][lane], lower = s.w[1][lane];
#pragma unroll
			for (int q = 0; q < PER_STEP; q++) {
				float c[TILES][4] = {};
#pragma unroll
				for (int j = q * 4 / PER_STEP; j < (q + 1) * 4 / PER_STEP; j++) {
					uint4 xv[TILES];
					if (X_SHARED) {
						read_x(xv, d * 4 + j);
					} else {
#pragma unroll
						for (int i = 0; i < TILES; i++) xv[i] = x[X_SHARED ? 0 : d * 4 + j][i];
					}
					u32 a[4][2];
#pragma unroll
					for (int i = 0; i < 4; i++) {
						a[i][0] = tiny_pair(word_of(upper, j), i);
						a[i][1] = tiny_pair(word_of(lower, j), i);
					}
#pragma unroll
					for (int i = 0; i < TILES; i++) {
						mma_bf16(c[i], a[0][0], a[0][1], a[1][0], a[1][1], xv[i].x, xv[i].y);
						mma_bf16(c[i], a[2][0], a[2][1], a[3][0], a[3][1], xv[i].z, xv[i].w);
					}
				}
				float sum[TILES][2];  // of tokens 2t and 2t+1
#pragma unroll
				for (int i = 0; i < TILES; i++) {
					float2 v;
					if (X_SHARED) v = sh.group_sum[warp][d * PER_STEP + q][i][t];
					else v = make_float2(group_sum[X_SHARED ? 0 : d * PER_STEP + q][i][0], group_sum[X_SHARED ? 0 : d * PER_STEP + q][i][1]);
					sum[i][0] = v.x;
					sum[i][1] = v.y;
				}
#pragma unroll
				for (int r = 0; r < 2; r++) {
					const u32 packed = s.scale[r][q][g];
					const float scale = scale_of(packed), zero = zero_of(packed);
#pragma unroll
					for (int i = 0; i < TILES; i++)
#pragma unroll
						for (int e = 0; e < 2; e++)
							total[i][2 * r + e] = fmaf(scale, fmaf(-zero, sum[i][e], c[i][2 * r + e]), total[i][2 * r + e]);
				}
			}
		}

		look_ahead();
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
				old[i] = EPILOGUE == RESIDUAL ? __uint_as_float(ld2_l2(p.y + (size_t)m * N + o) << 16) : to_float(p.bias[o]);
		}
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
#pragma unroll
				for (int j = 0; j < WARPS; j++) s += sh.sum[parity][j][m / 8][row][m % 8];
				return s * (NORM ? UNLIFT * sh.scale[m] : UNLIFT);
			};
			const float value = EPILOGUE == SWIGLU ? swiglu(sum_of(r), sum_of(r + 8)) : sum_of(r);
			p.y[(size_t)m * OUTPUTS + o] = to_bf16(value + old[i]);
		}
		parity ^= 1;
	}
}
