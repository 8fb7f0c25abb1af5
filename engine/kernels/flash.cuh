// FlashAttention-2's inner loop (arXiv:2307.08691) on mma.sync: a warp's 16 queries against tiles of keys and values in shared memory. S and O
// stay in registers, the softmax is online and in base 2.
#pragma once
#include "attention.cuh"

constexpr int KT = 64;               // key tokens of a tile
constexpr int PITCH = HEAD_DIM + 8;  // elements of a row in shared memory, padded against bank conflicts
constexpr int KS = HEAD_DIM / 16;    // steps of the first product

struct KVTile { half_t k[KT][PITCH], v[KT][PITCH]; };

// Flash is what a lane has of its warp's queries g and g+8 (h = 0, 1), lane = 4g+t: dims 8n+2t and 8n+2t+1 of the sums of V in o[n][2h] and
// o[n][2h+1], the greatest score m in units of log2, and its share l of the weights' sum.
struct Flash {
	float o[2 * KS][4] = {};
	float m[2] = {-1e30f, -1e30f}, l[2] = {};

	// add attends to a tile. q is the queries as A of the first product. At the edge of what is seen hidden(h, i) tells that query h does not
	// see key i of the tile.
	template <typename Hidden> DEVICE void add(const u32 (&q)[KS][4], const KVTile& s, float scale, int lane, bool edge, Hidden hidden) {
		const int t = lane & 3;
		float sc[KT / 8][4] = {};
#pragma unroll
		for (int i = 0; i < KS; i++)
#pragma unroll
			for (int n = 0; n < KT / 16; n++) {
				u32 b[4];  // keys 16n..16n+7: k lo, k hi; then 16n+8..
				ldmatrix4(b, smem_addr(&s.k[16 * n + (lane & 7) + (lane >> 4) * 8][16 * i + (lane >> 3 & 1) * 8]));
				mma_half(sc[2 * n], q[i][0], q[i][1], q[i][2], q[i][3], b[0], b[1]);
				mma_half(sc[2 * n + 1], q[i][0], q[i][1], q[i][2], q[i][3], b[2], b[3]);
			}
		if (edge) {
#pragma unroll
			for (int n = 0; n < KT / 8; n++)
#pragma unroll
				for (int i = 0; i < 4; i++)
					if (hidden(i >> 1, 8 * n + 2 * t + (i & 1))) sc[n][i] = -__int_as_float(0x7F800000);
		}
		float shrink[2];
#pragma unroll
		for (int h = 0; h < 2; h++) {
			float top = m[h];
#pragma unroll
			for (int n = 0; n < KT / 8; n++) top = fmaxf(top, fmaxf(sc[n][2 * h], sc[n][2 * h + 1]) * scale);
			top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
			top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
			shrink[h] = exp2_fast(m[h] - top);
			m[h] = top;
			l[h] *= shrink[h];
#pragma unroll
			for (int n = 0; n < KT / 8; n++) {
				sc[n][2 * h] = exp2_fast(fmaf(sc[n][2 * h], scale, -top));
				sc[n][2 * h + 1] = exp2_fast(fmaf(sc[n][2 * h + 1], scale, -top));
				l[h] += sc[n][2 * h] + sc[n][2 * h + 1];
			}
		}
#pragma unroll
		for (int n = 0; n < 2 * KS; n++) {
			o[n][0] *= shrink[0];
			o[n][1] *= shrink[0];
			o[n][2] *= shrink[1];
			o[n][3] *= shrink[1];
		}
#pragma unroll
		for (int k = 0; k < KT / 16; k++) {
			u32 a[4] = {pack_half(sc[2 * k][0], sc[2 * k][1]), pack_half(sc[2 * k][2], sc[2 * k][3]),
			            pack_half(sc[2 * k + 1][0], sc[2 * k + 1][1]), pack_half(sc[2 * k + 1][2], sc[2 * k + 1][3])};
#pragma unroll
			for (int n = 0; n < KS; n++) {
				u32 b[4];  // dims 16n..16n+7: tokens lo, hi; then 16n+8..
				ldmatrix4_trans(b, smem_addr(&s.v[16 * k + (lane & 15)][16 * n + (lane >> 4) * 8]));
				mma_half(o[2 * n], a[0], a[1], a[2], a[3], b[0], b[1]);
				mma_half(o[2 * n + 1], a[0], a[1], a[2], a[3], b[2], b[3]);
			}
		}
	}

	// sum is the sum of query h's weights, in every lane of its group.
	DEVICE float sum(int h) const {
		const float both = l[h] + __shfl_xor_sync(~0u, l[h], 1);
		return both + __shfl_xor_sync(~0u, both, 2);
	}
};
