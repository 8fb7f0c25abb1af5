// advance: the first kernel of a step. Copies the host's plan into the device arrays that every later kernel reads, applies page
// table updates, and takes decode rows' tokens from their slots. Tokens past the plan's are padding.
//
// Grid (rows of the bucket, ceil(longest row / 1024)), 256 threads. The plan lies in pinned host memory and is read once over PCIe.
#include "plan.cuh"

#ifndef MAX_PAGES
#error "MAX_PAGES"
#endif
#define THREADS 256
#define CHUNK 1024  // tokens of a row that one CTA copies

struct Params {
	const u8* plan[2];  // pinned; copy step & 1 is this step's
	const u64* step;
	u32 row_slot_at, row_pos_at, row_len_at, row_start_at, sample_row_at, mask_row_at, tok_at, update_at;  // bytes into a copy
	i32 *tok_id, *tok_pos, *tok_slot;                         // [tokens]
	i32 *row_slot, *row_pos, *row_len, *row_start, *row_ctx;  // [rows]
	i32 *sample_tok, *sample_slot, *sample_pos, *mask_row;    // [sampling rows]
	const i32* slot_token;                                    // [slots]
	i32* page_table;                                          // [slots, MAX_PAGES]
	i32 tokens, pad;                                          // padded
};

struct Row { i32 slot, pos, len, start; };

extern "C" __global__ void __launch_bounds__(THREADS) advance(const __grid_constant__ Params p) {
	const int tid = threadIdx.x, r = blockIdx.x, chunk = blockIdx.y;
	PDL_WAIT();
	const u8* plan = p.plan[ld4_l2(p.step) & 1];
	auto at = [&](u32 offset, int i) { return (i32)ld_host(plan + offset + 4 * i); };
	auto read_row = [&](int row, int rows) {
		Row v = {-1, 0, 0, 0};
		if (row < rows) v = Row{at(p.row_slot_at, row), at(p.row_pos_at, row), at(p.row_len_at, row), at(p.row_start_at, row)};
		return v.slot < 0 ? Row{-1, 0, 0, 0} : v;
	};
	const int rows = at(4, 0), decode = at(8, 0), sample = at(12, 0), updates = at(16, 0);
	const Row row = read_row(r, rows);
	const bool padding = row.slot < 0;

	if (tid == 0 && chunk == 0) {
		p.row_slot[r] = row.slot;
		p.row_pos[r] = row.pos;
		p.row_len[r] = row.len;
		p.row_start[r] = row.start;
		p.row_ctx[r] = row.pos + row.len;
		Row from = {-1, 0, 0, 0};
		i32 mask = -1;
		if (r < sample) {
			from = read_row(at(p.sample_row_at, r), rows);
			mask = at(p.mask_row_at, r);
		}
		p.sample_tok[r] = from.slot < 0 ? 0 : from.start + from.len - 1;
		p.sample_slot[r] = from.slot;
		p.sample_pos[r] = from.pos + from.len;
		p.mask_row[r] = mask;
	}
	if (r == 0 && chunk == 0)
		for (int i = tid; i < updates; i += THREADS) {
			i32 slot = at(p.update_at, 3 * i), index = at(p.update_at, 3 * i + 1);
			p.page_table[(size_t)slot * MAX_PAGES + index] = at(p.update_at, 3 * i + 2);
		}

	const bool from_slot = r < decode && !padding;
	const i32 first = from_slot ? p.slot_token[row.slot] : 0;
	for (int i = chunk * CHUNK + tid; i < min(row.len, (chunk + 1) * CHUNK); i += THREADS) {
		int t = row.start + i;
		p.tok_id[t] = from_slot ? first : at(p.tok_at, t);
		p.tok_pos[t] = row.pos + i;
		p.tok_slot[t] = row.slot;
	}
	if (r == 0 && chunk == 0)
		for (int t = at(0, 0) + tid; t < p.tokens; t += THREADS) {
			p.tok_id[t] = p.tok_pos[t] = 0;
			p.tok_slot[t] = -1;
		}
}
