// Weights of four bits (W4A16, groups of neighbours with a scale and a zero point) as the w4 kernels read them; made by engine/cuda/w4.go.
//
// Eight rows lie together, 128 columns at a time: lane 4g+t of a warp finds 16 bytes of row g, and word j of them holds the eight columns
// from 32j+8t on, the same that 16 bytes of x hold. Nibbles i and i+4 of a word are columns 2i and 2i+1. Columns past K have any value: x is 0 there.
// Below 2^-125 bf16 is a fixed-point number, whose last bit is 2^-133: a pair of nibbles that lies in the last eight bits of each half of a word is
// a pair of bf16 once the other bits are masked out. That is 5 integer instructions for eight weights, a shift and four masks, and matrix
// units take such numbers. Where x is lifted by as much (lift) nothing else is needed; elsewhere one multiplication with the zero point in its
// addend makes whole numbers of them (whole_pair).
// A row's scale of a group is an f32 whose low five bits are the zero point, 0..16: scales of f16 and bf16 lose nothing. [N/8, ROW_GROUPS, 8].
#pragma once
#include "ptx.cuh"

#ifdef GROUP  // columns that share a scale: 32, 64, a multiple of 128, or K. N rows, a multiple of 8; K columns
constexpr int ROW_GROUPS = K / GROUP;
constexpr int KB = ceil_div(K, 128);                                 // steps of a row
constexpr int PER_STEP = ROW_GROUPS == 1 || GROUP % 128 == 0 ? 1 : 128 / GROUP;  // scales of a row in a step
static_assert(N % 8 == 0 && K % GROUP == 0, "rows come in blocks of eight, groups fill a row");
static_assert(ROW_GROUPS == 1 || GROUP % 128 == 0 || GROUP == 32 || GROUP == 64, "groups of 32, 64, a multiple of 128, or one");

// group_of is the group of piece i of a step, PER_STEP of them. Past K it is the last.
DEVICE int group_of(int step, int i) {
	if (ROW_GROUPS == 1) return 0;
	return PER_STEP == 1 ? step / (GROUP >= 128 ? GROUP / 128 : 1) : K % 128 == 0 ? step * PER_STEP + i : min(step * PER_STEP + i, ROW_GROUPS - 1);
}
#endif

// tiny_pair i of a word: columns 2i and 2i+1 as bf16, times 2^-133 where i is even and 2^-129 where it is odd.
DEVICE u32 tiny_pair(u32 word, int i) { return (i < 2 ? word : word >> 8) & (i % 2 ? 0x00F000F0u : 0x000F000Fu); }

// lift multiplies eight columns of x by 2^64 and 2^60, so that each product with a tiny_pair is 2^-69 of the weight's and far from fp32's ends.
DEVICE uint4 lift(uint4 v) {
	const u32 two64 = 0x5F805F80u, two60 = 0x5D805D80u;
	return make_uint4(mul_bf16x2(v.x, two64), mul_bf16x2(v.y, two60), mul_bf16x2(v.z, two64), mul_bf16x2(v.w, two60));
}
constexpr float UNLIFT = 0x1p69f;

// zero_pair is -zero/64, twice; whole_pair i of a word columns 2i and 2i+1 less it: (q - zero)/64, exact.
DEVICE u32 zero_pair(u32 packed) { return fma_bf16x2((packed & 31u) * 0x10001u | 0x43004300u, 0xBC80BC80u, 0x40004000u); }
DEVICE u32 whole_pair(u32 word, int i, u32 zero) {
	const u32 two127 = 0x7F007F00u, two123 = 0x7D007D00u;
	return fma_bf16x2(tiny_pair(word, i), i % 2 ? two123 : two127, zero);
}
constexpr float WHOLE_SCALE = 64.f;

DEVICE u32 word_of(const uint4& v, int j) { return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w; }

DEVICE float scale_of(u32 packed) { return __uint_as_float(packed & ~31u); }
DEVICE float zero_of(u32 packed) { return __uint_as_float((packed & 31u) | 0x4B000000u) - 8388608.f; }  // 2^23's last bits
