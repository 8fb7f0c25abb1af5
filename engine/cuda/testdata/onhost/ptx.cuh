// ptx.cuh for the host: what the kernels of four-bit weights and those of mixtures' small steps call, in C++. A CTA's threads are fibers that take turns; those of a warp meet at a matrix
// product or a shuffle, those of a CTA at a barrier. Asynchronous copies are done at once; shared memory is checked for its size.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <cstdio>
#include <cstdlib>
#include <vector>
#include <ucontext.h>
typedef unsigned char u8; typedef unsigned short u16; typedef unsigned int u32; typedef unsigned long long u64; typedef int i32; typedef long long i64;
struct bf16 { u16 bits; };
#define ARCH 900
#define DEVICE inline
#define __device__
#define __host__
#define __global__
#define __shared__ static
#define __launch_bounds__(...)
#define __grid_constant__
struct uint4 { u32 x, y, z, w; }; struct uint2 { u32 x, y; }; struct float2 { float x, y; }; struct alignas(16) float4 { float x, y, z, w; };
struct int4 { int x, y, z, w; };
static uint4 make_uint4(u32 a, u32 b, u32 c, u32 d) { return {a, b, c, d}; }
static float2 make_float2(float a, float b) { return {a, b}; }
static float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
struct dim { u32 x, y, z; };
static dim threadIdx, blockIdx, gridDim;
static float __uint_as_float(u32 v) { float f; memcpy(&f, &v, 4); return f; }
static u32 __float_as_uint(float v) { u32 f; memcpy(&f, &v, 4); return f; }
static float __int_as_float(int v) { return __uint_as_float((u32)v); }
#define __expf expf
static float __fdividef(float a, float b) { return a / b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float rsqrtf(float v) { return 1.f / sqrtf(v); }
template <class A, class B> static auto min(A a, B b) { return a < b ? a : b; }
template <class A, class B> static auto max(A a, B b) { return a > b ? a : b; }
constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
constexpr int min_of(int a, int b) { return a < b ? a : b; }
constexpr int max_of(int a, int b) { return a > b ? a : b; }
static float bf16_lo(u32 p) { return __uint_as_float(p << 16); }
static float bf16_hi(u32 p) { return __uint_as_float(p & 0xFFFF0000u); }
static float to_float(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
static u32 rb(float f) { u32 b = __float_as_uint(f); return (b + 0x7FFF + (b >> 16 & 1)) >> 16; }
static u32 pack_bf16(float lo, float hi) { return rb(lo) | rb(hi) << 16; }
static bf16 to_bf16(float v) { return bf16{(u16)rb(v)}; }
static u32 mul_bf16x2(u32 a, u32 b) { return pack_bf16(bf16_lo(a) * bf16_lo(b), bf16_hi(a) * bf16_hi(b)); }
static u32 fma_bf16x2(u32 a, u32 b, u32 c) { return pack_bf16(bf16_lo(a) * bf16_lo(b) + bf16_lo(c), bf16_hi(a) * bf16_hi(b) + bf16_hi(c)); }
static uint4 mul_bf16x8(uint4 a, uint4 b) { return {mul_bf16x2(a.x, b.x), mul_bf16x2(a.y, b.y), mul_bf16x2(a.z, b.z), mul_bf16x2(a.w, b.w)}; }
static u32 add_bf16x2(u32 a, u32 b) { return pack_bf16(bf16_lo(a) + bf16_lo(b), bf16_hi(a) + bf16_hi(b)); }
#define PDL_LAUNCH()
#define PDL_WAIT()
static uint4 ld_weight(const void* p) { return *(const uint4*)p; }
static u32 ld_weight4(const void* p) { return *(const u32*)p; }
static uint4 ld16(const void* p) { return *(const uint4*)p; }
static uint4 ld16_l2(const void* p) { return *(const uint4*)p; }
static u32 ld4_l2(const void* p) { return *(const u32*)p; }
static u32 ld2_l2(const void* p) { return *(const u16*)p; }
static void st16(void* p, uint4 v) { *(uint4*)p = v; }
static u64 policy_evict_last() { return 0; }
static const u8 *ahead_low, *ahead_high; static u64 ahead_sum;
static void prefetch_l2(const void* p, u32 n, u64) { if ((const u8*)p < ahead_low || (const u8*)p + n > ahead_high || n % 16 || (u64)((const u8*)p - ahead_low) % 16) { printf("bad prefetch\n"); exit(1); } ahead_sum += n; }
static u8* smem_base; static size_t smem_size;
static u32 smem_addr(const void* p) { size_t at = (const u8*)p - smem_base; if (at + 16 > smem_size) { printf("shared memory: %zu of %zu\n", at, smem_size); exit(1); } if (at % 16) { printf("unaligned\n"); exit(1); } return (u32)at; }
static void cp_async16(u32 dst, const void* src, bool valid) { if (valid) memcpy(smem_base + dst, src, 16); else memset(smem_base + dst, 0, 16); }
static void cp_async_commit() {}
template <int> static void cp_async_wait() {}
// fibers
static const int MAXT = 1024;
static ucontext_t fiber[MAXT], home; static int current, threads; static bool done[MAXT];
static void yield() { int me = current; swapcontext(&fiber[me], &home); }
struct Collect { int n = 0, gen = 0; };
static Collect warp_c[32], cta_c;
struct Mma { float* c; u32 a[4], b[2]; }; static Mma mma_args[32][32];
static u64 shfl_args[32][32]; static int shfl_from[32][32];
template <class F> static void collect(Collect& c, int size, F f) { int gen = c.gen; if (++c.n == size) { f(); c.n = 0; c.gen++; } else while (c.gen == gen) yield(); }
static void __syncthreads() { collect(cta_c, threads, [] {}); }
static void __syncwarp() { collect(warp_c[threadIdx.x >> 5], 32, [] {}); }
static void mma_bf16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
	int w = threadIdx.x >> 5, l = threadIdx.x & 31;
	mma_args[w][l] = Mma{c, {a0, a1, a2, a3}, {b0, b1}};
	collect(warp_c[w], 32, [w] {
		float A[16][16], B[16][8];
		for (int l = 0; l < 32; l++) {
			int g = l >> 2, t = l & 3; Mma& m = mma_args[w][l];
			for (int i = 0; i < 4; i++) { int r = g + (i & 1) * 8, k = 2 * t + (i >> 1) * 8; A[r][k] = bf16_lo(m.a[i]); A[r][k + 1] = bf16_hi(m.a[i]); }
			for (int i = 0; i < 2; i++) { int k = 2 * t + i * 8; B[k][g] = bf16_lo(m.b[i]); B[k + 1][g] = bf16_hi(m.b[i]); }
		}
		for (int l = 0; l < 32; l++) {
			int g = l >> 2, t = l & 3; Mma& m = mma_args[w][l];
			for (int i = 0; i < 4; i++) { int r = g + (i >> 1) * 8, n = 2 * t + (i & 1); float s = m.c[i]; for (int k = 0; k < 16; k++) s += A[r][k] * B[k][n]; m.c[i] = s; }
		}
	});
}
static float __shfl_xor_sync(u32, float v, int o) {
	int w = threadIdx.x >> 5, l = threadIdx.x & 31; float got;
	u32 b = __float_as_uint(v); shfl_args[w][l] = b;
	collect(warp_c[w], 32, [] {});
	got = __uint_as_float((u32)shfl_args[w][l ^ o]);
	collect(warp_c[w], 32, [] {});
	return got;
}
static u32 atom_inc_acq_rel(u32* p) { return (*p)++; }
// fold gives f folded over what the lanes of a warp have in v, in their order; of_lane is one's.
template <class F> static u32 fold(u32 v, u32 first, F f) {
	int w = threadIdx.x >> 5; shfl_args[w][threadIdx.x & 31] = v;
	collect(warp_c[w], 32, [] {});
	for (int i = 0; i < 32; i++) first = f(first, (u32)shfl_args[w][i], i);
	collect(warp_c[w], 32, [] {});
	return first;
}
template <class T> static T of_lane(T v, int lane) { u32 b; memcpy(&b, &v, 4); b = fold(b, 0, [lane](u32 got, u32 x, int i) { return i == (lane & 31) ? x : got; }); memcpy(&v, &b, 4); return v; }
template <class T> static T __shfl_sync(u32, T v, int lane) { return of_lane(v, lane); }
static u32 __shfl_up_sync(u32, u32 v, int o) { int l = threadIdx.x & 31; return of_lane(v, l >= o ? l - o : l); }
static u32 __reduce_max_sync(u32, u32 v) { return fold(v, 0, [](u32 a, u32 b, int) { return a > b ? a : b; }); }
static int __reduce_min_sync(u32, int v) { return (int)fold((u32)v, 0x7FFFFFFF, [](u32 a, u32 b, int) { return (int)a < (int)b ? a : b; }); }
static u32 __ballot_sync(u32, bool v) { return fold(v, 0, [](u32 a, u32 b, int i) { return a | b << i; }); }
static float warp_sum(float v) { for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o); return v; }
static int __ffs(u32 v) { return __builtin_ffs(v); }
static int __popc(u32 v) { return __builtin_popcount(v); }
static u32 atomicOr(u32* p, u32 v) { u32 old = *p; *p |= v; return old; }
static uint4 ld_weight_once(const void* p) { return *(const uint4*)p; }
static u16 ld2(const void* p) { return *(const u16*)p; }
