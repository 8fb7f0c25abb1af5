// advance: the first kernel of a step. Copies the host's plan into the device arrays that every later kernel reads, applies page
// table updates, and takes decode rows' tokens from their slots. Rows and tokens past the plan's are padding.
//
// Grid ceil(tokens / CHUNK), 512 threads; CTA 0 writes the rows. In a graph the plan lies in pinned host memory, and a warp's read of it
// takes about a microsecond, one after the other whoever asks: reading word by word took 553 us for 16 rows, and one trip of 16 warps 80 us
// (H100). So one warp reads header and rows, which are contiguous, 512 bytes at a time: one read up to 15 rows.
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
	u32 tok_at, update_at;  // bytes into a copy: i32 [tokens], PageUpdate [header.updates]. Header and PlanRow [rows] come first
	i32 *tok_id, *tok_pos, *tok_slot;                         // [tokens]
	i32 *row_slot, *row_pos, *row_len, *row_start, *row_ctx, *row_from;  // [rows]
	i32 *sample_tok, *sample_slot, *sample_pos, *mask_row;    // [rows]
	const i32* slot_token;                                    // [slots]
	i32* page_table;                                          // [slots, MAX_PAGES]
	i32 tokens, rows;                                         // padded
};

// row_of is the row whose tokens include t: the last one that starts at or before it.
DEVICE int row_of(const PlanRow* rows, int count, int t) {
	int low = 0, high = count - 1;
	while (low < high) {
		const int middle = (low + high + 1) >> 1;
		if (rows[middle].start <= t) low = middle;
		else high = middle - 1;
	}
	return low;
}

extern "C" __global__ void __launch_bounds__(THREADS) advance(const __grid_constant__ Params p) {
	__shared__ struct { PlanHeader header; PlanRow rows[MAX_ROWS]; } plan;
	const int tid = threadIdx.x;
	PDL_WAIT();
	const u8* from = p.plan[ld4_l2(p.step) & 1];
	if (tid < 32)
		for (int i = tid; i < (int)sizeof(PlanHeader) / 16 + p.rows * (int)sizeof(PlanRow) / 16; i += 32)
			reinterpret_cast<uint4*>(&plan)[i] = ld_host16(from + 16 * i);
	__syncthreads();
	const PlanHeader& header = plan.header;
	const PlanRow* rows = plan.rows;

	if (blockIdx.x == 0) {
		for (int r = tid; r < p.rows; r += THREADS) {
			const bool real = r < header.rows && rows[r].slot >= 0, sampled = r < header.samples;
			p.row_slot[r] = real ? rows[r].slot : -1;
			p.row_pos[r] = real ? rows[r].pos : 0;
			p.row_len[r] = real ? rows[r].len : 0;
			p.row_start[r] = real ? rows[r].start : 0;
			p.row_ctx[r] = real ? rows[r].pos + rows[r].len : 0;
			p.row_from[r] = real ? rows[r].from : 0;
			const PlanRow& last = rows[sampled ? rows[r].sample_row : 0];
			p.sample_tok[r] = sampled ? last.start + last.len - 1 : 0;
			p.sample_slot[r] = sampled ? last.slot : -1;
			p.sample_pos[r] = sampled ? last.pos + last.len : 0;
			p.mask_row[r] = sampled ? rows[r].mask_row : -1;
		}
		for (int i = tid; i < header.updates; i += THREADS) {
			const uint4 u = ld_host16(from + p.update_at + 16 * i);  // PageUpdate
			p.page_table[(size_t)u.x * MAX_PAGES + u.y] = u.z;
		}
	}

	const int first = blockIdx.x * CHUNK, last = min(p.tokens, first + CHUNK);
	for (int t = first + tid; t < last; t += THREADS) {
		i32 id = 0, pos = 0, slot = -1;
		if (t < header.tokens) {
			const int r = row_of(rows, header.rows, t);
			slot = rows[r].slot;
			pos = rows[r].pos + t - rows[r].start;
			if (slot >= 0 && r < header.decode) id = rows[r].token >= 0 ? rows[r].token : p.slot_token[slot];
			else if (slot >= 0) id = (i32)ld_host(from + p.tok_at + 4 * t);
		}
		p.tok_id[t] = id;
		p.tok_pos[t] = pos;
		p.tok_slot[t] = slot;
	}
	PDL_LAUNCH();  // only now: attn_decode reads rows before its own wait, which the wait of embed, in between, makes safe
}
