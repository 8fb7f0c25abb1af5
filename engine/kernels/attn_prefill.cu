// attn_prefill: causal attention of prefill rows' query tokens against their pages, which hold the prefix and this chunk already.
//
// Shapes: qkv [tokens, QKV_N] (q rotated, half_t), out [tokens, HEADS HEAD_DIM] bf16, cache as attn_decode's. Grid (HEADS, query tiles of the
// longest row, rows), 256 threads = 8 warps of 16 query tokens; dynamic shared memory 2 stages of K and V tiles of 64 tokens.
// FLOPs: 4 HEADS HEAD_DIM a visible pair; bound by the matrix units. FlashAttention-2's scheme (flash.cuh); the next tile is copied (cp.async)
// while this one is multiplied. Tiles late in the sequence see more and start first. An e4m3 cache is widened on its way to shared memory: the
// next tile is fetched into registers before the products, and stored after them.
#include "flash.cuh"

#define THREADS 256
constexpr int QT = 128;  // query tokens of a tile

struct Params {
	const bf16* qkv;
	const kv_t* kv;
	bf16* out;
	const i32* row_slot;   // [rows]
	const i32* row_pos;
	const i32* row_len;
	const i32* row_start;
	const i32* page_table;
	float scale;           // log2(e)/sqrt(HEAD_DIM), times K's scale
	float of_v;            // V's scale, KV_FP8
	i32 first_row;         // row of blockIdx.z 0: decode rows come before
	i32 pad;
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) attn_prefill(const __grid_constant__ Params p) {
	extern __shared__ uint4 smem[];
	KVTile* stage = reinterpret_cast<KVTile*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int head = blockIdx.x, row = p.first_row + blockIdx.z, q0 = (gridDim.y - 1 - blockIdx.y) * QT;
	PDL_LAUNCH();
	PDL_WAIT();
	const i32 slot = p.row_slot[row], len = p.row_len[row], pos = p.row_pos[row], start = p.row_start[row];
	if (slot < 0 || q0 >= len) return;
	const i32* pages = p.page_table + (size_t)slot * MAX_PAGES;

	// The lane's query rows are g and g+8 of its warp's 16.
	const int qa = q0 + warp * 16 + g, qb = qa + 8;
	u32 q[KS][4];
	const bf16* q_lo = p.qkv + (size_t)(start + min(qa, len - 1)) * QKV_N + head * HEAD_DIM;
	const bf16* q_hi = p.qkv + (size_t)(start + min(qb, len - 1)) * QKV_N + head * HEAD_DIM;
#pragma unroll
	for (int i = 0; i < KS; i++) {
		q[i][0] = ld4(q_lo + 16 * i + 2 * t);
		q[i][1] = ld4(q_hi + 16 * i + 2 * t);
		q[i][2] = ld4(q_lo + 16 * i + 2 * t + 8);
		q[i][3] = ld4(q_hi + 16 * i + 2 * t + 8);
	}

	const int end = pos + min(q0 + QT, len);              // keys the tile sees: up to its last query
	const int begin = window_start(pos + q0 + 1) / KT * KT;
	const int tiles = ceil_div(end - begin, KT);
	auto token_at = [&](int tile, int r) { return begin + tile * KT + r; };
	auto kv_at = [&](int token) { return p.kv + kv_offset(token < end ? pages[token / PAGE] : 0, false, head / GROUP, token % PAGE); };
	constexpr size_t TO_V = (size_t)KV_HEADS * PAGE * HEAD_DIM;
#if KV_FP8
	constexpr int PIECES = KT * HEAD_DIM / 16, SHARE = ceil_div(PIECES, THREADS);  // of 16 bytes
	uint4 fetched[SHARE][2];
	auto fetch = [&](int tile) {
#pragma unroll
		for (int i = 0; i < SHARE; i++) {
			const int piece = tid + i * THREADS, token = token_at(tile, piece / (HEAD_DIM / 16));
			fetched[i][0] = fetched[i][1] = make_uint4(0, 0, 0, 0);
			if (piece >= PIECES || token >= end) continue;
			const kv_t* from = kv_at(token) + piece % (HEAD_DIM / 16) * 16;
			fetched[i][0] = ld16(from);
			fetched[i][1] = ld16(from + TO_V);
		}
	};
	auto widen = [&](half_t* to, uint4 v) {
		const uint2 a = widen_e4m3(v.x), b = widen_e4m3(v.y), c = widen_e4m3(v.z), d = widen_e4m3(v.w);
		st16(to, make_uint4(a.x, a.y, b.x, b.y));
		st16(to + 8, make_uint4(c.x, c.y, d.x, d.y));
	};
	auto place = [&](int tile) {
		KVTile& s = stage[tile & 1];
#pragma unroll
		for (int i = 0; i < SHARE; i++) {
			const int piece = tid + i * THREADS, r = piece / (HEAD_DIM / 16), c = piece % (HEAD_DIM / 16);
			if (piece >= PIECES) continue;
			widen(&s.k[r][16 * c], fetched[i][0]);
			widen(&s.v[r][16 * c], fetched[i][1]);
		}
	};
	fetch(0);
#else
	constexpr int CHUNKS = HEAD_DIM / 8;  // 16-byte pieces of a row
	auto copy = [&](int tile) {
		KVTile& s = stage[tile & 1];
		for (int i = tid; i < KT * CHUNKS; i += THREADS) {
			const int r = i / CHUNKS, c = i % CHUNKS, token = token_at(tile, r);
			const bool valid = token < end;
			const kv_t* from = kv_at(token) + 8 * c;
			cp_async16(smem_addr(&s.k[r][8 * c]), from, valid);
			cp_async16(smem_addr(&s.v[r][8 * c]), from + TO_V, valid);
		}
		cp_async_commit();
	};
	copy(0);
#endif

	Flash flash;
	for (int tile = 0; tile < tiles; tile++) {
#if KV_FP8
		place(tile);
		__syncthreads();
		if (tile + 1 < tiles) fetch(tile + 1);
#else
		cp_async_wait<0>();
		__syncthreads();
		if (tile + 1 < tiles) copy(tile + 1);
#endif
		const int k0 = begin + tile * KT;
		const bool edge = k0 + KT > pos + q0 + warp * 16 + 1 || (WINDOW && k0 < window_start(pos + q0 + warp * 16 + 16));
		flash.add(q, stage[tile & 1], p.scale, lane, edge, [&](int h, int i) {
			const int key = k0 + i, query = pos + (h ? qb : qa);
			return key > query || (WINDOW && key <= query - WINDOW);
		});
	}
#pragma unroll
	for (int h = 0; h < 2; h++) {
		const float sum = flash.sum(h);
		const int query = h ? qb : qa;
		if (query >= len) continue;
		const float scale = (KV_FP8 ? p.of_v : 1.f) / sum;
		bf16* out = p.out + (size_t)(start + query) * HEADS * HEAD_DIM + head * HEAD_DIM;
#pragma unroll
		for (int n = 0; n < 2 * KS; n++) *reinterpret_cast<u32*>(out + 8 * n + 2 * t) = pack_bf16(flash.o[n][2 * h] * scale, flash.o[n][2 * h + 1] * scale);
	}
}
