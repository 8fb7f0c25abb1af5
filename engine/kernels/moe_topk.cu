// moe_topk: each token's experts and their weights, of its router logits.
//
// Shapes: logits fp32 [tokens, EXPERTS]; expert u16 and weight fp32 [tokens, TOP_K], by ascending expert; padding tokens have experts of NONE.
// Grid ceil(tokens / 8), 256 threads, a warp a token. Bytes: 4 EXPERTS a token.
#include "moe.cuh"

#define THREADS 256

struct Params {
	const float* logits;
	const i32* tok_slot;  // [tokens], -1: padding
	const i32* tok_pos;   // [tokens], UNIFORM
	u16* expert;
	float* weight;
	i32* pair;  // [tokens, TOP_K]: -1 for padding; moe_sort writes the others
	i32 tokens, layer;
};

extern "C" __global__ void __launch_bounds__(THREADS) moe_topk(const __grid_constant__ Params p) {
	const int token = blockIdx.x * (THREADS / 32) + (threadIdx.x >> 5);
	PDL_LAUNCH();
	PDL_WAIT();
	if (token >= p.tokens) return;
	const i32 slot = p.tok_slot[token];
	const Choice mine = choice_of(p.logits + (size_t)token * EXPERTS, slot, p.tok_pos[token], p.layer);
	store_choices(mine, slot, token, p.expert, p.weight, p.pair);
}
