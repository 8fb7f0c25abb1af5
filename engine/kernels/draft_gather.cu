// draft_gather: y[i] = x[index ? index[i] : i], rows of COLS. Grid: rows, 128 threads. Bytes: 4 COLS a row.
// It lets the next kernel start only after its own wait, as embed does, in whose place it stands.
#include "ptx.cuh"

#ifndef COLS
#error "COLS"
#endif

struct Params {
	const bf16* x;     // [.., COLS]
	bf16* y;           // [rows, COLS]
	const i32* index;  // [rows] or null; pinned host memory or the device's
};

extern "C" __global__ void __launch_bounds__(128) draft_gather(const __grid_constant__ Params p) {
	PDL_WAIT();
	PDL_LAUNCH();
	const int row = p.index ? (int)ld_host(p.index + blockIdx.x) : blockIdx.x;
	const bf16* from = p.x + (size_t)row * COLS;
	bf16* to = p.y + (size_t)blockIdx.x * COLS;
	for (int i = threadIdx.x; i < COLS / 8; i += blockDim.x) st16(to + 8 * i, ld16(from + 8 * i));
}
