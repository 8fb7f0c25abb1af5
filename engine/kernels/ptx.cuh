// Types, bf16 arithmetic and every line of inline PTX. No CUDA header is included: NVRTC's built-ins are enough, so an engine
// needs libnvrtc alone. Paths for one architecture are guarded here; the kernels call the same names everywhere.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;
typedef long long i64;

struct bf16 { u16 bits; };  // bfloat16 as stored
struct f16 { u16 bits; };   // IEEE half
struct e4m3 { u8 bits; };   // fp8 of 4 exponent and 3 fraction bits: up to 448, no infinity

#ifndef __CUDA_ARCH__
#define ARCH 0
#else
#define ARCH __CUDA_ARCH__
#endif

#define DEVICE __device__ __forceinline__

// Both kinds, as sizes of arrays and in code: NVRTC takes a bare constexpr function for a host one.
__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }
__host__ __device__ constexpr int min_of(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int max_of(int a, int b) { return a > b ? a : b; }

// ---- bf16 ----
DEVICE float bf16_lo(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float bf16_hi(u32 pair) { return __uint_as_float(pair & 0xFFFF0000u); }
DEVICE float to_float(bf16 v) { return __uint_as_float((u32)v.bits << 16); }
DEVICE u32 pack_bf16(float lo, float hi) {
	u32 d;
	asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
	return d;
}
DEVICE bf16 to_bf16(float v) { return bf16{(u16)pack_bf16(v, 0.f)}; }
DEVICE float round_bf16(float v) { return __uint_as_float(pack_bf16(v, 0.f) << 16); }
DEVICE u32 add_bf16x2(u32 a, u32 b) {  // a*1 + b, as sm_80 has it
	u32 d;
	asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(0x3F803F80u), "r"(b));
	return d;
}
DEVICE u32 fma_bf16x2(u32 a, u32 b, u32 c) {
	u32 d;
	asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
	return d;
}
DEVICE u32 mul_bf16x2(u32 a, u32 b) {  // a*b - 0: one rounding, and it exists on sm_80
	u32 d;
	asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(0x80008000u));
	return d;
}
DEVICE uint4 mul_bf16x8(uint4 a, uint4 b) { return make_uint4(mul_bf16x2(a.x, b.x), mul_bf16x2(a.y, b.y), mul_bf16x2(a.z, b.z), mul_bf16x2(a.w, b.w)); }

// ---- f16 and fp8 ----
DEVICE u32 pack_f16(float lo, float hi) {
	u32 d;
	asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
	return d;
}
DEVICE void put_f16(f16* to, float v) { to->bits = (u16)pack_f16(v, 0.f); }
DEVICE float f16_lo(u32 pair) {
	float d;
	asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %1;\ncvt.f32.f16 %0, lo;\n}" : "=f"(d) : "r"(pair));
	return d;
}
DEVICE float f16_hi(u32 pair) {
	float d;
	asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %1;\ncvt.f32.f16 %0, hi;\n}" : "=f"(d) : "r"(pair));
	return d;
}
// widen_e4m3 gives four e4m3 values as f16 pairs (bytes 0 and 1, bytes 2 and 3), exactly. NaN stays NaN where the machine has the instruction.
DEVICE uint2 widen_e4m3(u32 v) {
	uint2 d;
#if ARCH >= 890
	asm("{\n.reg .b16 lo, hi;\nmov.b32 {lo, hi}, %2;\ncvt.rn.f16x2.e4m3x2 %0, lo;\ncvt.rn.f16x2.e4m3x2 %1, hi;\n}" : "=r"(d.x), "=r"(d.y) : "r"(v));
#else
	// The bits in f16's fields are 2^-8 of the value, subnormals too: f16's exponent is biased by 15, e4m3's by 7.
	const u32 lo = __byte_perm(v, 0, 0x1404), hi = __byte_perm(v, 0, 0x3424), scale = 0x5C005C00u;
	asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d.x) : "r"((lo & 0x80008000u) | (lo & 0x7F007F00u) >> 1), "r"(scale));
	asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d.y) : "r"((hi & 0x80008000u) | (hi & 0x7F007F00u) >> 1), "r"(scale));
#endif
	return d;
}
// to_e4m3 rounds to the nearest, ties to even, and what is beyond 448 to 448.
DEVICE e4m3 to_e4m3(float v) {
#if ARCH >= 890
	u16 d;
	asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(d) : "f"(0.f), "f"(v));
	return e4m3{(u8)d};
#else
	const u32 sign = __float_as_uint(v) >> 24 & 0x80;
	if (v != v) return e4m3{(u8)(sign | 0x7F)};
	const float a = fminf(fabsf(v), 448.f);
	const u32 bits = __float_as_uint(a);
	// Below 2^-6 values lie 2^-9 apart; above, three bits of the fraction stay, and the exponent's bias shrinks by 120.
	const u32 rounded = a < 0x1p-6f ? (u32)__float2int_rn(a * 512.f) : ((bits + 0x7FFFF + (bits >> 20 & 1)) >> 20) - (120 << 3);
	return e4m3{(u8)(sign | rounded)};
#endif
}

// pack_e4m3 makes a word of four, the first in the lowest byte.
DEVICE u32 pack_e4m3(float a, float b, float c, float d) {
#if ARCH >= 890
	u16 lo, hi;
	asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(lo) : "f"(b), "f"(a));
	asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(hi) : "f"(d), "f"(c));
	return lo | (u32)hi << 16;
#else
	return to_e4m3(a).bits | (u32)to_e4m3(b).bits << 8 | (u32)to_e4m3(c).bits << 16 | (u32)to_e4m3(d).bits << 24;
#endif
}

// ---- programmatic dependent launch ----
// PDL_LAUNCH lets the next kernel's CTAs start as soon as there is room; PDL_WAIT returns when every earlier kernel has finished and
// its writes are visible. Between the two a kernel may read only what no kernel of the step writes.
#ifdef DELAYS  // a build that looks for races: each warp sleeps for a while, another each time, where it lets the next kernel start and after its wait
DEVICE void delay() {
	u32 now, warp;
	asm volatile("mov.u32 %0, %globaltimer_lo;" : "=r"(now));
	warp = threadIdx.x >> 5;
	now = __umulhi((now ^ (blockIdx.x * 0x9E3779B9u + blockIdx.y * 0x85EBCA6Bu + blockIdx.z * 0xC2B2AE35u + warp * 0x27D4EB2Fu)) * 0x2C1B3C6Du, DELAYS);
	asm volatile("nanosleep.u32 %0;" ::"r"(now));
}
#else
DEVICE void delay() {}
#endif
DEVICE void pdl_launch() {
	delay();
#if ARCH >= 900
	asm volatile("griddepcontrol.launch_dependents;");
#endif
	delay();
}
#ifdef STAMPS  // a build for timelines: when each kernel's wait returned, as CTA 0 saw it, that is when the kernel before had ended
// The ring lies in host memory, where it is read while the device runs. A note's place is its time, in units of 1024 ns: kernels are
// further apart than that, and no counter has to be fetched first. 2^19 places are half a second.
struct Stamp {
	u64 at, unit;
};
__device__ Stamp* stamp_ring;  // both set when the module is loaded, and fetched ahead of the wait: after it, nothing is waited for
__device__ u64 stamp_unit;
DEVICE void pdl_wait() {
	const bool notes = !(threadIdx.x | blockIdx.x | blockIdx.y | blockIdx.z);
	Stamp* ring = nullptr;
	u64 unit = 0, now;
	if (notes) asm volatile("ld.global.u64 %0, [%2];\nld.global.u64 %1, [%3];" : "=l"(ring), "=l"(unit) : "l"(&stamp_ring), "l"(&stamp_unit));
#if ARCH >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
	if (notes) {
		asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
		asm volatile("st.global.v2.u64 [%0], {%1, %2};" ::"l"(ring + (now >> 10 & 0x7FFFF)), "l"(now), "l"(unit) : "memory");
	}
}
#else
DEVICE void pdl_wait() {
#if ARCH >= 900
	asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
#endif
#define PDL_LAUNCH() pdl_launch()
#define PDL_WAIT() pdl_wait()

// ---- global memory ----
DEVICE uint4 ld_weight(const void* p) {  // read once by one CTA: not worth a line of L1
	uint4 v;
	asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
	return v;
}
DEVICE u32 ld_weight4(const void* p) {
	u32 v;
	asm volatile("ld.global.nc.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(p));
	return v;
}
DEVICE uint4 ld_weight_once(const void* p) {  // the first to leave the L2: what was put there for a later kernel stays
#if ARCH >= 800
	uint4 v;
	u64 policy;
	asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
	asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4], %5;"
	             : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p), "l"(policy));
	return v;
#else
	return ld_weight(p);
#endif
}
DEVICE uint4 ld16(const void* p) {
	uint4 v;
	asm volatile("ld.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
	return v;
}
DEVICE u32 ld4(const void* p) {
	u32 v;
	asm volatile("ld.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
	return v;
}
DEVICE u16 ld2(const void* p) {
	u16 v;
	asm volatile("ld.global.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
	return v;
}
// The loads below see what other CTAs of this launch or kernels before the wait have written to L2: they leave L1 alone.
DEVICE uint4 ld16_l2(const void* p) {
	uint4 v;
	asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
	return v;
}
DEVICE uint2 ld8_l2(const void* p) {
	uint2 v;
	asm volatile("ld.global.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
	return v;
}
DEVICE u32 ld4_l2(const void* p) {
	u32 v;
	asm volatile("ld.global.cg.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
	return v;
}
DEVICE u32 ld2_l2(const void* p) {
	u16 v;
	asm volatile("ld.global.cg.u16 %0, [%1];" : "=h"(v) : "l"(p) : "memory");
	return v;
}
DEVICE void st16(void* p, uint4 v) { *reinterpret_cast<uint4*>(p) = v; }
DEVICE u32 ld_host(const void* p) {  // pinned host memory that changes between launches
	u32 v;
	asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
	return v;
}
DEVICE uint4 ld_host16(const void* p) {
	uint4 v;
	asm volatile("ld.volatile.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
	return v;
}
DEVICE void st_host_release(u64* p, u64 v) { asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(p), "l"(v) : "memory"); }
DEVICE u32 atom_inc_acq_rel(u32* p) {
	u32 v;
	asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(v) : "l"(p) : "memory");
	return v;
}

// ---- shared memory ----
DEVICE u32 smem_addr(const void* p) { return (u32)__cvta_generic_to_shared(p); }
DEVICE void cp_async16(u32 dst, const void* src, bool valid) {  // zero-fills where not valid
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(src), "r"(valid ? 16 : 0) : "memory");
}
DEVICE void cp_async4(u32 dst, const void* src, bool valid) {
	asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(dst), "l"(src), "r"(valid ? 4 : 0) : "memory");
}
DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
DEVICE void ldmatrix4(u32 (&r)[4], u32 addr) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}
DEVICE void ldmatrix4_trans(u32 (&r)[4], u32 addr) {
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(addr) : "memory");
}

// ---- tensor copies and their barriers, sm_90 ----
#if ARCH >= 900
DEVICE void mbarrier_init(u64* bar, u32 arrivals) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_addr(bar)), "r"(arrivals) : "memory"); }
DEVICE void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// ring_init makes the barriers of a ring of stages: a stage is full after so many arrivals, and empty after so many. All threads of the CTA call it; a
// barrier of the CTA or its cluster comes behind it.
template <int RING_STAGES> DEVICE void ring_init(u64 (&full)[RING_STAGES], u64 (&empty)[RING_STAGES], int fills, int empties) {
	if (threadIdx.x != 0) return;
	for (int i = 0; i < RING_STAGES; i++) {
		mbarrier_init(&full[i], fills);
		mbarrier_init(&empty[i], empties);
	}
	mbarrier_init_fence();
}
DEVICE void mbarrier_expect(u64* bar, u32 bytes) {  // arrives, and expects that many bytes besides
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_addr(bar)), "r"(bytes) : "memory");
}
DEVICE void mbarrier_wait(u64* bar, u32 parity) {
	asm volatile(
	    "{\n.reg .pred done;\nretry_%=:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra retry_%=;\n}"
	    ::"r"(smem_addr(bar)), "r"(parity) : "memory");
}
DEVICE u64 policy_evict_normal() {
	u64 p;
	asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(p));
	return p;
}
DEVICE u64 policy_evict_first() {
	u64 p;
	asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(p));
	return p;
}
// tensor_load copies the box at (column, row) of the matrix that map describes, swizzled by 128 bytes.
DEVICE void tensor_load(void* dst, const void* map, i32 column, i32 row, u64* bar, u64 policy) {
	asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5;"
	             ::"r"(smem_addr(dst)), "l"(map), "r"(smem_addr(bar)), "r"(column), "r"(row), "l"(policy) : "memory");
}
// tensor_load_multicast is tensor_load to the same place in each CTA of the cluster whose bit is set in ctas, where the same barrier is told.
DEVICE void tensor_load_multicast(void* dst, const void* map, i32 column, i32 row, u64* bar, u16 ctas, u64 policy) {
	asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%0], [%1, {%3, %4}], [%2], %5, %6;"
	             ::"r"(smem_addr(dst)), "l"(map), "r"(smem_addr(bar)), "r"(column), "r"(row), "h"(ctas), "l"(policy) : "memory");
}
// bulk_load copies bytes (a multiple of 16, as both addresses) as they are.
DEVICE void bulk_load(void* dst, const void* src, u32 bytes, u64* bar, u64 policy) {
	asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
	             ::"r"(smem_addr(dst)), "l"(src), "r"(bytes), "r"(smem_addr(bar)), "l"(policy) : "memory");
}
DEVICE void prefetch_l2(const void* p, u32 bytes, u64 policy) {  // multiples of 16
	asm volatile("cp.async.bulk.prefetch.L2.global.L2::cache_hint [%0], %1, %2;" ::"l"(p), "r"(bytes), "l"(policy) : "memory");
}
DEVICE void tensor_prefetch_map(const void* map) { asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory"); }
DEVICE void mbarrier_arrive(u64* bar) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_addr(bar)) : "memory"); }
DEVICE void mbarrier_arrive_at(u32 bar) {  // a cluster_address
	asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory");
}
DEVICE u64 policy_evict_last() {
	u64 p;
	asm("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(p));
	return p;
}
#endif
// ---- clusters, sm_90 ----
#if ARCH >= 900
DEVICE u32 cluster_rank() {
	u32 r;
	asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
	return r;
}
// cluster_sync waits for all threads of all CTAs of the cluster; what they stored before, to each other's shared memory too, is seen after.
DEVICE void cluster_sync() {
	asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
DEVICE void cluster_store(float* p, u32 rank, float v) {  // to p of the CTA of that rank
	asm volatile("{\n.reg .u32 a;\nmapa.shared::cluster.u32 a, %0, %1;\nst.shared::cluster.f32 [a], %2;\n}" ::"r"(smem_addr(p)), "r"(rank), "f"(v) : "memory");
}
// cluster_address is that of the cluster's CTA rank for what p is here.
DEVICE u32 cluster_address(const void* p, u32 rank) {
	u32 d;
	asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(d) : "r"(smem_addr(p)), "r"(rank));
	return d;
}
DEVICE void st_cluster16(u32 to, float4 v) {
	asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
// cluster_peer is the address of p, which is in shared memory, in another CTA of the cluster.
template <typename T> DEVICE T* cluster_peer(T* p, u32 rank) {
	u64 d;
	asm("mapa.u64 %0, %1, %2;" : "=l"(d) : "l"((u64)p), "r"(rank));
	return reinterpret_cast<T*>(d);
}
#else
DEVICE u64 policy_evict_last() { return 0; }
DEVICE void prefetch_l2(const void*, u32, u64) {}
DEVICE u32 cluster_rank() { return 0; }
DEVICE void cluster_sync() {}
template <typename T> DEVICE T* cluster_peer(T* p, u32) { return p; }
#endif
DEVICE void barrier_sync(u32 id, u32 threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void barrier_arrive(u32 id, u32 threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }

// ---- warpgroup matrix units, sm_90a ----
#if ARCH >= 900 && defined(__CUDA_ARCH_FEAT_SM90_ALL)
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }
// wgmma_tile describes rows of 64 bf16 in shared memory, swizzled by 128 bytes, starting on 1024; add 2 for each 16 columns.
DEVICE u64 wgmma_tile(const void* p) { return (u64)((smem_addr(p) & 0x3FFFFu) >> 4) | (u64)1 << 16 | (u64)64 << 32 | (u64)1 << 62; }
// wgmma_columns describes the same rows where they are the k of B and its columns run along them; blocks of 64 columns lie block_bytes apart.
// Add 128 for each 16 rows.
DEVICE u64 wgmma_columns(const void* p, u32 block_bytes) {
	return (u64)((smem_addr(p) & 0x3FFFFu) >> 4) | (u64)(block_bytes >> 4) << 16 | (u64)64 << 32 | (u64)1 << 62;
}
DEVICE void fence_async_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
template <int COUNT> DEVICE void registers_more() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> DEVICE void registers_less() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
#endif

// ---- matrix units ----
// mma_bf16 adds A[16,16] B[16,8] to C. Lane 4g+t holds A rows g, g+8 at k 2t,2t+1 (a0, a1) and 2t+8,2t+9 (a2, a3), B column g at
// k 2t,2t+1 (b0) and 2t+8,2t+9 (b1), C rows g (c0, c1) and g+8 (c2, c3) at columns 2t, 2t+1.
DEVICE void mma_bf16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	             : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
// mma_f16 is mma_bf16 of f16.
DEVICE void mma_f16(float (&c)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
	             : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
	             : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// ---- math ----
DEVICE float exp2_fast(float v) {
	float d;
	asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(v));
	return d;
}

// ---- warp ----
DEVICE float warp_sum(float v) {
#pragma unroll
	for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
	return v;
}
