// run gives every CTA of a grid its turn: its threads are fibers, which take turns in it.
#pragma once
#include "ptx.cuh"
#include <functional>
static uint4* emu_smem;  // what a kernel's dynamic shared memory has become
static std::function<void()> kernel;
static void entry() { kernel(); done[current] = true; yield(); }
static std::vector<u8> stacks;
static void run(int gx, int gy, int nthreads, size_t smem, std::function<void()> f) {
	kernel = f; threads = nthreads; gridDim = {(u32)gx, (u32)gy, 1};
	static std::vector<uint4> mem; mem.assign(smem / 16 + 1, make_uint4(~0u, ~0u, ~0u, ~0u)); smem_base = (u8*)mem.data(); smem_size = smem; emu_smem = mem.data();
	const size_t S = 128 << 10; stacks.resize((size_t)MAXT * S);
	for (int by = 0; by < gy; by++) for (int bx = 0; bx < gx; bx++) {
		memset(smem_base, 0xFF, smem);
		for (int i = 0; i < nthreads; i++) { done[i] = false; getcontext(&fiber[i]); fiber[i].uc_stack.ss_sp = &stacks[i * S]; fiber[i].uc_stack.ss_size = S; fiber[i].uc_link = &home; makecontext(&fiber[i], entry, 0); }
		for (int left = nthreads; left;) { left = 0; for (int i = 0; i < nthreads; i++) if (!done[i]) { left++; current = i; threadIdx = {(u32)i, 0, 0}; blockIdx = {(u32)bx, (u32)by, 0}; swapcontext(&home, &fiber[i]); } }
	}
}
