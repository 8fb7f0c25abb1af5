// kv_widen: the pages of an e4m3 cache that prefill rows see, as f16 in a room of their own, one behind the other, where the tensor copies of
// attn_prefill_sm90 find them. Each page is widened once, where attention reads it once for each 128 query tokens of each query head.
//
// Shapes: kv [page][K|V][KV_HEADS][PAGE][HEAD_DIM] e4m3, as it lies in the layer's cache; out the same of f16, whose pages are those of the first
// prefill row, then of the second ...; first [rows] is each row's first page there. Grid (any, rows), 256 threads.
// Bytes: 3 an element. Bound by memory. Pages before the first tile of the first query's window are left out.
#include "attention.cuh"

#if !KV_FP8
#error "KV_FP8 1: a bf16 cache is read where it lies"
#endif
#define THREADS 256
constexpr int TILE = 128;  // attn_prefill_sm90 reads whole tiles of tokens, and what it masks has to be finite
constexpr int PIECES = 2 * KV_HEADS * PAGE * HEAD_DIM / 16;  // of 16 bytes in a page

struct Params {
	const kv_t* kv;       // the layer's cache
	half_t* out;
	i32* first;           // [rows]
	const i32* row_slot;  // [rows]
	const i32* row_pos;
	const i32* row_len;
	const i32* page_table;
	i32 first_row;        // the first prefill row: decode rows come before
	i32 pad;
};

DEVICE int pages_of(const Params& p, int row) { return p.row_slot[row] < 0 ? 0 : ceil_div(p.row_pos[row] + p.row_len[row], PAGE); }

extern "C" __global__ void __launch_bounds__(THREADS) kv_widen(const __grid_constant__ Params p) {
	__shared__ int partial[THREADS / 32];
	const int tid = threadIdx.x, row = p.first_row + blockIdx.y;
	PDL_LAUNCH();
	PDL_WAIT();
	int before = 0;
	for (int i = p.first_row + tid; i < row; i += THREADS) before += pages_of(p, i);
	before = __reduce_add_sync(~0u, before);
	if ((tid & 31) == 0) partial[tid >> 5] = before;
	__syncthreads();
	before = 0;
#pragma unroll
	for (int i = 0; i < THREADS / 32; i++) before += partial[i];
	if (blockIdx.x == 0 && tid == 0) p.first[blockIdx.y] = before;

	const int pages = pages_of(p, row), seen = pages > 0 ? window_start(p.row_pos[row] + 1) / TILE * TILE / PAGE : 0;
	const i32* table = p.page_table + (size_t)p.row_slot[row] * MAX_PAGES;
	const size_t end = (size_t)pages * PIECES, stride = (size_t)gridDim.x * THREADS;
#pragma unroll 4
	for (size_t i = (size_t)seen * PIECES + blockIdx.x * THREADS + tid; i < end; i += stride) {
		const uint4 v = ld16(p.kv + ((size_t)table[i / PIECES] * PIECES + i % PIECES) * 16);
		const uint2 a = widen_e4m3(v.x), b = widen_e4m3(v.y), c = widen_e4m3(v.z), d = widen_e4m3(v.w);
		half_t* to = p.out + ((size_t)before * PIECES + i) * 16;
		st16(to, make_uint4(a.x, a.y, b.x, b.y));
		st16(to + 8, make_uint4(c.x, c.y, d.x, d.y));
	}
}
