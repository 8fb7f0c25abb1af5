// attn_prefill_sm90: attn_prefill for heads of 64 and 128 on the warpgroup matrix units: causal attention of prefill rows' query tokens
// against their pages, which hold the prefix and this chunk already.
//
// Shapes: qkv [tokens, QKV_N] (q rotated, half_t), out [tokens, HEADS HEAD_DIM] bf16, cache [page][K|V][KV_HEADS][PAGE][HEAD_DIM] of kv_t. Grid:
// at most 1 CTA an SM, 384 threads: two warpgroups of 64 query tokens each and one that copies; shared memory: Q, and two stages each of K and
// V tiles of 128 tokens. FLOPs: 4 HEADS HEAD_DIM a visible pair; bound by the matrix units.
// A CTA's work is some of the (row, head, 128 query tokens), those that see most first, dealt out there and back: shares are nearly equal, and
// the next one's Q and K are on their way while the last products of this one run.
// FlashAttention-3's inner loop (arXiv:2407.08608): the next tile's Q K^T is issued before this tile's P V, so the softmax of one runs under
// the products of the other, and the two warpgroups take turns to issue, so that one's softmax runs under the other's products; P stays in
// registers. Pages come as boxes of PAGE rows x 64 columns through one tensor map of the layer's cache.
// An e4m3 cache comes as it is, page by page into a ring, from which the copying warpgroup widens each tile to f16 where the products want it
// (1.7 times a bf16 cache's time). With WIDENED it reads the f16 copy that kv_widen made of the rows' pages instead, as a bf16 cache.
// What lies behind a row's last token in its page may be anything: V is zeroed there, as 0 * NaN would not be 0.
#include "attention.cuh"
#include "wgmma.cuh"

#ifndef WIDENED
#define WIDENED 0
#endif
#define RINGS (KV_FP8 && !WIDENED)
#define THREADS 384
constexpr int QT = 128, KT = 128;
constexpr int COLS = HEAD_DIM / 64;       // blocks of 64 columns
#if RINGS
constexpr int RING = 4;
#endif
constexpr int COPIERS = RINGS ? 128 : 1;  // threads that fill a tile
static_assert(HEAD_DIM == 64 || HEAD_DIM == 128, "HEAD_DIM 64 or 128");
static_assert(PAGE <= KT, "pages of at most a tile");

struct alignas(128) TensorMap { u64 words[16]; };

struct Params {
	TensorMap q, kv;       // qkv in boxes of 64 x 64, the layer's cache or kv_widen's copy in boxes of PAGE x 64 (unless RINGS)
	bf16* out;
	const i32* row_slot;   // [rows]
	const i32* row_pos;
	const i32* row_len;
	const i32* row_start;
	const i32* page_table;
	const kv_t* pages;     // the layer's cache, RINGS
	const i32* widened;    // [prefill rows], the first page of each in kv_widen's copy, WIDENED
	float scale;           // log2(e)/sqrt(HEAD_DIM), times K's scale
	float of_v;            // V's scale, KV_FP8
	i32 first_row, rows;   // the first prefill row: decode rows come before; how many there are
	i32 q_tiles;           // of the longest
	i32 pad[11];
};

// Work is 128 query tokens of a row and a head. No tiles: there is no more of it.
struct Work { i32 head, row, slot, len, pos, start, q0, begin, end, tiles; };

struct Shared {
	half_t q[2][COLS][64][64];
	half_t k[2][COLS][KT][64], v[2][COLS][KT][64];
#if RINGS
	kv_t ring[RING][KT * HEAD_DIM];  // K and V of a tile take a place each
	u64 ring_full[RING];
#endif
	u64 q_full, q_empty, k_full[2], k_empty[2], v_full[2], v_empty[2];
	Work work;  // that Q belongs to
};

#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
// next_work finds the CTA's work of turn or a later one.
DEVICE Work next_work(const Params& p, int& turn) {
	const int items = HEADS * p.rows * p.q_tiles, ctas = gridDim.x;
	Work w;
	for (w.tiles = 0; turn * ctas < items; ) {
		const int item = turn * ctas + (turn & 1 ? ctas - 1 - (int)blockIdx.x : (int)blockIdx.x), row = p.first_row + item / HEADS % p.rows;
		turn++;
		if (item >= items) continue;
		w.head = item % HEADS;
		w.row = row - p.first_row;
		w.q0 = (p.q_tiles - 1 - item / HEADS / p.rows) * QT;
		w.slot = p.row_slot[row];
		w.len = p.row_len[row];
		if (w.slot < 0 || w.q0 >= w.len) continue;
		w.pos = p.row_pos[row];
		w.start = p.row_start[row];
		w.end = w.pos + min(w.q0 + QT, w.len);
		w.begin = window_start(w.pos + w.q0 + 1) / KT * KT;  // the same tiles whatever the chunk: a token's sums have one order
		w.tiles = ceil_div(w.end - w.begin, KT);
		break;
	}
	return w;
}

// hand_over gives the consumers work number n, and asks for its Q, when they have done with the Q of the one before.
DEVICE void hand_over(const Params& p, Shared& sh, const Work& w, int n, u64 policy) {
	if (n > 0) mbarrier_wait(&sh.q_empty, (n - 1) & 1);
	sh.work = w;
	if (w.tiles == 0) {
		mbarrier_arrive(&sh.q_full);
		return;
	}
	mbarrier_expect(&sh.q_full, sizeof(sh.q));
	for (int g = 0; g < 2; g++)
		for (int c = 0; c < COLS; c++) tensor_load(sh.q[g][c], &p.q, w.head * HEAD_DIM + 64 * c, w.start + w.q0 + 64 * g, &sh.q_full, policy);
}

// page_of names the page that holds row r of a tile. Past the end any page does: K is masked, V zeroed.
DEVICE i32 page_of(const Params& p, const Work& w, int tile, int r) {
	const int page = min(w.begin + tile * KT + r, w.end - 1) / PAGE;
	return WIDENED ? p.widened[w.row] + page : p.page_table[(size_t)w.slot * MAX_PAGES + page];
}

#if RINGS
// widen puts a tile of the ring where the products want it: rows of 64 f16 in 16-byte units that are swizzled by 128 bytes. The units of
// odd blocks are written in the other order: eight neighbours then write to all banks.
DEVICE void widen(const kv_t* from, half_t (&to)[COLS][KT][64], int tid) {
	constexpr int UNITS = HEAD_DIM / 16;  // 16 bytes of e4m3 in a row
#pragma unroll 2
	for (int i = tid; i < KT * UNITS; i += COPIERS) {
		const int r = i / UNITS, c = i % UNITS, unit = c % 4 * 2, odd = c / 4;
		const uint4 v = *reinterpret_cast<const uint4*>(from + 16 * i);
		const uint2 x = widen_e4m3(v.x), y = widen_e4m3(v.y), z = widen_e4m3(v.z), w = widen_e4m3(v.w);
		const uint4 lo = make_uint4(x.x, x.y, y.x, y.y), hi = make_uint4(z.x, z.y, w.x, w.y);
		half_t* row = to[c / 4][r];
		st16(row + 8 * ((unit + odd) ^ (r & 7)), odd ? hi : lo);
		st16(row + 8 * ((unit + 1 - odd) ^ (r & 7)), odd ? lo : hi);
	}
}

// Half-tiles are counted through all work: K of the first tile, its V, K of the second ...
DEVICE void copy(const Params& p, Shared& sh, int tid) {
	const u64 keep = policy_evict_last();
	int asked = 0, ask_turn = 0, ask_half = 0;  // what thread 0 asks for runs ahead of what is widened
	Work ahead = next_work(p, ask_turn);
	auto ask = [&] {
		if (ahead.tiles == 0) return;
		const int place = asked % RING;
		mbarrier_expect(&sh.ring_full[place], KT * HEAD_DIM);
		for (int r = 0; r < KT; r += PAGE)
			bulk_load(sh.ring[place] + r * HEAD_DIM, p.pages + kv_offset(page_of(p, ahead, ask_half / 2, r), ask_half & 1, ahead.head / GROUP, 0), PAGE * HEAD_DIM, &sh.ring_full[place], keep);
		asked++;
		if (++ask_half == 2 * ahead.tiles) {
			ask_half = 0;
			ahead = next_work(p, ask_turn);
		}
	};
	if (tid == 0)
		for (int i = 0; i < RING; i++) ask();
	int turn = 0, n = 0, half = 0;
	for (Work w = next_work(p, turn);; n++) {
		if (w.tiles == 0) {
			if (tid == 0) hand_over(p, sh, w, n, keep);
			return;
		}
		for (int i = 0; i < 2 * w.tiles; i++, half++) {
			const int tile = half / 2, s = tile & 1;
			const bool is_v = half & 1;
			mbarrier_wait(&sh.ring_full[half % RING], half / RING & 1);
			if (tile >= 2) mbarrier_wait(is_v ? &sh.v_empty[s] : &sh.k_empty[s], (tile / 2 - 1) & 1);
			widen(sh.ring[half % RING], is_v ? sh.v[s] : sh.k[s], tid);
			fence_async_shared();
			mbarrier_arrive(is_v ? &sh.v_full[s] : &sh.k_full[s]);
			barrier_sync(2, COPIERS);  // the ring's place has been read
			if (tid == 0) ask();
			if (tid == 0 && i == 0) hand_over(p, sh, w, n, keep);
		}
		w = next_work(p, turn);
	}
}
#else
DEVICE void copy(const Params& p, Shared& sh, int tid) {
	if (tid != 0) return;
	const u64 keep = policy_evict_last();
	int turn = 0, n = 0, tile = 0;  // tiles are counted through all work
	for (Work w = next_work(p, turn);; n++) {
		if (w.tiles == 0) return hand_over(p, sh, w, n, keep);
		auto load = [&](half_t(&to)[COLS][KT][64], int i, bool is_v, u64* full) {
			mbarrier_expect(full, sizeof(to));
			for (int r = 0; r < KT; r += PAGE) {
				const i32 row = ((page_of(p, w, i, r) * 2 + is_v) * KV_HEADS + w.head / GROUP) * PAGE;
				for (int c = 0; c < COLS; c++) tensor_load(to[c][r], &p.kv, 64 * c, row, full, keep);
			}
		};
		for (int i = 0; i < w.tiles; i++, tile++) {
			const int s = tile & 1;
			if (tile >= 2) mbarrier_wait(&sh.k_empty[s], (tile / 2 - 1) & 1);
			load(sh.k[s], i, false, &sh.k_full[s]);
			if (i == 0) hand_over(p, sh, w, n, keep);
			if (tile >= 2) mbarrier_wait(&sh.v_empty[s], (tile / 2 - 1) & 1);
			load(sh.v[s], i, true, &sh.v_full[s]);
		}
		w = next_work(p, turn);
	}
}
#endif

// attend works on w, whose Q has come. first is the number of the first tile among all.
DEVICE void attend(const Params& p, Shared& sh, const Work w, int first) {
	const int tid = threadIdx.x, group = tid >> 7, lane = tid & 31, warp = tid >> 5 & 3, g = lane >> 2, t = lane & 3;
	const bool leader = (tid & 127) == 0;
	const int qa = w.q0 + group * 64 + warp * 16 + g;  // the thread's query rows are qa and qa + 8
	float o[HEAD_DIM / 2], s[KT / 2];
	u32 prob[KT / 16][4];
	float m[2] = {-1e30f, -1e30f}, l[2] = {};
	auto stage = [&](int tile) { return (first + tile) & 1; };
	auto phase = [&](int tile) { return (first + tile) / 2 & 1; };
	auto take_turn = [&] { barrier_sync(2 + COPIERS / 128 + group, 256); };   // until the other warpgroup has issued its products
	auto give_turn = [&] { barrier_arrive(2 + COPIERS / 128 + (group ^ 1), 256); };

	auto scores = [&](int tile) {  // issues S = Q K^T
		mbarrier_wait(&sh.k_full[stage(tile)], phase(tile));
		wgmma_fence();
#pragma unroll
		for (int j = 0; j < HEAD_DIM / 16; j++)
			Wgmma<KT, half_t>::product(s, wgmma_tile(sh.q[group][j / 4]) + 2 * (j % 4), wgmma_tile(sh.k[stage(tile)][j / 4]) + 2 * (j % 4), j > 0);
		wgmma_commit();
	};
	auto values = [&](int tile) {  // issues O += P V
		mbarrier_wait(&sh.v_full[stage(tile)], phase(tile));
		const int valid = w.end - (w.begin + tile * KT);
		if (valid < KT) {
			for (int i = tid; i < (KT - valid) * COLS * 8; i += 256)
				*reinterpret_cast<uint4*>(&sh.v[stage(tile)][i / 8 % COLS][valid + i / (8 * COLS)][i % 8 * 8]) = make_uint4(0, 0, 0, 0);
			fence_async_shared();
			barrier_sync(1, 256);
		}
		wgmma_fence();
#pragma unroll
		for (int j = 0; j < KT / 16; j++)
			Wgmma<HEAD_DIM, half_t>::product_of_registers(o, prob[j], wgmma_columns(sh.v[stage(tile)], KT * 128) + 128 * j, j > 0 || tile > 0);
		wgmma_commit();
	};
	float shrink[2];
	auto softmax = [&](int tile) {  // s to probabilities in place; what O must shrink by
		const int k0 = w.begin + tile * KT, query0 = w.pos + w.q0 + group * 64;
		if (k0 + KT > query0 + 1 || (WINDOW && k0 < window_start(query0 + 64))) {
#pragma unroll
			for (int i = 0; i < KT / 2; i++) {
				const int key = k0 + i / 4 * 8 + 2 * t + (i & 1), query = w.pos + qa + (i & 2 ? 8 : 0);
				if (key > query || (WINDOW && key <= query - WINDOW)) s[i] = -__int_as_float(0x7F800000);
			}
		}
#pragma unroll
		for (int h = 0; h < 2; h++) {
			float top = -__int_as_float(0x7F800000);
#pragma unroll
			for (int i = 0; i < KT / 8; i++) top = fmaxf(top, fmaxf(s[4 * i + 2 * h], s[4 * i + 2 * h + 1]));
			top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
			top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
			top = fmaxf(m[h], top * p.scale);
			shrink[h] = exp2_fast(m[h] - top);
			m[h] = top;
			float sum = 0.f;
#pragma unroll
			for (int i = 0; i < KT / 8; i++) {
				s[4 * i + 2 * h] = exp2_fast(fmaf(s[4 * i + 2 * h], p.scale, -top));
				s[4 * i + 2 * h + 1] = exp2_fast(fmaf(s[4 * i + 2 * h + 1], p.scale, -top));
				sum += s[4 * i + 2 * h] + s[4 * i + 2 * h + 1];
			}
			l[h] = fmaf(l[h], shrink[h], sum);
		}
	};
	auto pack = [&] {
#pragma unroll
		for (int j = 0; j < KT / 16; j++)
#pragma unroll
			for (int i = 0; i < 4; i++) prob[j][i] = pack_half(s[8 * j + 2 * i], s[8 * j + 2 * i + 1]);
	};

	take_turn();
	scores(0);
	give_turn();
	wgmma_wait<0>();
	if (leader) mbarrier_arrive(&sh.k_empty[stage(0)]);
	if (leader && w.tiles == 1) mbarrier_arrive(&sh.q_empty);
	softmax(0);
	pack();
	for (int tile = 1; tile < w.tiles; tile++) {
		take_turn();
		scores(tile);
		values(tile - 1);
		give_turn();
		wgmma_wait<1>();
		if (leader) mbarrier_arrive(&sh.k_empty[stage(tile)]);
		if (leader && tile + 1 == w.tiles) mbarrier_arrive(&sh.q_empty);
		softmax(tile);
		wgmma_wait<0>();
		if (leader) mbarrier_arrive(&sh.v_empty[stage(tile - 1)]);
#pragma unroll
		for (int i = 0; i < HEAD_DIM / 2; i++) o[i] *= shrink[i >> 1 & 1];
		pack();
	}
	values(w.tiles - 1);
	wgmma_wait<0>();
	if (leader) mbarrier_arrive(&sh.v_empty[stage(w.tiles - 1)]);
#pragma unroll
	for (int h = 0; h < 2; h++) {
		l[h] += __shfl_xor_sync(~0u, l[h], 1);
		l[h] += __shfl_xor_sync(~0u, l[h], 2);
		const int query = qa + 8 * h;
		if (query >= w.len) continue;
		const float scale = (KV_FP8 ? p.of_v : 1.f) / l[h];
		bf16* out = p.out + ((size_t)(w.start + query) * HEADS + w.head) * HEAD_DIM;
#pragma unroll
		for (int j = 0; j < HEAD_DIM / 8; j++) *reinterpret_cast<u32*>(out + 8 * j + 2 * t) = pack_bf16(o[4 * j + 2 * h] * scale, o[4 * j + 2 * h + 1] * scale);
	}
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) attn_prefill_sm90(const __grid_constant__ Params p) {
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
	extern __shared__ __align__(1024) u8 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	PDL_LAUNCH();
	PDL_WAIT();
	if (threadIdx.x == 0) {
		mbarrier_init(&sh.q_full, 1);
		mbarrier_init(&sh.q_empty, 2);
		for (int i = 0; i < 2; i++) {
			mbarrier_init(&sh.k_full[i], COPIERS);
			mbarrier_init(&sh.v_full[i], COPIERS);
			mbarrier_init(&sh.k_empty[i], 2);
			mbarrier_init(&sh.v_empty[i], 2);
		}
#if RINGS
		for (int i = 0; i < RING; i++) mbarrier_init(&sh.ring_full[i], 1);
#endif
		mbarrier_init_fence();
	}
	__syncthreads();
	if (threadIdx.x >= 256) {
		registers_less<RINGS ? 56 : 40>();
		copy(p, sh, threadIdx.x - 256);
	} else {
		registers_more<RINGS ? 224 : 232>();
		if (threadIdx.x >= 128) barrier_arrive(2 + COPIERS / 128, 256);  // the first warpgroup issues first
		for (int n = 0, first = 0;; n++) {
			mbarrier_wait(&sh.q_full, n & 1);
			const Work w = sh.work;
			if (w.tiles == 0) return;
			attend(p, sh, w, first);
			first += w.tiles;
		}
	}
#endif
}
