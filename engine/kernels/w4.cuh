// Weights of four bits (W4A16, groups of neighbours with a scale and a zero point) as the w4 kernels read them; made by engine/cuda/w4.go.
//
// Eight rows lie together, 128 columns at a time: lane 4g+t of a warp finds 16 bytes of row g, and word j of them holds the eight columns
// from 32j+8t on, the same that 16 bytes of x hold. Nibbles i and i+4 of a word are columns 2i and 2i+1, so that a shift and one lop3
// give a pair of bf16: 128 + q, exact, as 4 bits fit below bf16's 128. Columns past K have any value: x is 0 there.
// A row's scale of a group is an f32 whose low five bits are the zero point, 0..16: scales of f16 and bf16 lose nothing. [N/8, GROUPS, 8].
#pragma once
#include "ptx.cuh"

#if !defined(N) || !defined(K) || !defined(GROUP)
#error "N rows, a multiple of 8; K columns; GROUP: columns that share a scale: 32, 64, a multiple of 128, or K"
#endif
constexpr int GROUPS = K / GROUP;
constexpr int KB = ceil_div(K, 128);                                 // steps of a row
constexpr int PER_STEP = GROUPS == 1 || GROUP % 128 == 0 ? 1 : 128 / GROUP;  // scales of a row in a step
static_assert(N % 8 == 0 && K % GROUP == 0, "rows come in blocks of eight, groups fill a row");
static_assert(GROUPS == 1 || GROUP % 128 == 0 || GROUP == 32 || GROUP == 64, "groups of 32, 64, a multiple of 128, or one");

// group_of is the group of piece i of a step, PER_STEP of them. Past K it is the last.
DEVICE int group_of(int step, int i) {
	if (GROUPS == 1) return 0;
	return PER_STEP == 1 ? step / (GROUP >= 128 ? GROUP / 128 : 1) : K % 128 == 0 ? step * PER_STEP + i : min(step * PER_STEP + i, GROUPS - 1);
}

// biased_pair i of a word: columns 2i and 2i+1 as bf16, 128 too much.
DEVICE u32 biased_pair(u32 word, int i) { return (word >> (4 * i) & 0x000F000Fu) | 0x43004300u; }

DEVICE u32 word_of(const uint4& v, int j) { return j == 0 ? v.x : j == 1 ? v.y : j == 2 ? v.z : v.w; }

DEVICE float scale_of(u32 packed) { return __uint_as_float(packed & ~31u); }
DEVICE float biased_zero(u32 packed) { return __uint_as_float((packed & 31u) | 0x4B000080u) - 8388608.f; }  // 128 + zero, by 2^23's last bits
DEVICE u32 biased_zero_pair(u32 packed) { return 0xC300C300u | (packed & 31u) * 0x10001u; }  // -128 - zero, twice, as bf16
