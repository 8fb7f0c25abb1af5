// The hash that dummy weights are made of: engine/weights.Dummy.At's.
#pragma once
#include "ptx.cuh"

DEVICE u32 dummy_hash(u64 i, u32 seed) {
	u32 h = ((u32)i * 0x9E3779B1u) ^ ((u32)(i >> 32) * 0x85EBCA77u) ^ seed;
	h ^= h >> 16;
	h *= 0x85EBCA6Bu;
	h ^= h >> 13;
	h *= 0xC2B2AE35u;
	h ^= h >> 16;
	return h;
}
