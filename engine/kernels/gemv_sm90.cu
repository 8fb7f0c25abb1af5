// gemv_sm90: gemv's products (M <= 2 tokens on CUDA cores) with W streamed by bulk copies into a ring in shared memory.
//
// Shapes: W [N, K] bf16 row-major, x [M, K], y [M, N]. Grid: 1 CTA an SM, 256 threads = 8 warps; shared memory: x, and SLOTS chunks a
// warp. Bytes: 2NK + 2M(K+N); FLOPs 2MNK: bound by memory.
// A warp owns whole rows and a ring of its own, so nothing but its own barriers is waited for. One lane asks for a chunk (up to 2 KB
// of a row) with one instruction; the ring is filled before the wait on the previous kernel. The ring is what sizes the kernel: two such
// CTAs fit an SM, three do not, so just the next kernel can come in and fill its ring while this one drains, at few registers.
// x is scaled by gamma (rounded to bf16) on its way to shared memory; 1/RMS multiplies the finished sums.
#include "linear.cuh"

#ifndef SLOTS
#error "SLOTS: chunks of a warp's ring"
#endif
#ifndef LATE_TRIGGER
#error "LATE_TRIGGER: 1 lets the next kernel in when this one has asked for its last chunk, 0 at once"
#endif
#define THREADS 256

constexpr int WARPS = THREADS / 32;
constexpr int CHUNKS = ceil_div(K, 1024);                  // of a row
constexpr int CHUNK = ceil_div(ceil_div(K, CHUNKS), 8) * 8;  // elements of one; a row's last may be shorter
constexpr int STEPS = ceil_div(CHUNK, 256);                // 512-byte reads of a warp in one
constexpr bool WHOLE = CHUNK * CHUNKS == K && CHUNK % 256 == 0;
constexpr int ROWS = EPILOGUE == SWIGLU ? 2 : 1;           // of a unit: gate and up
constexpr int PASSES = ROWS * CHUNKS;
constexpr int UNITS = N / ROWS;
constexpr int VECS = ceil_div(K / 8, THREADS);             // 16-byte pieces of x that a thread stages

struct Shared {
	uint4 x[M][ceil_div(K, 8)];
	uint4 ring[WARPS][SLOTS][ceil_div(CHUNK, 8)];
	u64 full[WARPS][SLOTS];
	float partial[M][WARPS];
	Candidate found[WARPS][M];
};

DEVICE void dot8(float& acc, uint4 w, uint4 x) {
	acc = fmaf(bf16_lo(w.x), bf16_lo(x.x), acc);
	acc = fmaf(bf16_hi(w.x), bf16_hi(x.x), acc);
	acc = fmaf(bf16_lo(w.y), bf16_lo(x.y), acc);
	acc = fmaf(bf16_hi(w.y), bf16_hi(x.y), acc);
	acc = fmaf(bf16_lo(w.z), bf16_lo(x.z), acc);
	acc = fmaf(bf16_hi(w.z), bf16_hi(x.z), acc);
	acc = fmaf(bf16_lo(w.w), bf16_lo(x.w), acc);
	acc = fmaf(bf16_hi(w.w), bf16_hi(x.w), acc);
}

// Place is a chunk: a pass over a unit's rows.
struct Place {
	int unit, pass;
	DEVICE void next(int stride) {
		if (++pass == PASSES) {
			pass = 0;
			unit += stride;
		}
	}
	DEVICE int length() const { return WHOLE ? CHUNK : min(CHUNK, K - pass % CHUNKS * CHUNK); }
	DEVICE size_t offset() const {
		int row = EPILOGUE == SWIGLU ? gate_row(unit) + (pass >= CHUNKS ? 8 : 0) : unit;
		return (size_t)row * K + pass % CHUNKS * CHUNK;
	}
};

extern "C" __global__ void __launch_bounds__(THREADS) gemv_sm90(const __grid_constant__ Params p) {
	extern __shared__ __align__(128) uint4 smem[];
	Shared& sh = *reinterpret_cast<Shared*>(smem);
	const int tid = threadIdx.x, lane = tid & 31, warp = tid >> 5;
	const int first = warp * gridDim.x + blockIdx.x, stride = gridDim.x * WARPS;
	if (!LATE_TRIGGER) PDL_LAUNCH();
	const u64 policy = policy_evict_first();
	u64* full = sh.full[warp];
	if (lane == 0) {
#pragma unroll
		for (int i = 0; i < SLOTS; i++) mbarrier_init(full + i, 1);
		mbarrier_init_fence();
	}
	__syncwarp();

	bool triggered = false;
	Place ahead = {first, 0};  // the next chunk to ask for
	auto ask = [&](int slot) {
		if (ahead.unit < UNITS && lane == 0) {
			mbarrier_expect(full + slot, ahead.length() * 2);
			bulk_load(sh.ring[warp][slot], p.w + ahead.offset(), ahead.length() * 2, full + slot, policy);
		}
		ahead.next(stride);
		if (LATE_TRIGGER && warp == 0 && ahead.unit >= UNITS && !triggered) {
			PDL_LAUNCH();
			triggered = true;
		}
	};
#pragma unroll 1
	for (int i = 0; i < SLOTS; i++) ask(i);

	uint4 g[NORM ? VECS : 1];
	if (NORM) {
#pragma unroll
		for (int v = 0; v < VECS; v++)
			if (v * THREADS + tid < K / 8) g[v] = ld16(p.gamma + (v * THREADS + tid) * 8);
	}
	PDL_WAIT();
#pragma unroll
	for (int m = 0; m < M; m++) {
		const bf16* x = p.x + (size_t)token_row(p, m) * K;
		float ss = 0.f;
#pragma unroll
		for (int v = 0; v < VECS; v++) {
			const int i = v * THREADS + tid;
			if (i >= K / 8) continue;
			uint4 xv = ld16(x + i * 8);
			if (NORM) {
				dot8(ss, xv, xv);
				xv = make_uint4(mul_bf16x2(xv.x, g[v].x), mul_bf16x2(xv.y, g[v].y), mul_bf16x2(xv.z, g[v].z), mul_bf16x2(xv.w, g[v].w));
			}
			sh.x[m][i] = xv;
		}
		if (NORM) {
			ss = warp_sum(ss);
			if (lane == 0) sh.partial[m][warp] = ss;
		}
	}
	__syncthreads();
	float scale[M];
#pragma unroll
	for (int m = 0; m < M; m++) {
		scale[m] = 1.f;
		if (NORM) {
			float ss = 0.f;
#pragma unroll
			for (int i = 0; i < WARPS; i++) ss += sh.partial[m][i];
			scale[m] = rsqrtf(ss * (1.f / K) + RMS_EPS);
		}
	}

	Best best;  // of row m = lane
	Draw draw;
	if (EPILOGUE == HEAD_FAST && lane < M) draw = draw_of(p.slot_param, p.slot[lane], p.position[lane]);

	int slot = 0;
	u32 parity = 0;
	for (int unit = first; unit < UNITS; unit += stride) {
		float old = 0.f;  // lane m finishes row m; what it adds to is on its way meanwhile
		if (EPILOGUE == RESIDUAL && lane < M) old = to_float(p.y[(size_t)lane * N + unit]);
		if (EPILOGUE == STORE_BIAS && lane < M) old = to_float(p.bias[unit]);
		float acc[M] = {}, gate[M] = {};
#pragma unroll 1
		for (int pass = 0; pass < PASSES; pass++) {
			const int chunk = CHUNKS == 1 ? 0 : pass % CHUNKS;
			if (EPILOGUE == SWIGLU && pass == CHUNKS) {
#pragma unroll
				for (int m = 0; m < M; m++) {
					gate[m] = acc[m];
					acc[m] = 0.f;
				}
			}
			const Place here = {unit, pass};
			const uint4* w = sh.ring[warp][slot];
			mbarrier_wait(full + slot, parity);
#pragma unroll
			for (int s = 0; s < STEPS; s++) {
				const int i = s * 32 + lane;
				if (!WHOLE && i * 8 >= here.length()) continue;
				const uint4 wv = w[i];
#pragma unroll
				for (int m = 0; m < M; m++) dot8(acc[m], wv, sh.x[m][chunk * (CHUNK / 8) + i]);
			}
			__syncwarp();
			ask(slot);
			if (++slot == SLOTS) {
				slot = 0;
				parity ^= 1;
			}
		}
		float value = 0.f;
#pragma unroll
		for (int m = 0; m < M; m++) {
			float v = warp_sum(acc[m]) * scale[m];
			if (EPILOGUE == SWIGLU) v = swiglu(warp_sum(gate[m]) * scale[m], v);
			if (lane == m) value = v;
		}
		if (lane >= M) continue;
		if (EPILOGUE == HEAD_FAST) best.add(draw, value, unit);
		else if (EPILOGUE == HEAD_LOGITS) p.logits[(size_t)lane * N + unit] = value;
		else p.y[(size_t)lane * UNITS + unit] = to_bf16(value + old);
	}

	if (EPILOGUE == HEAD_FAST) {
		if (lane < M) sh.found[warp][lane] = Candidate{best.score, best.token};
		__syncthreads();
		if (tid < M) {
			for (int i = 0; i < WARPS; i++) best.merge(sh.found[i][tid]);
			p.best[(size_t)tid * gridDim.x + blockIdx.x] = Candidate{best.score, best.token};
		}
	}
}
