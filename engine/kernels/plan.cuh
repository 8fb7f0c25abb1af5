// What the host tells the device for a step, and what the device keeps for a sequence. The Go mirror of Plan is engine/cuda/plan.go.
#pragma once
#include "ptx.cuh"

struct SlotParams {  // one sequence's sampling, written by start
	u64 seed;
	float temperature;  // 0 is greedy
	float top_p, min_p;
	float repetition, presence, frequency;
	i32 top_k, num_bias;
	u32 flags;  // PENALTIES | LOGPROBS
	i32 top_logprobs;
	u32 pad[2];
};
static_assert(sizeof(SlotParams) == 56, "SlotParams is mirrored in Go");

enum SlotFlags : u32 { SLOT_PENALTIES = 1, SLOT_LOGPROBS = 2 };

struct TokenBias { i32 token; float bias; };
struct TokenLogProb { i32 token; float logprob; };
struct Sampled { i32 token; float logprob; u32 flags; u32 pad; };  // flags: SAMPLED_NONFINITE
enum SampledFlags : u32 { SAMPLED_NONFINITE = 1 };

// A plan: the header, PlanRow [MAX_ROWS], prompt tokens i32 [MAX_TOKENS], PageUpdate [header.updates].
struct PlanHeader { i32 tokens, rows, decode, samples, updates, pad[3]; };
struct PlanRow {
	i32 slot;                 // -1: padding
	i32 pos, len, start;      // position of its first token; its tokens; the first one's place in the step
	i32 sample_row, mask_row; // of the r-th sampled row, not of this one: the row it is, and its mask or -1
	i32 token;                // of a decode row: -1 takes the slot's
	i32 from;                 // of a decode row: leading tokens that attn_prefix attends to
};
struct PageUpdate { u32 slot, index, page, pad; };  // page_table[slot][index] = page
static_assert(sizeof(PlanHeader) == 32 && sizeof(PlanRow) == 32 && sizeof(PageUpdate) == 16, "mirrored in Go");
