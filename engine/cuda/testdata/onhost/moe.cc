// Runs a small step of a mixture layer, moe_router, moe_gate_up and moe_down, then moe_topk on the same logits and moe_combine, on random weights and
// tokens, and compares with exact sums: main TOKENS TIES, and CTAS THREADS SHARED_BYTES of each kernel. The kernels are in namespaces, in what includes this.
#include <algorithm>
#include <random>
static int check(bool ok, const char* what, int token, int at) {
	if (!ok) { printf("FAIL %s: token %d, %d\n", what, token, at); exit(1); }
	return 0;
}
int main(int argc, char** argv) {
	const int m = atoi(argv[1]), H = HIDDEN, E = EXPERTS, I = MOE_INTER, K = TOP_K, ties = atoi(argv[2]);
	auto launch = [&](int kernel, std::function<void()> f) { run(atoi(argv[3 + 3 * kernel]), 1, atoi(argv[4 + 3 * kernel]), std::max(64, atoi(argv[5 + 3 * kernel])), f); };
	std::mt19937 r(m); std::normal_distribution<float> nd(0, 1);
	auto normal = [&](size_t n, float size) { std::vector<bf16> v(n); for (auto& x : v) x = to_bf16(size * nd(r)); return v; };
	auto x = normal(m * H, 1.5f), gamma = normal(H, .3f), router = normal((size_t)E * H, ties ? 0 : 1 / sqrtf(H)), gu = normal((size_t)E * 2 * I * H, 1 / sqrtf(H)), wd = normal((size_t)E * H * I, 1 / sqrtf(I));
	for (auto& g : gamma) g = to_bf16(1 + to_float(g));
	auto before = x;
	std::vector<bf16> xn(m * H, bf16{0xFFFF}), act(m * K * I, bf16{0xFFFF}); std::vector<float> logits(m * E, NAN), weight(m * K, NAN); std::vector<i32> slot(m), position(m), pair(m * K); std::vector<u16> expert(m * K);
	for (int i = 0; i < m; i++) slot[i] = i % 5 == 4 ? -1 : i, position[i] = 7 * i;
	launch(0, [&] { moe_router::moe_router({x.data(), gamma.data(), router.data(), xn.data(), logits.data(), m, 0}); });
	const Tokens tokens{logits.data(), slot.data(), position.data(), m, 3};
	launch(1, [&] { moe_gate_up::moe_gate_up({gu.data(), xn.data(), act.data(), tokens}); });
	launch(2, [&] { moe_down::moe_down({wd.data(), act.data(), x.data(), tokens}); });
	launch(3, [&] { moe_topk::moe_topk({logits.data(), slot.data(), position.data(), expert.data(), weight.data(), pair.data(), m, 3}); });

	double error = 0, size = 0;
	for (int i = 0; i < m; i++) {
		double ss = 0;
		for (int k = 0; k < H; k++) ss += pow(to_float(before[i * H + k]), 2);
		std::vector<double> n(H), l(E), out(H);
		for (int k = 0; k < H; k++) out[k] = to_float(before[i * H + k]), n[k] = out[k] / sqrt(ss / H + RMS_EPS) * to_float(gamma[k]);
		for (int e = 0; e < E; e++) {
			for (int k = 0; k < H; k++) l[e] += n[k] * to_float(router[(size_t)e * H + k]);
			check(fabs(l[e] - logits[i * E + e]) < 3e-2, "logit", i, e);  // of size 1, of two roundings to bf16 a term
			l[e] = logits[i * E + e];
		}
		std::vector<int> order(E);
		for (int e = 0; e < E; e++) order[e] = e;
		std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return l[a] > l[b]; });
		double sum = 0;
		for (int j = 0; j < (NORM_TOP_K ? K : E); j++) sum += exp(l[order[j]] - l[order[0]]);
		std::vector<int> chosen;
		for (int j = 0; j < K && slot[i] >= 0; j++) {
			int e = order[j];
			const double w = exp(l[e] - l[order[0]]) / sum;
			if (UNIFORM) {
				u32 h = (u32)position[i] * 0x9E3779B1u ^ (u32)slot[i] * 0x85EBCA77u ^ 3u * 0xC2B2AE3Du;
				h ^= h >> 16; h *= 0x85EBCA6Bu; h ^= h >> 13; h *= 0xC2B2AE35u; h ^= h >> 16;
				e = (h % E + j * (E / K)) % E;
			}
			const int at = std::find(expert.begin() + i * K, expert.begin() + (i + 1) * K, e) - expert.begin();
			check(at < (i + 1) * K && fabs(weight[at] - w) < 1e-5, "choice", i, e);
			chosen.push_back(e);
			for (int c = 0; c < I; c++) {
				double gate = 0, up = 0;
				const bf16* row = &gu[((size_t)e * 2 * I + c / 8 * 16 + c % 8) * H];
				for (int k = 0; k < H; k++) gate += n[k] * to_float(row[k]), up += n[k] * to_float(row[8 * H + k]);
				const double a = w * gate / (1 + exp(-gate)) * up;
				for (int h = 0; h < H; h++) out[h] += a * to_float(wd[((size_t)e * H + h) * I + c]);
			}
		}
		std::sort(chosen.begin(), chosen.end());
		for (int j = 0; j < K; j++) check(slot[i] < 0 ? expert[i * K + j] == NONE && pair[i * K + j] == -1 : expert[i * K + j] == chosen[j], "order", i, j);
		for (int h = 0; h < H; h++) {
			const double d = to_float(x[i * H + h]) - out[h];
			check(d == d, "NaN", i, h);
			error += d * d, size += out[h] * out[h];
		}
	}
	check(sqrt(error / size) < 4e-3, "output", int(1e6 * sqrt(error / size)), 0);  // twice 2^-9, of the stored sum and of act

	auto y = normal((size_t)m * K * H, 1);
	for (int i = 0; i < m * K; i++)
		if (slot[i / K] >= 0) pair[i] = (i + 3 * K) % (m * K);
	x = before;
	launch(4, [&] { moe_combine::moe_combine({y.data(), pair.data(), weight.data(), x.data()}); });
	for (int i = 0; i < m; i++)
		for (int h = 0; h < H; h++) {
			double want = to_float(before[i * H + h]);
			for (int j = 0; j < K && slot[i] >= 0; j++) want += weight[i * K + j] * to_float(y[(size_t)pair[i * K + j] * H + h]);
			check(fabs(to_float(x[i * H + h]) - want) <= fabs(want) / 256 + 1e-5, "combined", i, h);
		}
	printf("ok\n");
}
