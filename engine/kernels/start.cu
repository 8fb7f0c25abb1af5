// start: the slot state of new sequences from pinned input: sampling parameters, biases, and where penalties are set the counts of prompt
// and output tokens. Launched before the step that begins them. Grid: starts, 256 threads.
#include "plan.cuh"

#if !defined(VOCAB) || !defined(MAX_BIAS)
#error "VOCAB, MAX_BIAS"
#endif
#define THREADS 256

struct StartEntry {
	SlotParams params;
	i32 slot;
	i32 token;  // the slot's last token, where the sequence's first row here is a decode row
	i32 bias_first;
	i32 prompt_first, prompt;
	i32 output_first, output;
	i32 pad[3];
};
static_assert(sizeof(StartEntry) == 96, "StartEntry is mirrored in Go");

struct Params {
	const u8* starts[2];        // pinned: StartEntry [grid], then the pools; copy step & 1 is this step's
	const u64* step;
	u32 bias_at, token_at;      // bytes into a copy
	SlotParams* slot_param;     // [slots]
	TokenBias* bias;            // [slots, MAX_BIAS]
	u16* counts;                // [slots, VOCAB]: bit 15 in the prompt, below it times in the output
	i32* slot_token;
};

// count adds one to a token's output count, up to 32767. Neighbours share a word, so it is changed whole.
DEVICE void count(u16* counts, i32 token) {
	u32* word = reinterpret_cast<u32*>(counts) + (token >> 1);
	const u32 one = token & 1 ? 0x10000u : 1u;
	for (u32 old = *word;;) {
		if ((old & one * 0x7FFFu) == one * 0x7FFFu) return;
		const u32 seen = atomicCAS(word, old, old + one);
		if (seen == old) return;
		old = seen;
	}
}

extern "C" __global__ void __launch_bounds__(THREADS) start(const __grid_constant__ Params p) {
	const int tid = threadIdx.x;
	const u8* input = p.starts[*p.step & 1];
	const StartEntry e = reinterpret_cast<const StartEntry*>(input)[blockIdx.x];
	const TokenBias* bias_pool = reinterpret_cast<const TokenBias*>(input + p.bias_at);
	const i32* token_pool = reinterpret_cast<const i32*>(input + p.token_at);
	const i32 slot = e.slot;
	if (tid == 0) {
		p.slot_param[slot] = e.params;
		p.slot_token[slot] = e.token;
	}
	const int biases = e.params.num_bias;
	for (int i = tid; i < biases; i += THREADS) p.bias[(size_t)slot * MAX_BIAS + i] = bias_pool[e.bias_first + i];
	if (!(e.params.flags & SLOT_PENALTIES)) return;
	// Rows of an odd vocabulary share a word with their neighbours: count in whole words of the row's own, rounded up.
	u16* counts = p.counts + (size_t)slot * (VOCAB + VOCAB % 2);
	for (int i = tid; i < VOCAB; i += THREADS) counts[i] = 0;
	__syncthreads();
	for (int i = tid; i < e.prompt; i += THREADS) {
		const i32 token = token_pool[e.prompt_first + i];
		atomicOr(reinterpret_cast<u32*>(counts) + (token >> 1), token & 1 ? 0x80000000u : 0x8000u);
	}
	__syncthreads();
	for (int i = tid; i < e.output; i += THREADS) count(counts, token_pool[e.output_first + i]);
}
