// Runs one kernel of four-bit weights on random weights, x and y, and compares with exact products: main TOKENS GRID_X GRID_Y THREADS SHARED_BYTES.
#include "run.h"
#include KERNEL
#include <random>
static Params P;
int main(int argc, char** argv) {
	int m = atoi(argv[1]), gx = atoi(argv[2]), gy = atoi(argv[3]), nth = atoi(argv[4]); size_t smem = atol(argv[5]);
	std::mt19937 r(1); std::normal_distribution<float> nd(0, 1);
	std::vector<u32> w((size_t)N / 8 * KB * 128, 0x12345678), sc((size_t)N / 8 * ROW_GROUPS * 8);
	std::vector<float> W((size_t)N * K);
	for (int n = 0; n < N; n++) for (int k = 0; k < K; k++) {
		int g = n % 8, step = k / 128, j = k % 128 / 32, t = k % 32 / 8, e = k % 8; u32 q = r() & 15;
		size_t at = (((size_t)n / 8 * KB + step) * 32 + 4 * g + t) * 4 + j; int sh = 4 * (e / 2 + e % 2 * 4); w[at] = (w[at] & ~(15u << sh)) | q << sh;
		size_t s = ((size_t)n / 8 * ROW_GROUPS + k / GROUP) * 8 + g;
		if (k % GROUP == 0) { float f = (1 + (r() & 1023) / 1024.f) / 64; sc[s] = (__float_as_uint(f) & ~31u) | r() % 17; }
		W[(size_t)n * K + k] = ((int)q - (int)(sc[s] & 31)) * __uint_as_float(sc[s] & ~31u);
	}
	std::vector<bf16> x((size_t)m * K), gamma(K), bias(N), out; std::vector<float> X(x.size());
	for (auto& v : gamma) v = to_bf16(1 + .3f * nd(r));
	for (auto& v : bias) v = to_bf16(nd(r));
	for (auto& v : x) v = to_bf16(1.5f * nd(r));
	std::vector<u8> ahead(100000);
#ifdef DEQUANT
	out.assign((size_t)N * K, bf16{0xFFFF}); P.w = (uint4*)w.data(); P.scale = sc.data(); P.out = out.data();
	run(gx, gy, nth, 64, [] { KERNEL_FN(P); });
	for (size_t i = 0; i < W.size(); i++) if (out[i].bits != to_bf16(W[i]).bits) { printf("FAIL dequant %zu %g %g\n", i, to_float(out[i]), W[i]); return 1; }
	printf("ok\n"); return 0;
#else
	const int OUTS = EPILOGUE == SWIGLU ? N / 2 : N;
	out.resize((size_t)m * OUTS); std::vector<bf16> before(out.size()); for (auto& v : before) v = to_bf16(nd(r)); out = before;
	std::vector<double> ref((size_t)m * N);
	for (int i = 0; i < m; i++) {
		double ss = 0; for (int k = 0; k < K; k++) { double v = to_float(x[(size_t)i * K + k]); ss += v * v; }
		double s = NORM ? 1 / sqrt(ss / K + RMS_EPS) : 1;
		for (int n = 0; n < N; n++) { double a = 0; for (int k = 0; k < K; k++) a += (double)to_float(x[(size_t)i * K + k]) * (NORM ? to_float(gamma[k]) : 1.f) * W[(size_t)n * K + k]; ref[(size_t)i * N + n] = a * s; }
	}
	P.w = (uint4*)w.data(); P.scale = sc.data(); P.x = x.data(); P.bias = bias.data(); P.y = out.data(); P.tokens = m;
#ifdef GEMM
	std::vector<float4> part((size_t)gx * gy * 2 * BLOCKS * COLUMNS * THREADS, float4{NAN, NAN, NAN, NAN}); std::vector<u32> arrived(gy * TILES, 0); P.part = part.data(); P.arrived = arrived.data();
#else
	P.gamma = gamma.data(); P.next = ahead.data(); P.next_bytes = 99968; ahead_low = ahead.data(); ahead_high = ahead_low + 99968;
#endif
	run(gx, gy, nth, smem, [] { KERNEL_FN(P); });
#ifdef GEMM
	for (u32 v : arrived) if (v) { printf("FAIL counters\n"); return 1; }
#else
	if (gx <= ceil_div(N, 16) && ahead_sum != 99968) { printf("FAIL prefetched %llu\n", ahead_sum); return 1; }
#endif
	double worst = 0, rms = 0, plain = 0;
	for (int i = 0; i < m; i++) for (int o = 0; o < OUTS; o++) {
		double want;
		if (EPILOGUE == SWIGLU) { double g = ref[(size_t)i * N + gate_row(o)], u = ref[(size_t)i * N + gate_row(o) + 8]; want = g / (1 + exp(-g)) * u; }
		else { want = ref[(size_t)i * N + o]; if (EPILOGUE == RESIDUAL) want += to_float(before[(size_t)i * OUTS + o]); if (EPILOGUE == STORE_BIAS) want += to_float(bias[o]); }
		double got = to_float(out[(size_t)i * OUTS + o]), d = fabs(got - want);
		if (!(d == d)) { printf("FAIL NaN at %d %d\n", i, o); return 1; }
		worst = d > worst ? d : worst; rms += want * want; plain += d * d;
	}
	double rel = sqrt(plain / rms);
	printf("%s relative %.2e worst %.3g of rms %.3g\n", rel < 6e-3 ? "ok" : "FAIL", rel, worst, sqrt(rms / out.size()));
	return rel < 6e-3 ? 0 : 1;
#endif
}
