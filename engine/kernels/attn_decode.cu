// attn_decode: one query token a row against its paged KV cache: QK-norm, RoPE, KV write, split-KV attention, combine, in one launch.
//
// Shapes: qkv [rows, (HEADS+2 KV_HEADS) HEAD_DIM], out [rows, HEADS HEAD_DIM], cache [page][K|V][KV_HEADS][PAGE][HEAD_DIM], all bf16.
// Grid (splits, KV_HEADS, rows), 128 threads, 3 CTAs an SM; static shared memory. Bytes: 4 ctx KV_HEADS HEAD_DIM a row; bound by
// memory, at one row by latency.
// A CTA works on one split of one KV head with all its query heads (GROUP <= 8), a warp on tiles of 16 tokens, both products on the
// matrix units, nothing staged in shared memory:
//   S = Q K^T: heads are the 16 rows of A (half of them idle), tokens the columns of B. As in gemv_mma a lane takes 16 bytes of a token.
//   O^T = V^T P^T: dims are the rows of A, heads the columns of B, tokens the k. Lane 4g+t takes 8 dims at 8g of tokens 2t, 2t+1, 2t+8,
//   2t+9 and pairs them up by byte permutes; S leaves P in just the layout that B wants.
// K and V of the next tile are on their way while this one is computed. The first tile's are asked for before the wait: earlier steps
// wrote them (this step's token is patched in from shared memory by the split that holds it), and so are the plan's arrays read:
// advance has ended before embed lets anything else start.
// Partial results go through L2; the last CTA of a (row, head) to arrive merges them in split order.
#include "attention.cuh"

#define THREADS 128
constexpr int WARPS = THREADS / 32;
constexpr int TILE = 16;           // tokens of a warp's step
constexpr int MIN_SPLIT = 64;      // tokens a CTA takes at least
static_assert(GROUP <= 8, "more than 8 query heads a KV head");

constexpr int K32 = HEAD_DIM / 32, K16 = HEAD_DIM % 32 / 16;                                        // 16- and 8-byte pieces of K a lane holds
constexpr int V64 = HEAD_DIM / 64, V32 = HEAD_DIM % 64 / 32, V16 = HEAD_DIM % 32 / 16;                  // blocks of dims: 8, 4, 2 a lane
constexpr int MAX_SPLITS = 32;
constexpr int PART = GROUP * (HEAD_DIM + 4);  // floats of a split's partial result
constexpr int PITCH = HEAD_DIM + 8;  // of heads in shared memory, against bank conflicts

struct Params {
	const bf16* qkv;
	bf16* kv;             // the layer's cache
	bf16* out;
	const bf16* qnorm;    // [HEAD_DIM], QK_NORM
	const bf16* knorm;
	const float2* rope;   // [positions, HEAD_DIM/2] cos, sin
	const i32* row_slot;  // [rows], -1: padding
	const i32* row_ctx;   // [rows], this token included
	const i32* page_table;  // [slots, MAX_PAGES]
	float* part;          // [rows, KV_HEADS, splits, GROUP*(HEAD_DIM+4)]: sums of V, then (max, sum of weights) a head
	u32* arrived;         // [rows, KV_HEADS], 0 before and after
	float scale;          // log2(e)/sqrt(HEAD_DIM)
	u32 pad;
};

struct KTile { uint4 a[2][max_of(K32, 1)]; uint2 b[2][max_of(K16, 1)]; };
struct VTile { uint4 a[4][max_of(V64, 1)]; uint2 b[4][max_of(V32, 1)]; u32 c[4][max_of(V16, 1)]; };

DEVICE int v_token(int i, int t) { return (i >> 1) * 8 + 2 * t + (i & 1); }  // token of a lane's i-th piece of V

DEVICE void load_k(KTile& k, const bf16* tile, int g, int t) {
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const bf16* row = tile + (8 * i + g) * HEAD_DIM;
#pragma unroll
		for (int j = 0; j < K32; j++) k.a[i][j] = ld16_l2(row + 32 * j + 8 * t);
		if (K16) k.b[i][0] = ld8_l2(row + 32 * K32 + 4 * t);
	}
}

DEVICE void load_v(VTile& v, const bf16* tile, int g, int t) {
#pragma unroll
	for (int i = 0; i < 4; i++) {
		const bf16* row = tile + v_token(i, t) * HEAD_DIM;
#pragma unroll
		for (int j = 0; j < V64; j++) v.a[i][j] = ld16_l2(row + 64 * j + 8 * g);
		if (V32) v.b[i][0] = ld8_l2(row + 64 * V64 + 4 * g);
		if (V16) v.c[i][0] = ld4_l2(row + 64 * V64 + 32 * V32 + 2 * g);
	}
}

// zip pairs an element of one token with the same of the next: lo halves, then hi halves.
DEVICE u32 zip_lo(u32 a, u32 b) { return __byte_perm(a, b, 0x5410); }
DEVICE u32 zip_hi(u32 a, u32 b) { return __byte_perm(a, b, 0x7632); }

// add_v adds the two dims that word w of the lane's pieces hold.
DEVICE void add_v(float (&o)[4], u32 w0, u32 w1, u32 w2, u32 w3, u32 p0, u32 p1) {
	mma_bf16(o, zip_lo(w0, w1), zip_hi(w0, w1), zip_lo(w2, w3), zip_hi(w2, w3), p0, p1);
}

constexpr int ACC = V64 * 4 + V32 * 2 + V16;  // mma results of O: two dims a lane each
// acc_dim is the even dim of accumulator a in lane group g; the odd one follows it.
DEVICE int acc_dim(int a, int g) {
	if (a < V64 * 4) return (a / 4) * 64 + 8 * g + 2 * (a % 4);
	a -= V64 * 4;
	if (a < V32 * 2) return V64 * 64 + 4 * g + 2 * a;
	return V64 * 64 + V32 * 32 + 2 * g;
}

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
	bf16 q[8][PITCH];
	bf16 k[PITCH], v[PITCH];  // this step's token
	float o[WARPS][GROUP][HEAD_DIM];
	float m[WARPS][8], l[WARPS][8];
	float2 of_split[MAX_SPLITS][GROUP];  // (max, sum)
	u32 arrived;
};

extern "C" __global__ void __launch_bounds__(THREADS, 3) attn_decode(const __grid_constant__ Params p) {
	__shared__ __align__(16) Shared sh;
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5, g = lane >> 2, t = lane & 3;
	const int split = blockIdx.x, head = blockIdx.y, row = blockIdx.z;
	PDL_LAUNCH();

	const i32 slot = ld4_l2(p.row_slot + row), ctx = ld4_l2(p.row_ctx + row), pos = ctx - 1;
	const int begin = window_start(ctx), tile0 = begin / TILE, tiles = slot < 0 ? 0 : ceil_div(ctx, TILE) - tile0;
	const int per_split = ceil_div(max(ceil_div(tiles, (int)gridDim.x), MIN_SPLIT / TILE), WARPS) * WARPS;
	const int splits = ceil_div(tiles, per_split);
	bf16* out = p.out + ((size_t)row * HEADS + head * GROUP) * HEAD_DIM;
	if (split >= splits) {
		PDL_WAIT();
		if (tiles == 0 && split == 0)  // padding: finite, whatever it is
			for (int i = tid; i < GROUP * HEAD_DIM; i += THREADS) out[i] = to_bf16(0.f);
		return;
	}
	const i32* pages = p.page_table + (size_t)slot * MAX_PAGES;
	auto page_of = [&](int tile) { return (i32)ld4_l2(pages + (tile0 + tile) * TILE / PAGE); };
	auto tile_at = [&](int tile, i32 page, bool is_v) { return p.kv + kv_offset(page, is_v, head, (tile0 + tile) * TILE % PAGE); };

	const int end = min((split + 1) * per_split, tiles);
	int tile = split * per_split + warp;
	KTile k;
	VTile v;
	i32 page = 0;
	if (tile < end) {
		page = page_of(tile);
		load_k(k, tile_at(tile, page, false), g, t);
		load_v(v, tile_at(tile, page, true), g, t);
		page = page_of(min(tile + WARPS, end - 1));
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
		for (int i = tid; i < HEAD_DIM; i += THREADS) sh.v[i] = x[(HEADS + KV_HEADS + head) * HEAD_DIM + i];
	for (int i = tid; i < (8 - GROUP) * HEAD_DIM; i += THREADS) sh.q[GROUP + i / HEAD_DIM][i % HEAD_DIM] = bf16{0};
#pragma unroll
	for (int i = 0; i < TURNS; i++) {
		if (!mine(i)) continue;
		const int h = i * WARPS + warp;
		rotate(pairs[i], h < GROUP ? p.qnorm : p.knorm, cs, lane);
		store_head(h < GROUP ? sh.q[h] : sh.k, pairs[i], lane);
	}
	__syncthreads();
	if (has_token)
		for (int i = tid; i < 2 * HEAD_DIM; i += THREADS)
			p.kv[kv_offset(last_page, i >= HEAD_DIM, head, pos % PAGE) + i % HEAD_DIM] = i < HEAD_DIM ? sh.k[i] : sh.v[i - HEAD_DIM];
	uint4 qa[max_of(K32, 1)];
	uint2 qb = make_uint2(0, 0);
#pragma unroll
	for (int j = 0; j < K32; j++) qa[j] = *reinterpret_cast<const uint4*>(&sh.q[g][32 * j + 8 * t]);
	if (K16) qb = *reinterpret_cast<const uint2*>(&sh.q[g][32 * K32 + 4 * t]);

	float o[ACC][4] = {};
	float m = -1e30f, l = 0.f;  // of head g, in units of log2; l is the lane's share
	for (; tile < end; tile += WARPS) {
		const int token0 = (tile0 + tile) * TILE, next = tile + WARPS;
		const bool edge = token0 + TILE > pos;  // holds this step's token, and maybe what lies after it
		if (edge) {
#pragma unroll
			for (int i = 0; i < 2; i++)
				if (token0 + 8 * i + g == pos) {
#pragma unroll
					for (int j = 0; j < K32; j++) k.a[i][j] = *reinterpret_cast<const uint4*>(&sh.k[32 * j + 8 * t]);
					if (K16) k.b[i][0] = *reinterpret_cast<const uint2*>(&sh.k[32 * K32 + 4 * t]);
				}
#pragma unroll
			for (int i = 0; i < 4; i++) {
				int token = token0 + v_token(i, t);
				if (token < pos) continue;
				const bool now = token == pos;  // later ones hold anything: zero them, as 0 * NaN would not be 0
#pragma unroll
				for (int j = 0; j < V64; j++) v.a[i][j] = now ? *reinterpret_cast<const uint4*>(&sh.v[64 * j + 8 * g]) : make_uint4(0, 0, 0, 0);
				if (V32) v.b[i][0] = now ? *reinterpret_cast<const uint2*>(&sh.v[64 * V64 + 4 * g]) : make_uint2(0, 0);
				if (V16) v.c[i][0] = now ? *reinterpret_cast<const u32*>(&sh.v[64 * V64 + 32 * V32 + 2 * g]) : 0;
			}
		}
		float s[2][4] = {};
#pragma unroll
		for (int i = 0; i < 2; i++) {
#pragma unroll
			for (int j = 0; j < K32; j++) {
				mma_bf16(s[i], qa[j].x, 0, qa[j].y, 0, k.a[i][j].x, k.a[i][j].y);
				mma_bf16(s[i], qa[j].z, 0, qa[j].w, 0, k.a[i][j].z, k.a[i][j].w);
			}
			if (K16) mma_bf16(s[i], qb.x, 0, qb.y, 0, k.b[i][0].x, k.b[i][0].y);
		}
		const i32 next_page = page;
		if (next < end) {
			load_k(k, tile_at(next, next_page, false), g, t);
			page = page_of(min(next + WARPS, end - 1));
		}
		if (edge || token0 < begin) {
#pragma unroll
			for (int i = 0; i < 4; i++) {
				int token = token0 + (i >> 1) * 8 + 2 * t + (i & 1);
				if (token > pos || token < begin) s[i >> 1][i & 1] = -1e30f;
			}
		}
		float top = fmaxf(fmaxf(s[0][0], s[0][1]), fmaxf(s[1][0], s[1][1]));
		top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
		top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * p.scale;
		const float m_old = m;
		m = fmaxf(m, top);
		float e[4];
#pragma unroll
		for (int i = 0; i < 4; i++) {
			e[i] = exp2_fast(fmaf(s[i >> 1][i & 1], p.scale, -m));
		}
		const u32 p0 = pack_bf16(e[0], e[1]), p1 = pack_bf16(e[2], e[3]);
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
		l += e[0] + e[1] + e[2] + e[3];
		int a = 0;
#pragma unroll
		for (int j = 0; j < V64; j++) {
			add_v(o[a + 0], v.a[0][j].x, v.a[1][j].x, v.a[2][j].x, v.a[3][j].x, p0, p1);
			add_v(o[a + 1], v.a[0][j].y, v.a[1][j].y, v.a[2][j].y, v.a[3][j].y, p0, p1);
			add_v(o[a + 2], v.a[0][j].z, v.a[1][j].z, v.a[2][j].z, v.a[3][j].z, p0, p1);
			add_v(o[a + 3], v.a[0][j].w, v.a[1][j].w, v.a[2][j].w, v.a[3][j].w, p0, p1);
			a += 4;
		}
		if (V32) {
			add_v(o[a + 0], v.b[0][0].x, v.b[1][0].x, v.b[2][0].x, v.b[3][0].x, p0, p1);
			add_v(o[a + 1], v.b[0][0].y, v.b[1][0].y, v.b[2][0].y, v.b[3][0].y, p0, p1);
			a += 2;
		}
		if (V16) add_v(o[a], v.c[0][0], v.c[1][0], v.c[2][0], v.c[3][0], p0, p1);
		if (next < end) load_v(v, tile_at(next, next_page, true), g, t);
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
	float* part = p.part + ((size_t)(row * KV_HEADS + head) * gridDim.x + split) * PART;
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
		if (splits == 1) {
			store_quad(out + h * HEAD_DIM + d, sum, 1.f / total);
			continue;
		}
		*reinterpret_cast<float4*>(part + h * HEAD_DIM + d) = sum;
		if (d == 0) *reinterpret_cast<float2*>(part + GROUP * HEAD_DIM + 2 * h) = make_float2(top, total);
	}
	if (splits == 1) return;
	__syncthreads();
	u32* counter = p.arrived + row * KV_HEADS + head;
	if (tid == 0) sh.arrived = atom_inc_acq_rel(counter);
	__syncthreads();
	if (sh.arrived != splits - 1) return;

	// The last to arrive merges the splits, in their order. The first of them are on their way before the weights are known.
	if (tid == 0) *counter = 0;
	part -= (size_t)split * PART;
	constexpr int AHEAD = 8;
	float4 piece[AHEAD];
	auto fetch = [&](int i, int s0) {
#pragma unroll
		for (int s = 0; s < AHEAD; s++)
			if (s0 + s < splits) {
				const uint4 v = ld16_l2(part + (size_t)(s0 + s) * PART + 4 * i);
				piece[s] = make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
			}
	};
	if (tid < QUADS) fetch(tid, 0);
	for (int i = tid; i < splits * GROUP; i += THREADS) {
		const uint2 v = ld8_l2(part + (size_t)(i / GROUP) * PART + GROUP * HEAD_DIM + 2 * (i % GROUP));
		sh.of_split[i / GROUP][i % GROUP] = make_float2(__uint_as_float(v.x), __uint_as_float(v.y));
	}
	__syncthreads();
	for (int i = tid; i < QUADS; i += THREADS) {
		const int h = i / (HEAD_DIM / 4);
		float top = -1e30f, total = 0.f;
		for (int s = 0; s < splits; s++) top = fmaxf(top, sh.of_split[s][h].x);
		float4 sum = make_float4(0.f, 0.f, 0.f, 0.f);
		for (int s0 = 0; s0 < splits; s0 += AHEAD) {
			if (i != tid || s0 > 0) fetch(i, s0);
#pragma unroll
			for (int s = 0; s < AHEAD; s++) {
				if (s0 + s >= splits) break;
				const float2 ml = sh.of_split[s0 + s][h];
				const float weight = exp2_fast(ml.x - top);
				add_scaled(sum, weight, piece[s]);
				total = fmaf(weight, ml.y, total);
			}
		}
		store_quad(out + 4 * i, sum, 1.f / total);
	}
}
