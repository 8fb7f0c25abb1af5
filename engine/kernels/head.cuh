// Choosing a token: the order of candidates, and the running best of one that the LM head keeps while it makes logits.
#pragma once
#include "philox.cuh"
#include "plan.cuh"

// Candidate is a CTA's best token of one row, merged by sample_fast. Bit 31 of token tells of a NaN or infinity among its logits.
struct Candidate { float score; u32 token; };
constexpr u32 NONFINITE = 0x80000000u;

DEVICE bool is_finite(float v) { return (__float_as_uint(v) & 0x7F800000u) != 0x7F800000u; }

// better orders by score, then by the lower id.
DEVICE bool better(float score, u32 token, float best, u32 best_token) {
	return score > best || (score == best && token < best_token);
}

// Draw is how a row chooses: greedy at temperature 0, else by Gumbel-max.
struct Draw {
	u64 seed;
	float temperature;
	u32 position;
};

DEVICE Draw draw_of(const SlotParams* params, i32 slot, i32 position) {
	if (slot < 0) return Draw{0, 0.f, 0};
	const float t = params[slot].temperature;
	return Draw{params[slot].seed, t > 0.f ? fmaxf(t, 1e-20f) : 0.f, (u32)position};  // near 0 nothing overflows
}

// noise is gumbel as a function that is called: where many logits are looked at in a row that is unrolled, code in line would not fit the
// instruction caches.
__device__ __noinline__ float noise(u64 seed, u32 position, u32 token) { return gumbel(seed, position, token); }

// Best follows one row's logits.
struct Best {
	float score = __uint_as_float(0xFF800000u);
	u32 token = ~NONFINITE;

	template <bool CALL = false> DEVICE void add(const Draw& d, float logit, u32 id) {
		float s = logit;
		if (!is_finite(logit)) token |= NONFINITE;
		if (d.temperature > 0.f) {
			s = __fdividef(logit, d.temperature);
			if (s + MAX_GUMBEL < score) return;  // no noise can lift it
			s += CALL ? noise(d.seed, d.position, id) : gumbel(d.seed, d.position, id);
		}
		if (better(s, id, score, token & ~NONFINITE)) {
			score = s;
			token = id | (token & NONFINITE);
		}
	}
	DEVICE void merge(Candidate c) {
		const u32 flag = (token | c.token) & NONFINITE;
		token &= ~NONFINITE;
		if (better(c.score, c.token & ~NONFINITE, score, token)) {
			score = c.score;
			token = c.token & ~NONFINITE;
		}
		token |= flag;
	}
};
