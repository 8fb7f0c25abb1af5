// w4_gemm: y[m] = epilogue(x[m] W^T) for more tokens than w4_gemv takes, with weights of four bits (w4.cuh), on the matrix units.
//
// Shapes: W [N, K], x [M, K] bf16 (normed), y [M, N]. Grid: CTAs that share the steps, token tiles; THREADS/32 warps of BLOCKS blocks of 16
// rows each; shared memory: STAGES of (the warps' rows of W, TOKENS of x) x 128 columns. Bytes: NK/2 + 4NK/GROUP + 2M(K+N), and x again for each
// tile of rows, from L2; FLOPs 2MNK.
// W and x come through shared memory by asynchronous copies, weights become the A of mma.m16n8k16 in registers, less their zero point and
// exact; the scale multiplies the sums of a group in fp32. Tiles (rows) times steps (128 columns) form one sequence that is cut into
// equal runs ("stream-K", arXiv:2301.03598); a tile that several CTAs share is summed by the last of them to arrive, in the order of columns:
// the same bits every time. W for the first stages is asked for before the wait on the previous kernel.
#include "linear.cuh"
#include "w4.cuh"

#if !defined(BLOCKS) || !defined(TOKENS) || !defined(STAGES) || !defined(THREADS)
#error "BLOCKS of 16 rows of a warp; TOKENS of a tile; STAGES; THREADS"
#endif
constexpr int ROWS = THREADS / 32 * 16 * BLOCKS;
constexpr int TILES = ceil_div(N, ROWS);      // of rows
constexpr int COLUMNS = TOKENS / 8;           // of C, by eights
constexpr int OUTPUTS = EPILOGUE == SWIGLU ? N / 2 : N;
static_assert(!NORM && !IS_HEAD, "x is normed before; the head is not kept in four bits");

struct Params {
	const uint4* w;     // [N/8, KB, 32 lanes]
	const u32* scale;   // [N/8, ROW_GROUPS, 8]
	const bf16* x;      // [tokens, K]
	const bf16* bias;   // [N], STORE_BIAS
	bf16* y;
	float4* part;       // [CTAs, 2, BLOCKS*COLUMNS, THREADS]: sums of tiles that are shared
	u32* arrived;       // [token tiles, TILES], 0 before and after
	i32 tokens;         // M
	i32 pad;
};

struct Stage {
	uint4 w[ROWS / 8][32];
	uint4 x[TOKENS][16];  // pieces 4..7 of each eight are exchanged with 0..3 where the token is odd: eight lanes' reads meet in no bank
	uint4 scale[ROWS / 8][PER_STEP][2];
};

// A CTA's run of steps.
DEVICE int share_begin(int cta) { return (int)((i64)TILES * KB * cta / gridDim.x); }
DEVICE int share_of(int step) { return (int)(((i64)(step + 1) * gridDim.x - 1) / (TILES * KB)); }  // the CTA whose run holds step

// pair_rows gives each lane rows g & ~1 and g | 1 of one token: an even g keeps the first of its two tokens, an odd one the second.
DEVICE float2 pair_rows(float first, float second, bool odd) {
	const float got = __shfl_xor_sync(~0u, odd ? first : second, 4);
	return odd ? make_float2(got, second) : make_float2(first, got);
}

DEVICE void finish(const Params& p, int tile, const float (&total)[BLOCKS][COLUMNS][4]) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
	const bool odd = g & 1;
#pragma unroll
	for (int b = 0; b < BLOCKS; b++) {
		const int row = tile * ROWS + (warp * BLOCKS + b) * 16;
#pragma unroll
		for (int i = 0; i < COLUMNS; i++) {
			const float(&v)[4] = total[b][i];
			const int m = blockIdx.y * TOKENS + 8 * i + 2 * t + odd;
#pragma unroll
			for (int r = 0; r < (EPILOGUE == SWIGLU ? 1 : 2); r++) {
				const float2 out = EPILOGUE == SWIGLU ? pair_rows(swiglu(v[0], v[2]), swiglu(v[1], v[3]), odd) : pair_rows(v[2 * r], v[2 * r + 1], odd);
				const int o = (EPILOGUE == SWIGLU ? row / 2 : row + 8 * r) + (g & ~1);
				if (m >= p.tokens || o >= OUTPUTS) continue;
				u32* to = reinterpret_cast<u32*>(p.y + (size_t)m * OUTPUTS + o);
				u32 add = 0;
				if (EPILOGUE == STORE_BIAS) add = *reinterpret_cast<const u32*>(p.bias + o);
				if (EPILOGUE == RESIDUAL) add = ld4_l2(to);  // not from L1: another SM wrote it, and this kernel may have begun before that
				*to = pack_bf16(out.x + bf16_lo(add), out.y + bf16_hi(add));
			}
		}
	}
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) w4_gemm(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	__shared__ u32 arrived;
	Stage* stages = reinterpret_cast<Stage*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int begin = share_begin(blockIdx.x), steps = share_begin(blockIdx.x + 1) - begin;
	PDL_LAUNCH();

	auto load_w = [&](int i) {
		Stage& s = stages[i % STAGES];
		const int first = (begin + i) / KB * (ROWS / 8), kb = (begin + i) % KB;
#pragma unroll
		for (int e = tid; e < ROWS * 4; e += THREADS) {
			const int rows = min(first + e / 32, N / 8 - 1);
			cp_async16(smem_addr(&s.w[e / 32][e % 32]), p.w + ((size_t)rows * KB + kb) * 32 + e % 32, first + e / 32 < N / 8);
		}
		for (int e = tid; e < ROWS / 4 * PER_STEP; e += THREADS) {
			const int at = e / 2 / PER_STEP, q = e / 2 % PER_STEP, rows = min(first + at, N / 8 - 1);
			cp_async16(smem_addr(&s.scale[at][q][e % 2]), p.scale + (rows * ROW_GROUPS + group_of(kb, q)) * 8 + e % 2 * 4, first + at < N / 8);
		}
	};
	auto load_x = [&](int i) {
		Stage& s = stages[i % STAGES];
		const int k0 = (begin + i) % KB * 128;
#pragma unroll
		for (int e = tid; e < TOKENS * 16; e += THREADS) {
			const int token = e / 16, m = blockIdx.y * TOKENS + token, k = k0 + e % 16 * 8;
			const bool valid = m < p.tokens && (K % 128 == 0 || k < K);
			cp_async16(smem_addr(&s.x[token][e % 16 ^ (token & 1) << 2]), p.x + (valid ? (size_t)m * K + k : 0), valid);
		}
	};
	for (int i = 0; i < min(steps, STAGES - 1); i++) load_w(i);
	PDL_WAIT();
	for (int i = 0; i < STAGES - 1; i++) {
		if (i < steps) load_x(i);
		cp_async_commit();
	}

	float total[BLOCKS][COLUMNS][4] = {};
	for (int i = 0; i < steps; i++) {
		cp_async_wait<STAGES - 2>();
		__syncthreads();
		if (i + STAGES - 1 < steps) {
			load_w(i + STAGES - 1);
			load_x(i + STAGES - 1);
		}
		cp_async_commit();

		const Stage& s = stages[i % STAGES];
		uint4 w[BLOCKS][2];
#pragma unroll
		for (int b = 0; b < BLOCKS; b++)
#pragma unroll
			for (int r = 0; r < 2; r++) w[b][r] = s.w[(warp * BLOCKS + b) * 2 + r][lane];
#pragma unroll
		for (int q = 0; q < PER_STEP; q++) {
			u32 packed[BLOCKS][2], zero[BLOCKS][2];
			float c[BLOCKS][COLUMNS][4] = {};
#pragma unroll
			for (int b = 0; b < BLOCKS; b++)
#pragma unroll
				for (int r = 0; r < 2; r++) {
					packed[b][r] = reinterpret_cast<const u32*>(s.scale[(warp * BLOCKS + b) * 2 + r][q])[g];
					zero[b][r] = zero_pair(packed[b][r]);
				}
#pragma unroll
			for (int j = q * 4 / PER_STEP; j < (q + 1) * 4 / PER_STEP; j++) {
				u32 a[BLOCKS][4][2];
#pragma unroll
				for (int b = 0; b < BLOCKS; b++)
#pragma unroll
					for (int r = 0; r < 2; r++)
#pragma unroll
						for (int e = 0; e < 4; e++) a[b][e][r] = whole_pair(word_of(w[b][r], j), e, zero[b][r]);
#pragma unroll
				for (int first = 0; first < COLUMNS; first += 4) {  // four at a time: no product waits for the one before it
					uint4 x[4];
#pragma unroll
					for (int n = 0; n < 4; n++) x[n] = s.x[8 * (first + n) + g][4 * j + t ^ (g & 1) << 2];
#pragma unroll
					for (int n = 0; n < 4; n++)
#pragma unroll
						for (int b = 0; b < BLOCKS; b++) mma_bf16(c[b][first + n], a[b][0][0], a[b][0][1], a[b][1][0], a[b][1][1], x[n].x, x[n].y);
#pragma unroll
					for (int n = 0; n < 4; n++)
#pragma unroll
						for (int b = 0; b < BLOCKS; b++) mma_bf16(c[b][first + n], a[b][2][0], a[b][2][1], a[b][3][0], a[b][3][1], x[n].z, x[n].w);
				}
			}
#pragma unroll
			for (int b = 0; b < BLOCKS; b++)
#pragma unroll
				for (int n = 0; n < COLUMNS; n++)
#pragma unroll
					for (int e = 0; e < 4; e++) total[b][n][e] = fmaf(WHOLE_SCALE * scale_of(packed[b][e / 2]), c[b][n][e], total[b][n][e]);
		}

		const int tile = (begin + i) / KB;
		if (i + 1 < steps && (begin + i + 1) % KB != 0) continue;  // the tile goes on
		const int first = share_of(tile * KB), last = share_of(tile * KB + KB - 1);
		bool whole = first == last;
		if (!whole) {
			// A CTA has at most two shared tiles: the one its run begins in, and the one it ends in.
			auto part_of = [&](int cta) {
				const size_t slot = 2 * (blockIdx.y * gridDim.x + cta) + (share_begin(cta) / KB != tile);
				return p.part + slot * (BLOCKS * COLUMNS * THREADS) + tid;
			};
			float4* mine = part_of(blockIdx.x);
#pragma unroll
			for (int n = 0; n < BLOCKS * COLUMNS; n++) {
				const float(&v)[4] = total[n / COLUMNS][n % COLUMNS];
				mine[n * THREADS] = make_float4(v[0], v[1], v[2], v[3]);
			}
			__syncthreads();
			if (tid == 0) arrived = atom_inc_acq_rel(p.arrived + blockIdx.y * TILES + tile);
			__syncthreads();
			whole = arrived == last - first;
			if (whole) {
				if (tid == 0) p.arrived[blockIdx.y * TILES + tile] = 0;
#pragma unroll
				for (int n = 0; n < BLOCKS * COLUMNS; n++)
#pragma unroll
					for (int e = 0; e < 4; e++) total[n / COLUMNS][n % COLUMNS][e] = 0.f;
#pragma unroll 2  // their loads are on the way together
				for (int cta = first; cta <= last; cta++) {
					const float4* from = part_of(cta);
#pragma unroll
					for (int n = 0; n < BLOCKS * COLUMNS; n++) {
						const uint4 v = ld16_l2(from + n * THREADS);
						float(&to)[4] = total[n / COLUMNS][n % COLUMNS];
						to[0] += __uint_as_float(v.x);
						to[1] += __uint_as_float(v.y);
						to[2] += __uint_as_float(v.z);
						to[3] += __uint_as_float(v.w);
					}
				}
			}
		}
		if (whole) finish(p, tile, total);
#pragma unroll
		for (int n = 0; n < BLOCKS * COLUMNS; n++)
#pragma unroll
			for (int e = 0; e < 4; e++) total[n / COLUMNS][n % COLUMNS][e] = 0.f;
	}
}
