// sample: chooses a token from stored logits as engine/cpu does: bias, penalties, mask, temperature, then top-k, top-p and min-p each on the
// whole tempered softmax, then the Gumbel-max draw; and log probabilities of the plain distribution. CLUSTER CTAs of 1,024 threads a row:
// where there are few rows, the passes are bound by what one SM does.
//
// Bytes: 4 VOCAB a pass from L2; 2 passes where nothing is truncated, 3 where it is. Truncation needs no sort: the kept set is a prefix of
// the tokens ordered by (logit, then id). A histogram of the tempered logits tells in which few bins its last member lies; the tokens
// of those are gathered in shared memory, and each counts the tokens, and the mass, in front of it. Masses are fixed-point integers, so
// no order of summing shows. Where that does not work out (very many equal logits, a kept set that ends past e^-16 of the likeliest), the
// last member is found bit by bit: 32 rounds for the logit, as many as ids have bits for a tie, each a pass over the row.
#include "block.cuh"
#include "head.cuh"

#if !defined(MAX_BIAS) || !defined(MAX_TOP)
#error "MAX_BIAS, MAX_TOP"
#endif
#define THREADS 1024
constexpr int CANDIDATES = 4096;   // in shared memory
constexpr int BINS = 2 * THREADS;  // of tempered logits, which are 0 and less
constexpr float BINS_TO_ONE = BINS / 16.f;
constexpr float MASS_ONE = 0x1p36f;  // fixed point: 2^18 tokens of probability 1 fit 63 bits

struct Params {
	float* logits;            // [rows, VOCAB]; as they were when the kernel ends
	const i32* sample_slot;   // [rows], -1: padding
	const i32* sample_pos;    // [rows], position of the token to choose
	const i32* mask_row;      // [rows], row of mask or -1
	const u32* mask;          // [.., (VOCAB+31)/32]
	const SlotParams* slot_param;
	u16* counts;              // [slots, VOCAB rounded up to even]
	const TokenBias* bias;    // [slots, MAX_BIAS]
	Sampled* sampled;         // [rows]
	TokenLogProb* top;        // [rows, MAX_TOP]
};

struct Pick { float score; u32 token; };
DEVICE Pick xor_lane(Pick v, int o) { return Pick{__shfl_xor_sync(~0u, v.score, o), __shfl_xor_sync(~0u, v.token, o)}; }
DEVICE Pick best_of(Pick v) {
	return block_reduce<THREADS>(v, [](Pick a, Pick b) { return better(b.score, b.token, a.score, a.token) ? b : a; });
}

// key orders floats as unsigned integers.
DEVICE u32 key_of(float v) {
	const u32 b = __float_as_uint(v);
	return b & 0x80000000u ? ~b : b | 0x80000000u;
}

DEVICE int bin_of(float t) { return t < -16.f ? BINS : min((int)(-t * BINS_TO_ONE), BINS - 1); }

struct Tally { u64 mass; u32 count; };

// Running sums up to and with the thread's own values, in the order of threads.
struct Running { u32 count; float mass; };
DEVICE Running running_sum(Running v) {
	__shared__ Running slot[THREADS / 32];
	const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll
	for (int o = 1; o < 32; o <<= 1) {
		const Running w = {__shfl_up_sync(~0u, v.count, o), __shfl_up_sync(~0u, v.mass, o)};
		if (lane >= o) v = Running{v.count + w.count, v.mass + w.mass};
	}
	__syncthreads();
	if (lane == 31) slot[warp] = v;
	__syncthreads();
	for (int i = 0; i < warp; i++) v = Running{v.count + slot[i].count, v.mass + slot[i].mass};
	return v;
}

extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ Params p) {
	__shared__ float raw_bias[MAX_BIAS];
	__shared__ float near_t[CANDIDATES];  // tokens of the bins where the kept set may end, from the front; those surely kept, from the back
	__shared__ u32 near_id[CANDIDATES];
	__shared__ union { u32 bin[BINS]; u64 mass[THREADS]; } of;
	__shared__ u32 window_from, window_to, in_front, in_all, placed, placed_in_front;
	const int tid = threadIdx.x, row = blockIdx.x / CLUSTER, rank = row_rank();
	const float NEG_INF = -__int_as_float(0x7F800000);
	PDL_LAUNCH();
	PDL_WAIT();
	const i32 slot = p.sample_slot[row];
	if (slot < 0) return;
	const SlotParams s = p.slot_param[slot];
	float* z = p.logits + (size_t)row * VOCAB;
	const TokenBias* bias = p.bias + (size_t)slot * MAX_BIAS;
	u16* counts = p.counts + (size_t)slot * (VOCAB + VOCAB % 2);
	const u32* mask = p.mask_row[row] < 0 ? nullptr : p.mask + (size_t)p.mask_row[row] * ((VOCAB + 31) / 32);
	const bool penalties = s.flags & SLOT_PENALTIES, logprobs = s.flags & SLOT_LOGPROBS;
	const float repetition = s.repetition == 0.f ? 1.f : s.repetition, less = 1.f / repetition;
	if (tid == 0) {
		window_from = window_to = BINS;
		in_front = in_all = placed = placed_in_front = 0;
	}
	of.bin[tid] = of.bin[tid + THREADS] = 0;

	// The plain distribution, before anything is added to it.
	bool bad = false;
	if (s.num_bias > 0) for_each<THREADS, 1>(z, [&](int, float v) { bad |= !is_finite(v); });
	const float norm = logprobs ? log_sum_exp<THREADS>(z) : 0.f;
	sync_row();  // all have read the row
	if (rank == 0) {
		for (int i = tid; i < s.num_bias; i += THREADS) raw_bias[i] = z[bias[i].token];
		__syncthreads();
		if (tid == 0)  // in order, as a token may be named twice
			for (int i = 0; i < s.num_bias; i++) z[bias[i].token] += bias[i].bias;
	}
	sync_row();

	auto adjusted = [&](int id, float v) {
		if (penalties) {
			const u32 c = counts[id];
			if (c) {
				v = v > 0.f ? v * less : v * repetition;
				if (c & 0x7FFF) v -= s.presence + (float)(c & 0x7FFF) * s.frequency;
			}
		}
		if (mask && !(mask[id >> 5] >> (id & 31) & 1)) v = NEG_INF;
		return v;
	};
	Pick pick = {NEG_INF, (u32)~NONFINITE};
	for_each<THREADS>(z, [&](int id, float v) {
		if (s.num_bias == 0) bad |= !is_finite(v);
		v = adjusted(id, v);
		if (better(v, id, pick.score, pick.token)) pick = Pick{v, (u32)id};
	});
	bad = block_reduce<THREADS>((u32)bad, [](u32 a, u32 b) { return a | b; });
	pick = best_of(pick);

	if (s.temperature > 0.f && !bad) {
		const float largest = pick.score, cool = fminf(1.f / s.temperature, 1e30f);
		auto tempered = [&](int id, float v) { return (adjusted(id, v) - largest) * cool; };
		const bool use_k = s.top_k > 0 && s.top_k < VOCAB, use_p = s.top_p > 0.f && s.top_p < 1.f;
		const float least = s.min_p > 0.f ? logf(s.min_p) : NEG_INF;
		u32 last_key = 0, last_id = 0xFFFFFFFFu;  // the kept set's last member, where it was searched for
		bool ranked = false, kept = false, all_near = false;
		if (use_k || use_p) {
			auto mass_of = [&](float t) { return (u64)(__expf(t) * MASS_ONE); };
			u64 total = 0;
			for_each<THREADS>(z, [&](int id, float v) {
				const float t = tempered(id, v);
				total += mass_of(t);
				const int bin = bin_of(t);
				if (bin < BINS) atomicAdd(&of.bin[bin], 1);
			});
			total = block_add<THREADS>(total);
			const u32 k = use_k ? s.top_k : 0x7FFFFFFFu;
			const u64 mass = use_p ? (u64)((double)s.top_p * (double)total) : ~0ull;
			auto reached = [&](Tally y) { return y.count >= k || y.mass >= mass; };

			// Counts of bins are exact, masses within the width of a bin: the kept set ends in bins from..to.
			const float wanted = use_p ? (float)mass * (1.f / MASS_ONE) : __int_as_float(0x7F800000), narrow = __expf(-1.f / BINS_TO_ONE);
			u32 c0 = of.bin[2 * tid], c1 = of.bin[2 * tid + 1];
			for (int i = 1; i < CLUSTER; i++) {
				const u32* bin = cluster_peer(of.bin, (rank + i) % CLUSTER);
				c0 += bin[2 * tid];
				c1 += bin[2 * tid + 1];
			}
			const float m0 = (float)c0 * __expf(-2.f * tid / BINS_TO_ONE), m1 = (float)c1 * __expf(-(2.f * tid + 1.f) / BINS_TO_ONE);
			const Running upto = running_sum(Running{c0 + c1, m0 + m1});
			auto look = [&](u32 bin, u32 count, float most) {
				if (count >= k || most * 1.0001f >= wanted) atomicMin(&window_from, bin);
				if (count >= k || most * narrow * 0.9999f >= wanted) atomicMin(&window_to, bin);
			};
			look(2 * tid, upto.count - c1, upto.mass - m1);
			look(2 * tid + 1, upto.count, upto.mass);
			__syncthreads();
			const int from = window_from, to = window_to;
			if (to >> 1 == tid) in_all = to & 1 ? upto.count : upto.count - c1;
			if (from > 0 && (from - 1) >> 1 == tid) in_front = (from - 1) & 1 ? upto.count : upto.count - c1;
			__syncthreads();
			const int n = in_all - in_front;
			ranked = to < BINS && n <= THREADS;
			all_near = ranked && in_all <= CANDIDATES;
			if (ranked) {
				u64 front = 0;
				for_each<THREADS, 2>(z, [&](int id, float v) {
					const float t = tempered(id, v);
					const int bin = bin_of(t);
					if (bin > to) return;
					if (bin < from) front += mass_of(t);
					if (bin < from && !all_near) return;
					const int at = bin < from ? CANDIDATES - 1 - atomicAdd(cluster_peer(&placed_in_front, 0), 1) : atomicAdd(cluster_peer(&placed, 0), 1);
					cluster_peer(near_t, 0)[at] = t;
					cluster_peer(near_id, 0)[at] = id;
				});
				front = block_add<THREADS>(front);
				const u64 mine = rank == 0 && tid < n ? mass_of(near_t[tid]) : 0;  // the first CTA has the lists
				of.mass[tid] = mine;
				const u64 inside = block_add<THREADS>(mine);
				// The estimate of masses is held to the exact ones.
				ranked = (in_front == 0 || !reached(Tally{front, in_front})) && reached(Tally{front + inside, in_all});
				if (ranked && rank == 0 && tid < n) {
					Tally before = {front, in_front};
					const float t = near_t[tid];
					const u32 id = near_id[tid];
					for (int i = 0; i < n; i++)
						if (near_t[i] > t || (near_t[i] == t && near_id[i] < id)) {
							before.mass += of.mass[i];
							before.count++;
						}
					kept = !reached(before);
				}
			}
			if (!ranked) {
				// tally sums the tokens in front of a place in the order: those above key, and of key's those below id.
				auto tally = [&](u32 key, u32 id) {
					u64 m = 0;
					u32 c = 0;
					for_each<THREADS, 1>(z, [&](int at, float v) {
						const float t = tempered(at, v);
						const u32 k = key_of(t);
						if (k > key || (k == key && at < id)) {
							m += mass_of(t);
							c++;
						}
					});
					return Tally{block_add<THREADS>(m), block_add<THREADS>(c)};
				};
				// The highest key at which the kept set is complete, then the lowest id of that key.
				for (int bit = 31; bit >= 0; bit--) {
					const u32 trial = last_key | 1u << bit;
					if (reached(tally(trial - 1, 0))) last_key = trial;
				}
				u32 below = 0;  // ids up to below - 1 do not complete it
				for (int bit = 31 - __clz(VOCAB); bit >= 0; bit--) {
					const u32 trial = below + (1u << bit);
					if (!reached(tally(last_key, trial))) below = trial;
				}
				last_id = below;
			}
		}
		pick = Pick{NEG_INF, (u32)~NONFINITE};
		auto draw = [&](float t, u32 id) {
			if (t < least || t == NEG_INF || t + MAX_GUMBEL < pick.score) return;
			t += gumbel(s.seed, (u32)p.sample_pos[row], id);
			if (better(t, id, pick.score, pick.token)) pick = Pick{t, id};
		};
		if (kept) draw(near_t[tid], near_id[tid]);
		if (ranked && all_near) {
			for (int i = tid; rank == 0 && i < (int)in_front; i += THREADS) draw(near_t[CANDIDATES - 1 - i], near_id[CANDIDATES - 1 - i]);
		} else {
			const int from = ranked ? (int)window_from : BINS + 1;
			for_each<THREADS, 2>(z, [&](int id, float v) {
				const float t = tempered(id, v);
				const u32 key = key_of(t);
				if (key > last_key || (key == last_key && id <= last_id))
					if (bin_of(t) < from) draw(t, id);
			});
		}
		pick = best_of(pick);
	}

	const u32 token = pick.token < VOCAB ? pick.token : 0;
	if (rank == 0)
		for (int i = tid; i < s.num_bias; i += THREADS) z[bias[i].token] = raw_bias[i];
	sync_row();
	if (rank == 0 && tid == 0) {
		p.sampled[row] = Sampled{(i32)token, logprobs ? z[token] - norm : 0.f, bad ? SAMPLED_NONFINITE : 0u, 0};
		if (penalties && (counts[token] & 0x7FFF) < 0x7FFF) counts[token]++;
	}
	if (!logprobs) return;
	Pick before = {__int_as_float(0x7F800000), 0};
	for (int i = 0; i < min(s.top_logprobs, min(MAX_TOP, VOCAB)); i++) {  // the best of those behind the one before
		Pick next = {NEG_INF, (u32)~NONFINITE};
		for_each<THREADS>(z, [&](int id, float v) {
			if (better(v, id, next.score, next.token) && (i == 0 || better(before.score, before.token, v, id))) next = Pick{v, (u32)id};
		});
		before = best_of(next);
		if (rank == 0 && tid == 0) p.top[(size_t)row * MAX_TOP + i] = TokenLogProb{(i32)before.token, before.score - norm};
	}
}
