// Records of the CUPTI activity API, flattened for Go. See records.c.
#pragma once
#include <stdint.h>

enum { TOKAMAK_KERNEL = 1, TOKAMAK_MEMCPY = 2, TOKAMAK_MEMSET = 3, TOKAMAK_API = 4 };

typedef struct {
	int32_t kind;
	uint32_t correlation, device, stream;
	uint64_t start, end;      // nanoseconds of CUPTI's clock
	uint64_t node;            // of a CUDA graph; 0 outside of one
	uint64_t bytes;           // copies
	uint32_t graph;
	int32_t grid[3], block[3], cluster[3];
	uint32_t registers, shared_static, shared_dynamic, local; // bytes but for registers
	uint32_t thread;          // API calls
	char name[120];           // kernels and API calls; cut off
} tokamak_record;

// Each returns NULL or a message.
const char *tokamak_cupti_open(const char *path);
const char *tokamak_cupti_start(void);
const char *tokamak_cupti_stop(void);
uint64_t tokamak_cupti_now(void);
// The records since start, to be freed; dropped counts those that found no buffer.
tokamak_record *tokamak_cupti_take(uint64_t *count, uint64_t *dropped);
