// attn_decode: one query token a row against its paged KV cache: QK-norm, RoPE, KV write, split-KV attention, combine, in one launch.
//
// Shapes: qkv [rows, (HEADS+2 KV_HEADS) HEAD_DIM], out [rows, HEADS HEAD_DIM], bf16; cache [page][K|V][KV_HEADS][PAGE][HEAD_DIM] of kv_t.
// Grid (splits, KV_HEADS, rows), 128 threads, CTAS an SM; static shared memory. Bytes: 2 ctx KV_HEADS HEAD_DIM of kv_t a row; bound by
// memory, at one row by latency.
// A CTA works on one split of one KV head with all its query heads (GROUP <= 8), a warp on tiles of TILE tokens, both products on the
// matrix units, 16 tokens at a time, nothing staged in shared memory:
//   S = Q K^T: heads are the 16 rows of A (half of them idle), tokens the columns of B. As in gemv_mma a lane takes 16 bytes of a token.
//   O^T = V^T P^T: dims are the rows of A, heads the columns of B, tokens the k. Lane 4g+t takes 16 bytes at 16g of tokens 2t, 2t+1, 2t+8,
//   2t+9 and pairs them up by byte permutes; S leaves P in just the layout that B wants.
// K and V of the next tile are on their way while this one is computed. The first tile's are asked for before the wait: earlier steps
// wrote them (this step's token is patched in from shared memory by the split that holds it), and so are the plan's arrays read:
// advance has ended before embed lets anything else start.
// Partial results go through L2; the last CTA of a (row, head) to arrive merges them in split order.
#include "attention.cuh"

#if !defined(CTAS) || !defined(TILE)
#error "CTAS of an SM; TILE tokens of a warp's step, a multiple of 16"
#endif
#ifndef PREFIX
#define PREFIX 0  // 1: rows may begin behind row_from tokens, to which attn_prefix has attended
#endif
#define THREADS 128
constexpr int WARPS = THREADS / 32;
constexpr int SUBS = TILE / 16;    // matrix tiles of a step
constexpr int MIN_SPLIT = 64;      // tokens a CTA takes at least
static_assert(GROUP <= 8, "more than 8 query heads a KV head");

constexpr int ROW = HEAD_DIM * (int)sizeof(kv_t);  // bytes of a token's K or V of a head
constexpr int K_WORDS = ROW / 16, V_WORDS = ceil_div(ROW, 32);  // words of it that a lane holds: a quarter of K, an eighth of V
constexpr int MAX_SPLITS = 32;     // attn_prefix's included
constexpr int PREFIX_TILE = 64;    // attn_prefix's
constexpr int PART = GROUP * (HEAD_DIM + 4);  // floats of a split's partial result
constexpr int PITCH = HEAD_DIM + 8;  // of heads in shared memory, against bank conflicts

struct Params {
	const bf16* qkv;
	kv_t* kv;             // the layer's cache
	bf16* out;
	const bf16* qnorm;    // [HEAD_DIM], QK_NORM
	const bf16* knorm;
	const float2* rope;   // [positions, HEAD_DIM/2] cos, sin
	const i32* row_slot;  // [rows], -1: padding
	const i32* row_ctx;   // [rows], this token included
	const i32* row_from;  // [rows], PREFIX
	const i32* page_table;  // [slots, MAX_PAGES]
	float* part;          // [rows, KV_HEADS, prefix_splits + splits, GROUP*(HEAD_DIM+4)]: sums of V, then (max, sum of weights) a head
	u32* arrived;         // [rows, KV_HEADS], 0 before and after
	float scale;          // log2(e)/sqrt(HEAD_DIM), times K's scale
	float to_k, to_v;     // what K and V are multiplied by to be stored, KV_FP8
	float of_v;           // V's scale, KV_FP8
	i32 prefix_splits;    // of attn_prefix at most; 0 unless PREFIX
	i32 pad;
};

// A head's bytes are dealt to LANES lanes in pieces of 16, then of 8, 4 and 2 where it is no multiple. load_row gives a lane its share,
// row_byte is where byte i of it lies in the row. T is kv_t, or half_t dealt in the same order.
template <int LANES, typename From, typename T, int DONE = 0, int PIECE = 16, int WORDS>
DEVICE void load_row(From from, u32 (&w)[WORDS], const T* row, int lane) {
	constexpr int PIECES = (ROW - DONE * LANES) / (PIECE * LANES), WIDE = sizeof(T) / sizeof(kv_t);
#pragma unroll
	for (int i = 0; i < PIECES; i++)
		from.template load<PIECE * WIDE>(&w[(DONE + i * PIECE) * WIDE / 4], reinterpret_cast<const u8*>(row) + ((DONE + i * PIECE) * LANES + PIECE * lane) * WIDE);
	if constexpr (PIECE > 2) load_row<LANES, From, T, DONE + PIECES * PIECE, PIECE / 2>(from, w, row, lane);
}
template <int LANES, int DONE = 0, int PIECE = 16> DEVICE int row_byte(int i, int lane) {
	constexpr int PIECES = (ROW - DONE * LANES) / (PIECE * LANES), NEXT = DONE + PIECES * PIECE;
	if constexpr (PIECE > 2)
		if (i >= NEXT) return row_byte<LANES, NEXT, PIECE / 2>(i, lane);
	return DONE * LANES + (i - DONE) / PIECE * PIECE * LANES + PIECE * lane + (i - DONE) % PIECE;
}

struct Cache {  // pages that other kernels wrote
	template <int BYTES> DEVICE void load(u32* w, const u8* p) const {
		if constexpr (BYTES == 16) {
			const uint4 v = ld16_l2(p);
			w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
		} else if constexpr (BYTES == 8) {
			const uint2 v = ld8_l2(p);
			w[0] = v.x, w[1] = v.y;
		} else {
			w[0] = BYTES == 4 ? ld4_l2(p) : ld2_l2(p);
		}
	}
};
struct SharedMemory {
	template <int BYTES> DEVICE void load(u32* w, const u8* p) const {
		if constexpr (BYTES >= 16) {
#pragma unroll
			for (int i = 0; i < BYTES / 16; i++) {
				const uint4 v = *reinterpret_cast<const uint4*>(p + 16 * i);
				w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
			}
		} else if constexpr (BYTES == 8) {
			const uint2 v = *reinterpret_cast<const uint2*>(p);
			w[0] = v.x, w[1] = v.y;
		} else {
			w[0] = BYTES == 4 ? *reinterpret_cast<const u32*>(p) : *reinterpret_cast<const u16*>(p);
		}
	}
};

typedef u32 KTile[2][K_WORDS];  // of 16 tokens
typedef u32 VTile[4][V_WORDS];
DEVICE int v_token(int i, int t) { return (i >> 1) * 8 + 2 * t + (i & 1); }  // token of a lane's i-th row of V

DEVICE void load_k(KTile& k, const kv_t* tile, int g, int t) {
#pragma unroll
	for (int i = 0; i < 2; i++) load_row<4>(Cache(), k[i], tile + (8 * i + g) * HEAD_DIM, t);
}
DEVICE void load_v(VTile& v, const kv_t* tile, int g, int t) {
#pragma unroll
	for (int i = 0; i < 4; i++) load_row<8>(Cache(), v[i], tile + v_token(i, t) * HEAD_DIM, g);
}

// add_k adds the products of the dims that k's words hold.
DEVICE void add_k(float (&s)[4], const u32 (&q)[HEAD_DIM / 8], const u32 (&k)[K_WORDS]) {
#pragma unroll
	for (int j = 0; j < HEAD_DIM / 16; j++) {
#if KV_FP8
		const uint2 wide = widen_e4m3(k[j]);
		mma_half(s, q[2 * j], 0, q[2 * j + 1], 0, wide.x, wide.y);
#else
		mma_half(s, q[2 * j], 0, q[2 * j + 1], 0, k[2 * j], k[2 * j + 1]);
#endif
	}
}

constexpr int ACC = HEAD_DIM / 16;  // mma results of O: two dims a lane each
// add_v adds the dims that v's words hold, after each element of a token was put beside that of the next.
DEVICE void add_v(float (&o)[ACC][4], const VTile& v, u32 p0, u32 p1) {
#if KV_FP8
#pragma unroll
	for (int a = 0; a < ACC; a++) {
		const u32 order = a % 2 ? 0x7362 : 0x5140;
		const uint2 first = widen_e4m3(__byte_perm(v[0][a / 2], v[1][a / 2], order)), second = widen_e4m3(__byte_perm(v[2][a / 2], v[3][a / 2], order));
		mma_half(o[a], first.x, first.y, second.x, second.y, p0, p1);
	}
#else
#pragma unroll
	for (int a = 0; a < ACC; a++)
		mma_half(o[a], __byte_perm(v[0][a], v[1][a], 0x5410), __byte_perm(v[0][a], v[1][a], 0x7632), __byte_perm(v[2][a], v[3][a], 0x5410),
		         __byte_perm(v[2][a], v[3][a], 0x7632), p0, p1);
#endif
}
// acc_dim is the even dim of accumulator a in lane group g; the odd one follows it.
DEVICE int acc_dim(int a, int g) { return row_byte<8>(2 * a * (int)sizeof(kv_t), g) / (int)sizeof(kv_t); }

DEVICE void add_scaled(float4& sum, float weight, float4 v) {
	sum.x = fmaf(weight, v.x, sum.x);
	sum.y = fmaf(weight, v.y, sum.y);
	sum.z = fmaf(weight, v.z, sum.z);
	sum.w = fmaf(weight, v.w, sum.w);
}
DEVICE void store_quad(bf16* dst, float4 v, float scale) {
	*reinterpret_cast<uint2*>(dst) = make_uint2(pack_bf16(v.x * scale, v.y * scale), pack_bf16(v.z * scale, v.w * scale));
}

struct Shared {
	half_t q[8][PITCH];
	alignas(16) kv_t k[HEAD_DIM], v[HEAD_DIM];  // this step's token
	float o[WARPS][GROUP][HEAD_DIM];
	float m[WARPS][8], l[WARPS][8];
	float2 of_split[MAX_SPLITS][GROUP];  // (max, sum)
	u32 arrived;
};

extern "C" __global__ void __launch_bounds__(THREADS, CTAS) attn_decode(const __grid_constant__ Params p) {
	__shared__ __align__(16) Shared sh;
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int split = blockIdx.x, head = blockIdx.y, row = blockIdx.z;
	PDL_LAUNCH();

	const i32 slot = ld4_l2(p.row_slot + row), ctx = ld4_l2(p.row_ctx + row), pos = ctx - 1;
	const int from = PREFIX ? (int)ld4_l2(p.row_from + row) : 0, shared_tiles = from / PREFIX_TILE;
	const int begin = PREFIX ? from : window_start(ctx), tile0 = begin / TILE, tiles = slot < 0 ? 0 : ceil_div(ctx, TILE) - tile0;
	const int per_split = ceil_div(max(ceil_div(tiles, (int)gridDim.x), MIN_SPLIT / TILE), WARPS) * WARPS;
	const int splits = ceil_div(tiles, per_split);
	// attn_prefix's partial results lie before this kernel's and are merged as if they were splits of it.
	const int before = shared_tiles > 0 ? ceil_div(shared_tiles, ceil_div(shared_tiles, p.prefix_splits)) : 0, places = (PREFIX ? p.prefix_splits : 0) + gridDim.x;
	auto out = [&](int i) { return p.out + ((size_t)row * HEADS + head * GROUP) * HEAD_DIM + i; };
	if (split >= splits) {
		PDL_WAIT();
		if (tiles == 0 && split == 0)  // padding: finite, whatever it is
			for (int i = tid; i < GROUP * HEAD_DIM; i += THREADS) *out(i) = to_bf16(0.f);
		return;
	}
	const i32* pages = p.page_table + (size_t)slot * MAX_PAGES;
	struct Pages { i32 of[SUBS]; };  // past the end any page does
	auto pages_of = [&](int tile) {
		Pages r;
#pragma unroll
		for (int u = 0; u < SUBS; u++) r.of[u] = (i32)ld4_l2(pages + min((tile0 + tile) * TILE + 16 * u, pos) / PAGE);
		return r;
	};
	auto tile_at = [&](int tile, int u, const Pages& page, bool is_v) { return p.kv + kv_offset(page.of[u], is_v, head, ((tile0 + tile) * TILE + 16 * u) % PAGE); };

	const int end = min((split + 1) * per_split, tiles);
	int tile = split * per_split + warp;
	KTile k[SUBS];
	VTile v[SUBS];
	Pages page;
	if (tile < end) {
		page = pages_of(tile);
#pragma unroll
		for (int u = 0; u < SUBS; u++) load_k(k[u], tile_at(tile, u, page, false), g, t);
#pragma unroll
		for (int u = 0; u < SUBS; u++) load_v(v[u], tile_at(tile, u, page, true), g, t);
		page = pages_of(min(tile + WARPS, end - 1));
	}
	float2 cs[PAIRS];
	load_rope(cs, p.rope, pos, lane);
	const bool has_token = split == splits - 1;
	const i32 last_page = has_token ? (i32)ld4_l2(pages + pos / PAGE) : 0;
	PDL_WAIT();

	// Heads of the group, then this token's K and V where this split holds it: all asked for before the first is used.
	const bf16* x = p.qkv + (size_t)row * QKV_N;
	constexpr int TURNS = ceil_div(GROUP + 1, WARPS);
	HeadPairs pairs[TURNS];
	auto mine = [&](int turn) {
		const int h = turn * WARPS + warp;
		return h < GROUP || (h == GROUP && has_token);
	};
#pragma unroll
	for (int i = 0; i < TURNS; i++)
		if (mine(i)) pairs[i] = load_head(x + (i * WARPS + warp < GROUP ? head * GROUP + i * WARPS + warp : HEADS + head) * HEAD_DIM, lane);
	if (has_token)
		for (int i = tid; i < HEAD_DIM; i += THREADS) put(&sh.v[i], to_float(bf16{ld2(x + (HEADS + KV_HEADS + head) * HEAD_DIM + i)}) * (KV_FP8 ? p.to_v : 1.f));
	for (int i = tid; i < (8 - GROUP) * HEAD_DIM; i += THREADS) sh.q[GROUP + i / HEAD_DIM][i % HEAD_DIM] = half_t{0};
#pragma unroll
	for (int i = 0; i < TURNS; i++) {
		if (!mine(i)) continue;
		const int h = i * WARPS + warp;
		rotate(pairs[i], h < GROUP ? p.qnorm : p.knorm, cs, lane);
		if (h < GROUP) store_head(sh.q[h], pairs[i], 1.f, lane);
		else store_head(sh.k, pairs[i], KV_FP8 ? p.to_k : 1.f, lane);
	}
	__syncthreads();
	if (has_token)
		for (int i = tid; i < 2 * ROW / 16; i += THREADS) {
			const bool is_v = i >= ROW / 16;
			st16(reinterpret_cast<uint4*>(p.kv + kv_offset(last_page, is_v, head, pos % PAGE)) + i % (ROW / 16), reinterpret_cast<const uint4*>(is_v ? sh.v : sh.k)[i % (ROW / 16)]);
		}
	u32 q[HEAD_DIM / 8];
	load_row<4>(SharedMemory(), q, sh.q[g], t);

	float o[ACC][4] = {};
	float m = -1e30f, l = 0.f;  // of head g, in units of log2; l is the lane's share
	for (; tile < end; tile += WARPS) {
		const int token0 = (tile0 + tile) * TILE, next = tile + WARPS;
		const bool edge = token0 + TILE > pos;  // holds this step's token, and maybe what lies after it
		if (edge) {
#pragma unroll
			for (int i = 0; i < 2 * SUBS; i++)
				if (token0 + 8 * i + g == pos) load_row<4>(SharedMemory(), k[i / 2][i % 2], sh.k, t);
#pragma unroll
			for (int i = 0; i < 4 * SUBS; i++) {
				const int token = token0 + v_token(i, t);
				u32(&row)[V_WORDS] = v[i / 4][i % 4];
				if (token == pos) load_row<8>(SharedMemory(), row, sh.v, g);
				if (token > pos)  // holds anything: 0 * NaN would not be 0
#pragma unroll
					for (int j = 0; j < V_WORDS; j++) row[j] = 0;
			}
		}
		float s[2 * SUBS][4] = {};
#pragma unroll
		for (int i = 0; i < 2 * SUBS; i++) add_k(s[i], q, k[i / 2][i % 2]);
		const Pages next_page = page;
		if (next < end) {
#pragma unroll
			for (int u = 0; u < SUBS; u++) load_k(k[u], tile_at(next, u, next_page, false), g, t);
			page = pages_of(min(next + WARPS, end - 1));
		}
		if (edge || token0 < begin) {
#pragma unroll
			for (int i = 0; i < 4 * SUBS; i++) {
				const int token = token0 + v_token(i, t);
				if (token > pos || token < begin) s[i / 2][i % 2] = -1e30f;
			}
		}
		float top = s[0][0];
#pragma unroll
		for (int i = 1; i < 4 * SUBS; i++) top = fmaxf(top, s[i / 2][i % 2]);
		top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
		top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * p.scale;
		const float m_old = m;
		m = fmaxf(m, top);
		float e[4 * SUBS], sum = 0.f;
#pragma unroll
		for (int i = 0; i < 4 * SUBS; i++) {
			e[i] = exp2_fast(fmaf(s[i / 2][i % 2], p.scale, -m));
			sum += e[i];
		}
		if (__any_sync(~0u, m > m_old)) {
			const float shrink = exp2_fast(m_old - m);
			l *= shrink;
			const float even = __shfl_sync(~0u, shrink, 8 * t), odd = __shfl_sync(~0u, shrink, 8 * t + 4);
#pragma unroll
			for (int a = 0; a < ACC; a++) {
				o[a][0] *= even;
				o[a][1] *= odd;
				o[a][2] *= even;
				o[a][3] *= odd;
			}
		}
		l += sum;
#pragma unroll
		for (int u = 0; u < SUBS; u++) add_v(o, v[u], pack_half(e[4 * u], e[4 * u + 1]), pack_half(e[4 * u + 2], e[4 * u + 3]));
		if (next < end)
#pragma unroll
			for (int u = 0; u < SUBS; u++) load_v(v[u], tile_at(next, u, next_page, true), g, t);
	}
	l += __shfl_xor_sync(~0u, l, 1);
	l += __shfl_xor_sync(~0u, l, 2);
	if (t == 0) {
		sh.m[warp][g] = m;
		sh.l[warp][g] = l;
	}
	// acc a: dim acc_dim (rows g of A hold the lo halves, rows g+8 the hi halves), heads 2t and 2t+1.
#pragma unroll
	for (int a = 0; a < ACC; a++) {
		int d = acc_dim(a, g);
#pragma unroll
		for (int i = 0; i < 4; i++) {
			int h = 2 * t + (i & 1);
			if (h < GROUP) sh.o[warp][h][d + (i >> 1)] = o[a][i];
		}
	}
	__syncthreads();

	// Merge the warps, in their order; a thread takes four dims at a time.
	constexpr int QUADS = GROUP * HEAD_DIM / 4;
	float* part = p.part + ((size_t)(row * KV_HEADS + head) * places + (PREFIX ? p.prefix_splits : 0) + split) * PART;
	for (int i = tid; i < QUADS; i += THREADS) {
		const int h = i / (HEAD_DIM / 4), d = i % (HEAD_DIM / 4) * 4;
		float top = sh.m[0][h];
#pragma unroll
		for (int w = 1; w < WARPS; w++) top = fmaxf(top, sh.m[w][h]);
		float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
		float total = 0.f;
#pragma unroll
		for (int w = 0; w < WARPS; w++) {
			const float weight = exp2_fast(sh.m[w][h] - top);
			add_scaled(sum, weight, *reinterpret_cast<const float4*>(&sh.o[w][h][d]));
			total = fmaf(weight, sh.l[w][h], total);
		}
		if (before + splits == 1) {
			store_quad(out(h * HEAD_DIM + d), sum, (KV_FP8 ? p.of_v : 1.f) / total);
			continue;
		}
		*reinterpret_cast<float4*>(part + h * HEAD_DIM + d) = sum;
		if (d == 0) *reinterpret_cast<float2*>(part + GROUP * HEAD_DIM + 2 * h) = make_float2(top, total);
	}
	if (before + splits == 1) return;
	__syncthreads();
	u32* counter = p.arrived + row * KV_HEADS + head;
	if (tid == 0) sh.arrived = atom_inc_acq_rel(counter);
	__syncthreads();
	if (sh.arrived != splits - 1) return;

	// The last to arrive merges the splits, in their order. The first of them are on their way before the weights are known.
	if (tid == 0) *counter = 0;
	part -= (size_t)(before + split) * PART;
	const int pieces = before + splits;
	constexpr int AHEAD = 8;
	float4 piece[AHEAD];
	auto fetch = [&](int i, int s0) {
#pragma unroll
		for (int s = 0; s < AHEAD; s++)
			if (s0 + s < pieces) {
				const uint4 v = ld16_l2(part + (size_t)(s0 + s) * PART + 4 * i);
				piece[s] = make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
			}
	};
	if (tid < QUADS) fetch(tid, 0);
	for (int i = tid; i < pieces * GROUP; i += THREADS) {
		const uint2 v = ld8_l2(part + (size_t)(i / GROUP) * PART + GROUP * HEAD_DIM + 2 * (i % GROUP));
		sh.of_split[i / GROUP][i % GROUP] = make_float2(__uint_as_float(v.x), __uint_as_float(v.y));
	}
	__syncthreads();
	for (int i = tid; i < QUADS; i += THREADS) {
		const int h = i / (HEAD_DIM / 4);
		float top = -1e30f, total = 0.f;
		for (int s = 0; s < pieces; s++) top = fmaxf(top, sh.of_split[s][h].x);
		float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
		for (int s0 = 0; s0 < pieces; s0 += AHEAD) {
			if (i != tid || s0 > 0) fetch(i, s0);
#pragma unroll
			for (int s = 0; s < AHEAD; s++) {
				if (s0 + s >= pieces) break;
				const float2 ml = sh.of_split[s0 + s][h];
				const float weight = exp2_fast(ml.x - top);
				add_scaled(sum, weight, piece[s]);
				total = fmaf(weight, ml.y, total);
			}
		}
		store_quad(out(4 * i), sum, (KV_FP8 ? p.of_v : 1.f) / total);
	}
}
