// moe_gate_up: act[pair] = weight * silu(gate) * up of each pair's expert and token, for at most 16 tokens: reads each needed expert's weights
// once, at the speed of memory.
//
// Shapes: w [EXPERTS, 2 MOE_INTER, HIDDEN] bf16, gate and up interleaved in blocks of 8 rows, xn [M, HIDDEN], act [pairs, MOE_INTER].
// Grid: 1 CTA an SM, 512 threads = 16 warps that split K; shared memory for the warps' sums and xn. Bytes: 4 MOE_INTER HIDDEN an expert that
// is needed. Bound by memory.
// The scheme is gemv_mma's: 16 BLOCKS rows of an expert at a time go through registers as A; its tokens' rows of xn, in shared memory, are B.
// Units are strided over CTAs. The pair's weight is multiplied in before the one rounding, so that moe_down only adds.
// Until the wait returns nothing is known of the experts, and the memory is idle. To bring a part of the next layer's first weight to L2 meanwhile was
// slower (docs/perf-log.md).
// The next kernel may start only after this one's wait: moe_down reads the logits, which the kernel before this one wrote, ahead of its own.
#include "moe.cuh"

#if !defined(M) || !defined(BLOCKS)
#error "M: tokens it is made for, 8 or 16; BLOCKS of 16 rows that a CTA works on at once"
#endif
#define THREADS 512

struct Params {
	const bf16* w;   // [EXPERTS, 2 MOE_INTER, HIDDEN]
	const bf16* xn;  // [tokens, HIDDEN]
	bf16* act;       // [pairs, MOE_INTER]
	Tokens tokens;
};

constexpr int WARPS = THREADS / 32, TILES = M / 8, K = HIDDEN, N = 2 * MOE_INTER;
constexpr int STEPS = ceil_div(ceil_div(K, 32), WARPS);  // of 32 k, of one warp
constexpr int ROUNDS = ceil_div(STEPS, max_of(1, 8 / BLOCKS));
constexpr int DEPTH = ceil_div(STEPS, ROUNDS);  // steps of W in flight
constexpr bool WHOLE = STEPS * WARPS * 32 == K && ROUNDS * DEPTH == STEPS;  // no step runs past K
constexpr int UNIT_ROWS = 16 * BLOCKS, UNITS = N / UNIT_ROWS;  // of an expert
constexpr int OUT = UNIT_ROWS / 2;
constexpr int PER_THREAD = ceil_div(OUT * M, THREADS);
constexpr int PITCH = K + 32;  // of rows in shared memory, against bank conflicts
static_assert(M == 8 || M == 16, "one or two tiles of tokens");
static_assert(N % UNIT_ROWS == 0, "a unit is one expert's");

struct Shared {
	float sum[2][WARPS][BLOCKS][TILES][16][8];  // two units: one barrier a unit is enough
	Dealing dealing;
	alignas(16) bf16 x[1];  // [tokens][PITCH]
};

DEVICE float silu(float v) { return __fdividef(v, 1.f + __expf(-v)); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) moe_gate_up(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int k_lane = warp * STEPS * 32 + t * 8;
	const int first = blockIdx.x, stride = gridDim.x;
	PDL_WAIT();
	PDL_LAUNCH();

	for (int i = tid; i < p.tokens.count * (K / 8); i += THREADS)
		cp_async16(smem_addr(sh.x + i / (K / 8) * PITCH + i % (K / 8) * 8), p.xn + (size_t)i * 8, true);
	cp_async_commit();
	deal(p.tokens, sh.dealing);
	const Routing& routing = sh.dealing.routing;
	const int units = routing.experts * UNITS;
	if (first >= units) {
		cp_async_wait<0>();
		return;
	}
	auto valid = [&](int step) { return WHOLE || (step < STEPS && k_lane + step * 32 < K); };  // else zeros
	auto load_w = [&](uint4(&dst)[BLOCKS][2], const bf16* row, int step) {
#pragma unroll
		for (int i = 0; i < BLOCKS * 2; i++) {
			dst[i / 2][i % 2] = make_uint4(0, 0, 0, 0);
			if (valid(step)) dst[i / 2][i % 2] = ld_weight_once(row + (size_t)i * 8 * K);
		}
	};
	const bf16* w_lane = p.w + (size_t)g * K + k_lane;
	auto unit_rows = [&](int expert, int unit) { return w_lane + ((size_t)expert * N + unit % UNITS * UNIT_ROWS) * K; };
	uint4 w[DEPTH][BLOCKS][2];
	const bf16* here = unit_rows(routing.expert[first / UNITS], first);
#pragma unroll
	for (int d = 0; d < DEPTH; d++) load_w(w[d], here + d * 32, d);

	cp_async_wait<0>();
	__syncthreads();

	int parity = 0;
	for (int unit = first; unit < units; unit += stride, parity ^= 1) {
		const int slot = unit / UNITS, pairs = __popc(routing.mask[slot]), pair = routing.first[slot];
		const int next_unit = unit + stride;
		const bf16* x_row[TILES];
#pragma unroll
		for (int i = 0; i < TILES; i++) x_row[i] = sh.x + routing.token[pair + min(8 * i + g, pairs - 1)] * PITCH + k_lane;
		float c[BLOCKS][TILES][4] = {};
#pragma unroll 1
		for (int round = 0; round < ROUNDS; round++) {
			const bool last = round + 1 == ROUNDS;
			const bool more = !last || next_unit < units;
			const bf16* next = here + DEPTH * 32;
			if (last) next = unit_rows(routing.expert[min(next_unit / UNITS, SMALL_EXPERTS - 1)], next_unit);
			const int next_step = last ? 0 : (round + 1) * DEPTH;
#pragma unroll
			for (int d = 0; d < DEPTH; d++) {
				uint4 x[TILES];
#pragma unroll
				for (int i = 0; i < TILES; i++) {
					x[i] = make_uint4(0, 0, 0, 0);
					if (valid(round * DEPTH + d) && (i == 0 || pairs > 8 * i)) x[i] = *reinterpret_cast<const uint4*>(x_row[i] + (round * DEPTH + d) * 32);
				}
#pragma unroll
				for (int b = 0; b < BLOCKS; b++) {
					const uint4 lo = w[d][b][0], hi = w[d][b][1];
#pragma unroll
					for (int i = 0; i < TILES; i++) {
						mma_bf16(c[b][i], lo.x, hi.x, lo.y, hi.y, x[i].x, x[i].y);
						mma_bf16(c[b][i], lo.z, hi.z, lo.w, hi.w, x[i].z, x[i].w);
					}
				}
				if (more) load_w(w[d], next + d * 32, next_step + d);
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
		__syncthreads();
		// Thread i finishes output i / M of the expert's token i % M.
#pragma unroll
		for (int i = 0; i < PER_THREAD; i++) {
			const int e = tid + i * THREADS, r = e / M, m = e % M;
			if (e >= OUT * M || m >= pairs) continue;
			float gate = 0.f, up = 0.f;
#pragma unroll 4
			for (int j = 0; j < WARPS; j++) {
				gate += sh.sum[parity][j][r / 8][m / 8][r % 8][m % 8];
				up += sh.sum[parity][j][r / 8][m / 8][r % 8 + 8][m % 8];
			}
			p.act[(size_t)(pair + m) * MOE_INTER + unit % UNITS * OUT + r] = to_bf16(routing.weight[pair + m] * silu(gate) * up);
		}
	}
}
