// draft_pair: the draft head's input of token t: its embedding and the hidden state before it, each normed, side by side. Grid: tokens x 2 (the
// embedding, the state), 256 threads; a row stays in registers. Bytes: 8 HIDDEN a token.
// With an index the state is row index[t] of hidden, the head's own output of the pass before, and is copied to x, the residual stream.
// Without, hidden is x. It lets the next kernel start only after its own wait, as embed does, in whose place it stands.
#include "ptx.cuh"

#if !defined(HIDDEN) || !defined(RMS_EPS)
#error "HIDDEN, RMS_EPS"
#endif
#define THREADS 256
constexpr int VECS = ceil_div(HIDDEN / 8, THREADS);
static_assert(HIDDEN % 8 == 0, "HIDDEN: rows are read 16 bytes at a time");

struct Params {
	const i32* tok_id;         // [tokens]
	const bf16* embed;         // [.., HIDDEN]
	const bf16* gamma_token;   // [HIDDEN]
	const bf16* gamma_hidden;  // [HIDDEN]
	const bf16* hidden;        // [.., HIDDEN]
	const i32* index;          // [tokens], pinned, or null
	bf16* x;                   // [tokens, HIDDEN]
	bf16* pairs;               // [tokens, 2, HIDDEN]
};

DEVICE u32 scaled(u32 x, u32 gamma, float scale) { return mul_bf16x2(pack_bf16(bf16_lo(x) * scale, bf16_hi(x) * scale), gamma); }

extern "C" __global__ void __launch_bounds__(THREADS) draft_pair(const __grid_constant__ Params p) {
	__shared__ float partial[THREADS / 32];
	const int tid = threadIdx.x, t = blockIdx.x;
	const bool state = blockIdx.y;
	uint4 g[VECS], v[VECS];
	const bf16* gamma = state ? p.gamma_hidden : p.gamma_token;
#pragma unroll
	for (int j = 0; j < VECS; j++)
		if (tid + j * THREADS < HIDDEN / 8) g[j] = ld16(gamma + 8 * (tid + j * THREADS));
	PDL_WAIT();
	PDL_LAUNCH();
	const bf16* from = p.embed + (size_t)p.tok_id[t] * HIDDEN;
	if (state) from = p.hidden + (size_t)(p.index ? (int)ld_host(p.index + t) : t) * HIDDEN;
	const bool copies = state && p.index;
	float ss = 0.f;
#pragma unroll
	for (int j = 0; j < VECS; j++) {
		const int at = 8 * (tid + j * THREADS);
		if (at >= HIDDEN) continue;
		v[j] = ld16(from + at);
		if (copies) st16(p.x + (size_t)t * HIDDEN + at, v[j]);
		const u32 w[4] = {v[j].x, v[j].y, v[j].z, v[j].w};
#pragma unroll
		for (int i = 0; i < 4; i++) ss += bf16_lo(w[i]) * bf16_lo(w[i]) + bf16_hi(w[i]) * bf16_hi(w[i]);
	}
	ss = warp_sum(ss);
	if ((tid & 31) == 0) partial[tid >> 5] = ss;
	__syncthreads();
	ss = 0.f;
#pragma unroll
	for (int i = 0; i < THREADS / 32; i++) ss += partial[i];
	const float scale = rsqrtf(ss * (1.f / HIDDEN) + RMS_EPS);
	bf16* to = p.pairs + ((size_t)2 * t + state) * HIDDEN;
#pragma unroll
	for (int j = 0; j < VECS; j++)
		if (tid + j * THREADS < HIDDEN / 8)
			st16(to + 8 * (tid + j * THREADS),
			     make_uint4(scaled(v[j].x, g[j].x, scale), scaled(v[j].y, g[j].y, scale), scaled(v[j].z, g[j].z, scale), scaled(v[j].w, g[j].w, scale)));
}
