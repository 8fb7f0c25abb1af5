// moe_down: x[token] += act[pair] w_expert^T over the token's pairs, for at most 16 tokens: reads each needed expert's weights once, at the speed of
// memory.
//
// Shapes: w [EXPERTS, HIDDEN, MOE_INTER] bf16, act [pairs, MOE_INTER] (weighted), x [M, HIDDEN]. Grid: 1 CTA an SM or fewer, 512 threads; shared
// memory: the warps' sums, the dealing and, STAGED, act.
// Bytes: 2 MOE_INTER HIDDEN an expert that is needed. Bound by memory.
// A CTA has 16 rows of every expert: k runs over all experts' columns, one behind the other, and the warps take steps of 64 in turn. The columns
// of B are the step's tokens, zeros where a token has not this expert, so that one accumulator sums over experts in ascending order and
// nothing is left to combine but the warps' sums, in warp order.
// Tokens are dealt and the first weights are asked for before the wait: moe_router, which wrote the logits, ended before moe_gate_up let this kernel
// start.
// STAGED: a step's product takes less time than its act is on its way from L2, so all of act is brought to shared memory at once. More than 8 tokens
// have too much of it.
#include "moe.cuh"

#if !defined(M) || !defined(STAGED)
#error "M: tokens it is made for, 8 or 16; STAGED"
#endif
#define THREADS 512

struct Params {
	const bf16* w;    // [EXPERTS, HIDDEN, MOE_INTER]
	const bf16* act;  // [pairs, MOE_INTER]
	bf16* x;          // [tokens, HIDDEN]
	Tokens tokens;
};

constexpr int WARPS = THREADS / 32, TILES = M / 8, K = MOE_INTER;
constexpr int STEPS = ceil_div(K, 64);  // of an expert
constexpr int DEPTH = (TILES == 1 ? 4 : 3) + STAGED;  // steps of W in flight
constexpr int PITCH = K + 32;  // of rows in shared memory, against bank conflicts
constexpr int BLOCKS = ceil_div(HIDDEN, 16);
static_assert(M == 8 || M == 16, "one or two tiles of tokens");
static_assert(HIDDEN >= 16, "fewer rows than a block");

struct Shared {
	float sum[WARPS][TILES][16][8];
	Dealing dealing;
	alignas(16) bf16 act[1];  // [pairs][PITCH], STAGED
};

// first_row is a block's first row; the last block reaches back to stay inside w and drops what the one before makes.
DEVICE int first_row(int block) { return HIDDEN % 16 == 0 ? block * 16 : min(block * 16, HIDDEN - 16); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) moe_down(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	PDL_LAUNCH();
	deal(p.tokens, sh.dealing);
	const Routing& routing = sh.dealing.routing;
	const int total = routing.experts * STEPS, steps = total > warp ? ceil_div(total - warp, WARPS) : 0;  // the warp's: warp, warp + WARPS, ...
	auto load_w = [&](uint4(&dst)[4], int block, int step) {
		const int s = warp + step * WARPS, slot = s / STEPS, k = (s - slot * STEPS) * 64 + t * 8;
		const bf16* row = p.w + ((size_t)routing.expert[slot] * HIDDEN + first_row(block) + g) * K + k;
#pragma unroll
		for (int i = 0; i < 4; i++) {
			dst[i] = make_uint4(0, 0, 0, 0);
			if (K % 64 == 0 || k + i / 2 * 32 < K) dst[i] = ld_weight_once(row + i % 2 * 8 * K + i / 2 * 32);
		}
	};
	auto load_x = [&](uint4(&dst)[TILES][2], int step) {
		const int s = warp + step * WARPS, slot = s / STEPS, k = (s - slot * STEPS) * 64 + t * 8;
		const u32 mask = routing.mask[slot];
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			dst[i][0] = dst[i][1] = make_uint4(0, 0, 0, 0);
			const int token = 8 * i + g;
			if (!(mask >> token & 1)) continue;
			const int pair = routing.first[slot] + __popc(mask & ((1u << token) - 1));
			const bf16* from = STAGED ? sh.act + pair * PITCH + k : p.act + (size_t)pair * K + k;
			if (K % 64 == 0 || k < K) dst[i][0] = STAGED ? *reinterpret_cast<const uint4*>(from) : ld16_l2(from);
			if (K % 64 == 0 || k + 32 < K) dst[i][1] = STAGED ? *reinterpret_cast<const uint4*>(from + 32) : ld16_l2(from + 32);
		}
	};
	uint4 w[DEPTH][4], x[TILES][2];
	auto begin = [&](int block) {
#pragma unroll
		for (int d = 0; d < DEPTH; d++)
			if (d < steps) load_w(w[d], block, d);
	};
	if (blockIdx.x < BLOCKS) begin(blockIdx.x);
	PDL_WAIT();
	if (STAGED && routing.experts > 0) {
		const int pairs = routing.first[routing.experts - 1] + __popc(routing.mask[routing.experts - 1]);
		for (int i = tid; i < pairs * (K / 8); i += THREADS)
			cp_async16(smem_addr(sh.act + i / (K / 8) * PITCH + i % (K / 8) * 8), p.act + (size_t)i * 8, true);
		cp_async_commit();
		cp_async_wait<0>();
		__syncthreads();
	}

	for (int block = blockIdx.x; block < BLOCKS; block += gridDim.x) {
		float c[TILES][4] = {};
		if (steps > 0) load_x(x, 0);
#pragma unroll 1
		for (int at = 0; at < steps; at += DEPTH) {
#pragma unroll
			for (int d = 0; d < DEPTH; d++) {
				if (at + d >= steps) break;
				uint4 now[TILES][2];
#pragma unroll
				for (int i = 0; i < TILES; i++) {
					now[i][0] = x[i][0];
					now[i][1] = x[i][1];
				}
				if (at + d + 1 < steps) load_x(x, at + d + 1);
#pragma unroll
				for (int i = 0; i < TILES; i++)
#pragma unroll
					for (int h = 0; h < 2; h++) {
						const uint4 lo = w[d][2 * h], hi = w[d][2 * h + 1], b = now[i][h];
						mma_bf16(c[i], lo.x, hi.x, lo.y, hi.y, b.x, b.y);
						mma_bf16(c[i], lo.z, hi.z, lo.w, hi.w, b.z, b.w);
					}
				if (at + d + DEPTH < steps) load_w(w[d], block, at + d + DEPTH);
			}
		}
		if (block + gridDim.x < BLOCKS) begin(block + gridDim.x);
#pragma unroll
		for (int i = 0; i < TILES; i++) {
			float(&s)[16][8] = sh.sum[warp][i];
			*reinterpret_cast<float2*>(&s[g][2 * t]) = make_float2(c[i][0], c[i][1]);
			*reinterpret_cast<float2*>(&s[g + 8][2 * t]) = make_float2(c[i][2], c[i][3]);
		}
		// Thread i finishes row i % 16 of token i / 16, and what it adds to is on its way while the warps meet.
		const int m = tid / 16, row = first_row(block) + tid % 16;
		const bool owner = tid < 16 * M && m < p.tokens.count && row >= block * 16;
		float value = 0.f;
		if (owner) value = to_float(bf16{ld2(p.x + (size_t)m * HIDDEN + row)});
		__syncthreads();
		if (owner) {
#pragma unroll 4
			for (int j = 0; j < WARPS; j++) value += sh.sum[j][m / 8][tid % 16][m % 8];
			p.x[(size_t)m * HIDDEN + row] = to_bf16(value);
		}
		__syncthreads();  // the sums have been read
	}
}
