// The one random draw of the engine: Gumbel noise as a function of (seed, position, token), so that a draw depends neither on the
// batch nor on which kernel makes it. engine/cpu defines the same function.
#pragma once
#include "ptx.cuh"

// philox4x32_10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
DEVICE uint4 philox4x32_10(uint4 c, uint2 key) {
#pragma unroll
	for (int round = 0; round < 10; round++) {
		u32 hi0 = __umulhi(0xD2511F53u, c.x), lo0 = 0xD2511F53u * c.x;
		u32 hi1 = __umulhi(0xCD9E8D57u, c.z), lo1 = 0xCD9E8D57u * c.z;
		c = make_uint4(hi1 ^ c.y ^ key.x, lo1, hi0 ^ c.w ^ key.y, lo0);
		key.x += 0x9E3779B9u;
		key.y += 0xBB67AE85u;
	}
	return c;
}

constexpr float MAX_GUMBEL = 22.9f;  // gumbel never exceeds -log(2^-33) = 22.874

// gumbel is engine/cpu's Gumbel: small v give the large noise that wins, and are exact.
DEVICE float gumbel(u64 seed, u32 position, u32 token) {
	u32 r = philox4x32_10(make_uint4(token, position, 0, 0), make_uint2((u32)seed, (u32)(seed >> 32))).x;
	float v = fminf(((float)r + 0.5f) * 0x1p-32f, 1.0f - 0x1p-24f);
	return -logf(-log1pf(-v));
}
