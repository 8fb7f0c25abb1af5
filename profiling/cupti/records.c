//go:build cuda

// CUPTI's activity API through dlopen: buffers are asked for and given back on CUPTI's own threads, so all of it stays in C.
#include "records.h"
#include <cuda.h>
#include <cupti.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define BUFFER_BYTES (8u << 20)
#define MAX_RECORDS (4u << 20)

static CUptiResult (*registerCallbacks)(CUpti_BuffersCallbackRequestFunc, CUpti_BuffersCallbackCompleteFunc);
static CUptiResult (*enableKind)(CUpti_ActivityKind), (*disableKind)(CUpti_ActivityKind);
static CUptiResult (*flushAll)(uint32_t);
static CUptiResult (*nextRecord)(uint8_t *, size_t, CUpti_Activity **);
static CUptiResult (*numDropped)(CUcontext, uint32_t, size_t *);
static CUptiResult (*timestamp)(uint64_t *);
static CUptiResult (*resultString)(CUptiResult, const char **);
static CUptiResult (*callbackName)(CUpti_CallbackDomain, uint32_t, const char **);

static const CUpti_ActivityKind kinds[] = {
	CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL, CUPTI_ACTIVITY_KIND_MEMCPY, CUPTI_ACTIVITY_KIND_MEMSET, CUPTI_ACTIVITY_KIND_DRIVER};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static tokamak_record *records;
static uint64_t count, capacity, dropped;

static const char *describe(CUptiResult r) {
	const char *s = "unknown CUPTI error";
	if (r == CUPTI_SUCCESS) return NULL;
	if (r == CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED) return "another profiler, such as nsys or ncu, holds it; run without that one, or ask for activity CPU alone";
	resultString(r, &s);
	return s;
}

static tokamak_record *fresh(void) {
	if (count == capacity) {
		uint64_t more = capacity ? capacity * 2 : 1 << 14;
		tokamak_record *p = more > MAX_RECORDS ? NULL : realloc(records, more * sizeof *records);
		if (!p) { dropped++; return NULL; }
		records = p;
		capacity = more;
	}
	memset(&records[count], 0, sizeof *records);
	return &records[count++];
}

static void name(tokamak_record *r, const char *text) {
	if (text) strncpy(r->name, text, sizeof r->name - 1);
}

static void add(CUpti_Activity *a) {
	tokamak_record *r;
	switch (a->kind) {
	case CUPTI_ACTIVITY_KIND_CONCURRENT_KERNEL: {
		CUpti_ActivityKernel10 *k = (CUpti_ActivityKernel10 *)a;
		if (!(r = fresh())) return;
		r->kind = TOKAMAK_KERNEL; r->correlation = k->correlationId; r->device = k->deviceId; r->stream = k->streamId;
		r->start = k->start; r->end = k->end; r->node = k->graphNodeId; r->graph = k->graphId;
		r->grid[0] = k->gridX; r->grid[1] = k->gridY; r->grid[2] = k->gridZ;
		r->block[0] = k->blockX; r->block[1] = k->blockY; r->block[2] = k->blockZ;
		r->cluster[0] = k->clusterX; r->cluster[1] = k->clusterY; r->cluster[2] = k->clusterZ;
		r->registers = k->registersPerThread; r->shared_static = k->staticSharedMemory; r->shared_dynamic = k->dynamicSharedMemory;
		r->local = k->localMemoryPerThread;
		name(r, k->name);
		return;
	}
	case CUPTI_ACTIVITY_KIND_MEMCPY: {
		static const char *const copies[] = {"copy", "host to device", "device to host", "host to array", "array to host", "array to array",
			"array to device", "device to array", "device to device", "host to host", "peer to peer"};
		CUpti_ActivityMemcpy6 *m = (CUpti_ActivityMemcpy6 *)a;
		if (!(r = fresh())) return;
		r->kind = TOKAMAK_MEMCPY; r->correlation = m->correlationId; r->device = m->deviceId; r->stream = m->streamId;
		r->start = m->start; r->end = m->end; r->bytes = m->bytes; r->node = m->graphNodeId; r->graph = m->graphId;
		name(r, m->copyKind < sizeof copies / sizeof *copies ? copies[m->copyKind] : "copy");
		return;
	}
	case CUPTI_ACTIVITY_KIND_MEMSET: {
		CUpti_ActivityMemset4 *m = (CUpti_ActivityMemset4 *)a;
		if (!(r = fresh())) return;
		r->kind = TOKAMAK_MEMSET; r->correlation = m->correlationId; r->device = m->deviceId; r->stream = m->streamId;
		r->start = m->start; r->end = m->end; r->bytes = m->bytes; r->node = m->graphNodeId; r->graph = m->graphId;
		name(r, "memset");
		return;
	}
	case CUPTI_ACTIVITY_KIND_DRIVER: {
		CUpti_ActivityAPI *c = (CUpti_ActivityAPI *)a;
		const char *text = NULL;
		if (!(r = fresh())) return;
		r->kind = TOKAMAK_API; r->correlation = c->correlationId; r->start = c->start; r->end = c->end; r->thread = c->threadId;
		callbackName(CUPTI_CB_DOMAIN_DRIVER_API, c->cbid, &text);
		name(r, text);
		return;
	}
	default:
		return;
	}
}

static void CUPTIAPI request(uint8_t **buffer, size_t *size, size_t *max) {
	*size = BUFFER_BYTES;
	*max = 0;
	*buffer = aligned_alloc(8, BUFFER_BYTES);
	if (!*buffer) *size = 0;
}

static void CUPTIAPI complete(CUcontext context, uint32_t stream, uint8_t *buffer, size_t size, size_t valid) {
	CUpti_Activity *a = NULL;
	size_t lost = 0;
	pthread_mutex_lock(&lock);
	while (valid > 0 && nextRecord(buffer, valid, &a) == CUPTI_SUCCESS) add(a);
	if (numDropped(context, stream, &lost) == CUPTI_SUCCESS) dropped += lost;
	pthread_mutex_unlock(&lock);
	free(buffer);
}

const char *tokamak_cupti_open(const char *path) {
	void *lib = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
	if (!lib) return dlerror();
	struct { const char *name; void **to; } wanted[] = {
		{"cuptiActivityRegisterCallbacks", (void **)&registerCallbacks}, {"cuptiActivityEnable", (void **)&enableKind},
		{"cuptiActivityDisable", (void **)&disableKind}, {"cuptiActivityFlushAll", (void **)&flushAll},
		{"cuptiActivityGetNextRecord", (void **)&nextRecord}, {"cuptiActivityGetNumDroppedRecords", (void **)&numDropped},
		{"cuptiGetTimestamp", (void **)&timestamp}, {"cuptiGetResultString", (void **)&resultString},
		{"cuptiGetCallbackName", (void **)&callbackName}};
	for (unsigned i = 0; i < sizeof wanted / sizeof *wanted; i++)
		if (!(*wanted[i].to = dlsym(lib, wanted[i].name))) return wanted[i].name;
	return NULL;
}

const char *tokamak_cupti_start(void) {
	CUptiResult r;
	pthread_mutex_lock(&lock);
	count = dropped = 0;
	pthread_mutex_unlock(&lock);
	if ((r = registerCallbacks(request, complete)) != CUPTI_SUCCESS) return describe(r);
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if ((r = enableKind(kinds[i])) != CUPTI_SUCCESS) {
			while (i-- > 0) disableKind(kinds[i]);
			return describe(r);
		}
	return NULL;
}

const char *tokamak_cupti_stop(void) {
	CUptiResult first = CUPTI_SUCCESS, r = flushAll(0);
	if (r != CUPTI_SUCCESS) first = r;
	for (unsigned i = 0; i < sizeof kinds / sizeof *kinds; i++)
		if ((r = disableKind(kinds[i])) != CUPTI_SUCCESS && first == CUPTI_SUCCESS) first = r;
	if ((r = flushAll(1)) != CUPTI_SUCCESS && first == CUPTI_SUCCESS) first = r;
	return describe(first);
}

uint64_t tokamak_cupti_now(void) {
	uint64_t t = 0;
	timestamp(&t);
	return t;
}

tokamak_record *tokamak_cupti_take(uint64_t *n, uint64_t *lost) {
	tokamak_record *taken;
	pthread_mutex_lock(&lock);
	taken = records;
	*n = count;
	*lost = dropped;
	records = NULL;
	count = capacity = dropped = 0;
	pthread_mutex_unlock(&lock);
	return taken;
}
