// rope_kv: for the tokens of prefill rows, QK-norm and RoPE of q in place in qkv (as half_t: attn_prefill alone reads it), and K and V into
// their pages.
// With KV_ONLY q stays as it is: for decode rows with drafts, whose attention reads K and V of the ones before it in the step.
// Grid: tokens, 256 threads, a warp a head at a time. Bytes: 4 QKV_N a token and the K, V written.
#include "attention.cuh"

#define THREADS 256
#ifndef KV_ONLY
#define KV_ONLY 0
#endif

struct Params {
	bf16* qkv;            // [tokens, QKV_N]
	kv_t* kv;             // the layer's cache
	const bf16* qnorm;    // [HEAD_DIM], QK_NORM
	const bf16* knorm;
	const float2* rope;   // [positions, HEAD_DIM/2]
	const i32* tok_pos;   // [tokens]
	const i32* tok_slot;  // [tokens], -1: padding
	const i32* page_table;
	const i32* first;     // the place in the step of the first of these tokens: decode rows come before
	float to_k, to_v;     // what K and V are multiplied by to be stored, KV_FP8
};

extern "C" __global__ void __launch_bounds__(THREADS) rope_kv(const __grid_constant__ Params p) {
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, token = blockIdx.x;
	PDL_LAUNCH();
	PDL_WAIT();
	const i32 slot = p.tok_slot[token], pos = p.tok_pos[token];
	if (slot < 0 || token < *p.first) return;
	bf16* x = p.qkv + (size_t)token * QKV_N;
	const i32 page = p.page_table[(size_t)slot * MAX_PAGES + pos / PAGE];
	float2 cs[PAIRS];
	load_rope(cs, p.rope, pos, lane);
	for (int h = warp + KV_ONLY * HEADS; h < HEADS + 2 * KV_HEADS; h += THREADS / 32) {
		HeadPairs v = load_head(x + h * HEAD_DIM, lane);
		if (h < HEADS + KV_HEADS) rotate(v, h < HEADS ? p.qnorm : p.knorm, cs, lane);
		if (h < HEADS) {
			store_head(reinterpret_cast<half_t*>(x + h * HEAD_DIM), v, 1.f, lane);
			continue;
		}
		const bool is_v = h >= HEADS + KV_HEADS;
		store_head(p.kv + kv_offset(page, is_v, h - HEADS - (is_v ? KV_HEADS : 0), pos % PAGE), v, KV_FP8 ? (is_v ? p.to_v : p.to_k) : 1.f, lane);
	}
}
