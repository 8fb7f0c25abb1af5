// What the attention kernels share: where K and V lie, and how a head is normed and rotated.
#pragma once
#include "ptx.cuh"

#if !defined(HEADS) || !defined(KV_HEADS) || !defined(HEAD_DIM) || !defined(PAGE) || !defined(MAX_PAGES)
#error "HEADS, KV_HEADS, HEAD_DIM, PAGE (tokens), MAX_PAGES (of a slot)"
#endif
#if !defined(QK_NORM) || !defined(WINDOW) || !defined(RMS_EPS)
#error "QK_NORM 0 or 1, WINDOW tokens (0: all), RMS_EPS"
#endif
#ifndef KV_FP8
#error "KV_FP8 0: the cache holds bf16; 1: e4m3, of K and V divided by a scale each"
#endif
static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM <= 128, "HEAD_DIM: a multiple of 16 up to 128");
static_assert(PAGE % 16 == 0, "PAGE: a multiple of 16");
static_assert(HEADS % KV_HEADS == 0, "whole groups of query heads");

constexpr int GROUP = HEADS / KV_HEADS;
constexpr int QKV_N = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
constexpr int HALF = HEAD_DIM / 2;

// kv_t is what the cache holds, half_t what attention multiplies: bf16, or f16 for an e4m3 cache, as each e4m3 value is an f16 exactly and
// one instruction away from it.
#if KV_FP8
typedef e4m3 kv_t;
typedef f16 half_t;
DEVICE u32 pack_half(float lo, float hi) { return pack_f16(lo, hi); }
DEVICE void mma_half(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { mma_f16(c, a0, a1, a2, a3, b0, b1); }
#else
typedef bf16 kv_t;
typedef bf16 half_t;
DEVICE u32 pack_half(float lo, float hi) { return pack_bf16(lo, hi); }
DEVICE void mma_half(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) { mma_bf16(c, a0, a1, a2, a3, b0, b1); }
#endif
DEVICE void put(bf16* to, float v) { *to = to_bf16(v); }
DEVICE void put(f16* to, float v) { to->bits = (u16)pack_f16(v, 0.f); }
DEVICE void put(e4m3* to, float v) { *to = to_e4m3(v); }

// kv_offset is where a token's K (or V) of a head starts in a layer's cache [page][K|V][KV_HEADS][PAGE][HEAD_DIM].
DEVICE size_t kv_offset(i32 page, bool is_v, int head, int token_in_page) {
	return ((((size_t)page * 2 + is_v) * KV_HEADS + head) * PAGE + token_in_page) * HEAD_DIM;
}

// Rotated is one head spread over a warp: lane i holds elements i+32j and their partners HALF further, normed, rotated, rounded.
constexpr int PAIRS = ceil_div(HALF, 32);
struct HeadPairs { float lo[PAIRS], hi[PAIRS]; };

DEVICE HeadPairs load_head(const bf16* x, int lane) {
	HeadPairs h;
#pragma unroll
	for (int j = 0; j < PAIRS; j++) {
		int i = lane + 32 * j;
		h.lo[j] = h.hi[j] = 0.f;
		if (i < HALF) {
			h.lo[j] = to_float(bf16{ld2(x + i)});
			h.hi[j] = to_float(bf16{ld2(x + i + HALF)});
		}
	}
	return h;
}

// rotate norms (QK_NORM; gamma [HEAD_DIM]) and rotates a head in place; cs holds the lane's cosines and sines of the position.
// Which products are fused into sums is said and not left to the compiler: of a b + c d it may fuse either, and did so differently in
// attn_decode and rope_kv. One element of K in 50,000 then had another last bit, and with it what is said behind a draft.
DEVICE void rotate(HeadPairs& h, const bf16* gamma, const float2 (&cs)[PAIRS], int lane) {
	if (QK_NORM) {
		float ss = 0.f;
#pragma unroll
		for (int j = 0; j < PAIRS; j++) ss = fmaf(h.lo[j], h.lo[j], fmaf(h.hi[j], h.hi[j], ss));
		float scale = rsqrtf(fmaf(warp_sum(ss), 1.f / HEAD_DIM, RMS_EPS));
#pragma unroll
		for (int j = 0; j < PAIRS; j++) {
			int i = min(lane + 32 * j, HALF - 1);
			h.lo[j] = round_bf16(round_bf16(h.lo[j] * scale) * to_float(gamma[i]));
			h.hi[j] = round_bf16(round_bf16(h.hi[j] * scale) * to_float(gamma[i + HALF]));
		}
	}
#pragma unroll
	for (int j = 0; j < PAIRS; j++) {
		float lo = h.lo[j], hi = h.hi[j];
		h.lo[j] = fmaf(lo, cs[j].x, -__fmul_rn(hi, cs[j].y));
		h.hi[j] = fmaf(hi, cs[j].x, __fmul_rn(lo, cs[j].y));
	}
}

DEVICE void load_rope(float2 (&cs)[PAIRS], const float2* table, int position, int lane) {
#pragma unroll
	for (int j = 0; j < PAIRS; j++) cs[j] = table[(size_t)position * HALF + min(lane + 32 * j, HALF - 1)];
}

// store_head writes a head times scale, in any of the three types.
template <typename T> DEVICE void store_head(T* dst, const HeadPairs& h, float scale, int lane) {
#pragma unroll
	for (int j = 0; j < PAIRS; j++) {
		int i = lane + 32 * j;
		if (i < HALF) {
			put(dst + i, h.lo[j] * scale);
			put(dst + i + HALF, h.hi[j] * scale);
		}
	}
}

DEVICE int window_start(int end) { return WINDOW ? max(0, end - WINDOW) : 0; }
