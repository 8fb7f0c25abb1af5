// advance: the first kernel of a step. Copies the host's plan into the device arrays that every later kernel reads, applies page
// table updates, and takes decode rows' tokens from their slots. Rows and tokens past the plan's are padding.
//
// Grid ceil(tokens / CHUNK), 512 threads; CTA 0 writes the rows. The plan lies in pinned host memory, a microsecond and more away over
// PCIe, so every thread asks for all it needs of it at once: a first version, whose threads read one word after the other, took
// 47 us for one row and 553 us for 16 (H100).
#include "plan.cuh"

#ifndef MAX_PAGES
#error "MAX_PAGES"
#endif
#ifndef MAX_ROWS
#error "MAX_ROWS"
#endif
#define THREADS 512
#define CHUNK 2048  // tokens of a CTA

struct Params {
	const u8* plan[2];  // pinned; copy step & 1 is this step's
	const u64* step;
	u32 row_slot_at, row_pos_at, row_len_at, row_start_at, sample_row_at, mask_row_at, tok_at, update_at;  // bytes into a copy
	i32 *tok_id, *tok_pos, *tok_slot;                         // [tokens]
	i32 *row_slot, *row_pos, *row_len, *row_start, *row_ctx;  // [rows]
	i32 *sample_tok, *sample_slot, *sample_pos, *mask_row;    // [rows]
	const i32* slot_token;                                    // [slots]
	i32* page_table;                                          // [slots, MAX_PAGES]
	i32 tokens, rows;                                         // padded
};

struct Row { i32 slot, pos, len, start; };

// row_of is the row whose tokens include t: the last one that starts at or before it.
DEVICE int row_of(const Row* rows, int count, int t) {
	int low = 0, high = count - 1;
	while (low < high) {
		const int middle = (low + high + 1) >> 1;
		if (rows[middle].start <= t) low = middle;
		else high = middle - 1;
	}
	return low;
}

extern "C" __global__ void __launch_bounds__(THREADS) advance(const __grid_constant__ Params p) {
	__shared__ Row rows[MAX_ROWS];
	const int tid = threadIdx.x;
	PDL_WAIT();
	const u8* plan = p.plan[ld4_l2(p.step) & 1];
	auto at = [&](u32 offset, int i) { return (i32)ld_host(plan + offset + 4 * i); };
	const i32 tokens = at(0, 0), count = at(0, 1), decode = at(0, 2), samples = at(0, 3), updates = at(0, 4);
	i32 sample_row[ceil_div(MAX_ROWS, THREADS)], mask_row[ceil_div(MAX_ROWS, THREADS)];
#pragma unroll
	for (int u = 0; u < ceil_div(MAX_ROWS, THREADS); u++) {
		const int r = u * THREADS + tid;
		if (r >= p.rows) break;
		const Row row = {at(p.row_slot_at, r), at(p.row_pos_at, r), at(p.row_len_at, r), at(p.row_start_at, r)};
		sample_row[u] = at(p.sample_row_at, r);
		mask_row[u] = at(p.mask_row_at, r);
		rows[r] = r < count ? row : Row{-1, 0, 0, 0};
	}
	__syncthreads();

	if (blockIdx.x == 0) {
#pragma unroll
		for (int u = 0; u < ceil_div(MAX_ROWS, THREADS); u++) {
			const int r = u * THREADS + tid;
			if (r >= p.rows) break;
			const Row row = rows[r];
			p.row_slot[r] = row.slot;
			p.row_pos[r] = row.pos;
			p.row_len[r] = row.len;
			p.row_start[r] = row.start;
			p.row_ctx[r] = row.pos + row.len;
			const bool sampled = r < samples;
			const Row from = sampled ? rows[sample_row[u]] : Row{-1, 0, 1, 0};
			p.sample_tok[r] = from.start + from.len - 1;
			p.sample_slot[r] = from.slot;
			p.sample_pos[r] = from.pos + from.len;
			p.mask_row[r] = sampled ? mask_row[u] : -1;
		}
		for (int i = tid; i < updates; i += THREADS) {
			const i32 slot = at(p.update_at, 3 * i), index = at(p.update_at, 3 * i + 1), page = at(p.update_at, 3 * i + 2);
			p.page_table[(size_t)slot * MAX_PAGES + index] = page;
		}
	}

	const int first = blockIdx.x * CHUNK, last = min(p.tokens, first + CHUNK);
	for (int t = first + tid; t < last; t += THREADS) {
		i32 id = 0, pos = 0, slot = -1;
		if (t < tokens) {
			const int r = row_of(rows, count, t);
			slot = rows[r].slot;
			pos = rows[r].pos + t - rows[r].start;
			id = r < decode ? p.slot_token[slot] : at(p.tok_at, t);
		}
		p.tok_id[t] = id;
		p.tok_pos[t] = pos;
		p.tok_slot[t] = slot;
	}
	PDL_LAUNCH();  // only now: attn_decode reads rows before its own wait, which the wait of embed, in between, makes safe
}
