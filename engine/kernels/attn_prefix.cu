// attn_prefix: decode rows that begin with the same pages attend to them together: those pages are read once for a block of rows and not once
// for each. attn_decode, compiled with PREFIX=1, goes on behind them and merges what this leaves.
//
// Shapes: qkv, cache and partial results as attn_decode's. Grid (splits, KV_HEADS, blocks of ROWS decode rows), 128 threads = 4 warps of 16
// queries, a query being a head of a row; dynamic shared memory: the queries and 2 stages of K and V tiles of 64 tokens.
// Bytes: 2 from KV_HEADS HEAD_DIM of kv_t a block. FLOPs: 4 HEADS HEAD_DIM a row and token; at 16 queries' worth of rows bound by the L2.
// Those rows of a block whose row_from is not 0 share their first row_from tokens, a multiple of 64; the host sees to it.
#include "flash.cuh"

#if KV_FP8 || WINDOW
#error "attn_prefix reads a bf16 cache, whole"
#endif
#define THREADS 128
constexpr int QT = 64;               // queries of a CTA
constexpr int ROWS = QT / GROUP;     // rows of a block
constexpr int PART = GROUP * (HEAD_DIM + 4);

struct Params {
	const bf16* qkv;
	const kv_t* kv;          // the layer's cache
	const bf16* qnorm;       // [HEAD_DIM], QK_NORM
	const float2* rope;      // [positions, HEAD_DIM/2] cos, sin
	const i32* row_slot;     // [rows], -1: padding
	const i32* row_ctx;      // [rows]
	const i32* row_from;     // [rows], tokens that the row shares; 0: none
	const i32* page_table;   // [slots, MAX_PAGES]
	float* part;             // [rows, KV_HEADS, splits + attn_decode's, PART]; a row's last place here is its first there
	float scale;             // log2(e)/sqrt(HEAD_DIM)
	i32 rows, places;        // places: splits and attn_decode's
};

extern "C" __global__ void __launch_bounds__(THREADS, 2) attn_prefix(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	KVTile* stage = reinterpret_cast<KVTile*>(smem);
	half_t(*queries)[PITCH] = reinterpret_cast<half_t(*)[PITCH]>(stage + 2);  // [QT]
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int split = blockIdx.x, head = blockIdx.y, row0 = blockIdx.z * ROWS, splits = gridDim.x;
	PDL_LAUNCH();

	// As in attn_decode the plan's arrays and the pages are read before the wait: earlier steps, and advance, have ended.
	auto from_of = [&](int row) { return row < p.rows && (int)ld4_l2(p.row_slot + row) >= 0 ? (int)ld4_l2(p.row_from + row) : 0; };
	int from = 0, leader = -1;
	for (int r = lane; r < ROWS; r += 32)
		if (const int shared = from_of(row0 + r)) from = shared, leader = row0 + r;
	for (int d = 16; d > 0; d >>= 1) {
		from = max(from, __shfl_xor_sync(~0u, from, d));
		leader = max(leader, __shfl_xor_sync(~0u, leader, d));
	}
	const int tiles = from / KT, per_split = ceil_div(tiles, splits), first = split * per_split, end = min(first + per_split, tiles);
	if (first >= end) {
		PDL_WAIT();
		return;
	}
	const i32* pages = p.page_table + (size_t)ld4_l2(p.row_slot + leader) * MAX_PAGES;
	constexpr int CHUNKS = HEAD_DIM / 8;  // 16-byte pieces of a row
	constexpr size_t TO_V = (size_t)KV_HEADS * PAGE * HEAD_DIM;
	auto copy = [&](int tile) {
		KVTile& s = stage[tile & 1];
		for (int i = tid; i < KT * CHUNKS; i += THREADS) {
			const int r = i / CHUNKS, c = i % CHUNKS, token = tile * KT + r;
			const kv_t* at = p.kv + kv_offset((i32)ld4_l2(pages + token / PAGE), false, head, token % PAGE) + 8 * c;
			cp_async16(smem_addr(&s.k[r][8 * c]), at, true);
			cp_async16(smem_addr(&s.v[r][8 * c]), at + TO_V, true);
		}
		cp_async_commit();
	};
	copy(first);
	PDL_WAIT();

	constexpr int SHARE = QT / 4, TURN = 4;  // queries of a warp; those on their way together
	for (int i0 = 0; i0 < SHARE; i0 += TURN) {
		HeadPairs pairs[TURN];
		float2 cs[TURN][PAIRS];
#pragma unroll
		for (int i = 0; i < TURN; i++) {
			const int query = warp * SHARE + i0 + i, row = min(row0 + query / GROUP, p.rows - 1);
			pairs[i] = load_head(p.qkv + (size_t)row * QKV_N + (head * GROUP + query % GROUP) * HEAD_DIM, lane);
			load_rope(cs[i], p.rope, max(0, (int)ld4_l2(p.row_ctx + row) - 1), lane);
		}
#pragma unroll
		for (int i = 0; i < TURN; i++) {
			rotate(pairs[i], p.qnorm, cs[i], lane);
			store_head(queries[warp * SHARE + i0 + i], pairs[i], 1.f, lane);
		}
	}
	__syncwarp();
	u32 q[KS][4];
#pragma unroll
	for (int i = 0; i < KS; i++)
#pragma unroll
		for (int j = 0; j < 4; j++) q[i][j] = *reinterpret_cast<const u32*>(&queries[warp * SHARE + g + 8 * (j & 1)][16 * i + 2 * t + 8 * (j >> 1)]);

	Flash flash;
	for (int tile = first; tile < end; tile++) {
		cp_async_wait<0>();
		__syncthreads();
		if (tile + 1 < end) copy(tile + 1);
		flash.add(q, stage[tile & 1], p.scale, lane, false, [](int, int) { return false; });
	}
	const int used = ceil_div(tiles, per_split);
#pragma unroll
	for (int h = 0; h < 2; h++) {
		const float sum = flash.sum(h);
		const int query = warp * SHARE + g + 8 * h, row = row0 + query / GROUP, of_group = query % GROUP;
		if (query >= ROWS * GROUP || from_of(row) == 0) continue;
		float* part = p.part + ((size_t)(row * KV_HEADS + head) * p.places + splits - used + split) * PART;
#pragma unroll
		for (int n = 0; n < 2 * KS; n++) *reinterpret_cast<float2*>(part + of_group * HEAD_DIM + 8 * n + 2 * t) = make_float2(flash.o[n][2 * h], flash.o[n][2 * h + 1]);
		if (t == 0) *reinterpret_cast<float2*>(part + GROUP * HEAD_DIM + 2 * of_group) = make_float2(flash.m[h], sum);
	}
}
