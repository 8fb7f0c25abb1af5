// sample: chooses a token from stored logits as engine/cpu does: bias, penalties, mask, temperature, then top-k, top-p and min-p each on the
// whole tempered softmax, then the Gumbel-max draw; and log probabilities of the plain distribution. One CTA of 512 threads a row.
//
// Bytes: 4 VOCAB a pass from L2; 3 passes where nothing is truncated. Truncation needs no sort: the kept set is a prefix of the tokens
// ordered by (logit, then id), so its last member is found bit by bit: 32 rounds for the logit, as many as ids have bits for a tie, each a
// count and a mass over the candidates. Candidates within e^-REACH of the likeliest fit shared memory nearly always; if they do not, or
// do not hold the whole kept set, the rounds go over the row. Masses are fixed-point integers, so no order of summing shows.
#include "block.cuh"
#include "head.cuh"

#if !defined(MAX_BIAS) || !defined(MAX_TOP)
#error "MAX_BIAS, MAX_TOP"
#endif
#define THREADS 512
constexpr int CANDIDATES = 4096;   // in shared memory
constexpr float REACH = 12.f;
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
DEVICE Pick best_of(Pick v) {
	__shared__ Pick slot[THREADS / 32];
	__syncthreads();
#pragma unroll
	for (int o = 16; o; o >>= 1) {
		Pick w = {__shfl_xor_sync(~0u, v.score, o), __shfl_xor_sync(~0u, v.token, o)};
		if (better(w.score, w.token, v.score, v.token)) v = w;
	}
	if ((threadIdx.x & 31) == 0) slot[threadIdx.x >> 5] = v;
	__syncthreads();
	v = slot[0];
	for (int i = 1; i < THREADS / 32; i++)
		if (better(slot[i].score, slot[i].token, v.score, v.token)) v = slot[i];
	return v;
}

// key orders floats as unsigned integers.
DEVICE u32 key_of(float v) {
	const u32 b = __float_as_uint(v);
	return b & 0x80000000u ? ~b : b | 0x80000000u;
}

struct Tally { u64 mass; u32 count; };

extern "C" __global__ void __launch_bounds__(THREADS) sample(const __grid_constant__ Params p) {
	__shared__ float raw_bias[MAX_BIAS];
	__shared__ float near_t[CANDIDATES];
	__shared__ u32 near_id[CANDIDATES];
	__shared__ u32 near_count;
	const int tid = threadIdx.x, row = blockIdx.x;
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
	if (tid == 0) near_count = 0;

	// The plain distribution, before anything is added to it.
	bool bad = false;
	for_each<THREADS>(z, [&](int, float v) { bad |= !is_finite(v); });
	bad = __syncthreads_or(bad);
	const float norm = logprobs ? log_sum_exp<THREADS>(z) : 0.f;
	for (int i = tid; i < s.num_bias; i += THREADS) raw_bias[i] = z[bias[i].token];
	__syncthreads();
	if (tid == 0)  // in order, as a token may be named twice
		for (int i = 0; i < s.num_bias; i++) z[bias[i].token] += bias[i].bias;
	__syncthreads();

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
		v = adjusted(id, v);
		if (better(v, id, pick.score, pick.token)) pick = Pick{v, (u32)id};
	});
	pick = best_of(pick);

	if (s.temperature > 0.f && !bad) {
		const float largest = pick.score, cool = fminf(1.f / s.temperature, 1e30f);
		auto tempered = [&](int id, float v) { return (adjusted(id, v) - largest) * cool; };
		const bool use_k = s.top_k > 0 && s.top_k < VOCAB, use_p = s.top_p > 0.f && s.top_p < 1.f;
		const float least = s.min_p > 0.f ? logf(s.min_p) : NEG_INF;
		u32 last_key = 0, last_id = 0xFFFFFFFFu;  // the kept set's last member
		bool all_near = false;
		if (use_k || use_p) {
			auto mass_of = [&](float t) { return (u64)(__expf(t) * MASS_ONE); };
			u64 total = 0, near_mass = 0;
			for_each<THREADS>(z, [&](int id, float v) {
				const float t = tempered(id, v);
				const u64 m = mass_of(t);
				total += m;
				if (t < -REACH) return;
				near_mass += m;
				const u32 at = atomicAdd(&near_count, 1);
				if (at < CANDIDATES) {
					near_t[at] = t;
					near_id[at] = id;
				}
			});
			total = block_add<THREADS>(total);
			near_mass = block_add<THREADS>(near_mass);
			const u32 n = near_count;
			const u32 k = use_k ? s.top_k : 0x7FFFFFFFu;
			const u64 mass = use_p ? (u64)((double)s.top_p * (double)total) : ~0ull;
			all_near = n <= CANDIDATES && (n >= k || near_mass >= mass);

			// tally sums the tokens in front of a place in the order: those above key, and of key's those below id.
			auto tally = [&](u32 key, u32 id) {
				u64 m = 0;
				u32 c = 0;
				auto add = [&](float t, u32 at) {
					const u32 k = key_of(t);
					if (k > key || (k == key && at < id)) {
						m += mass_of(t);
						c++;
					}
				};
				if (all_near)
					for (int i = tid; i < (int)n; i += THREADS) add(near_t[i], near_id[i]);
				else
					for_each<THREADS>(z, [&](int at, float v) { add(tempered(at, v), at); });
				return Tally{block_add<THREADS>(m), block_add<THREADS>(c)};
			};
			auto reached = [&](Tally y) { return y.count >= k || y.mass >= mass; };
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
		pick = Pick{NEG_INF, (u32)~NONFINITE};
		auto draw = [&](float t, u32 id) {
			const u32 key = key_of(t);
			if (key < last_key || (key == last_key && id > last_id) || t < least || t == NEG_INF || t + MAX_GUMBEL < pick.score) return;
			t += gumbel(s.seed, (u32)p.sample_pos[row], id);
			if (better(t, id, pick.score, pick.token)) pick = Pick{t, id};
		};
		if (all_near)
			for (int i = tid; i < (int)near_count; i += THREADS) draw(near_t[i], near_id[i]);
		else
			for_each<THREADS>(z, [&](int id, float v) { draw(tempered(id, v), id); });
		pick = best_of(pick);
	}

	const u32 token = pick.token < VOCAB ? pick.token : 0;
	__syncthreads();
	for (int i = tid; i < s.num_bias; i += THREADS) z[bias[i].token] = raw_bias[i];
	__syncthreads();
	if (tid == 0) {
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
		if (tid == 0) p.top[(size_t)row * MAX_TOP + i] = TokenLogProb{(i32)before.token, before.score - norm};
	}
}
