// A tool as NVTX injects one (NVTX_INJECTION64_PATH): it writes down what reaches it, a line each, to $NVTX_TOOL_RECORD.
#include <nvtx3/nvToolsExt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *out;
static unsigned long long next;

static nvtxDomainHandle_t create(const char *name) {
	fprintf(out, "domain %s\n", name);
	return (nvtxDomainHandle_t)(size_t)++next;
}

static nvtxStringHandle_t intern(nvtxDomainHandle_t d, const char *s) { return (nvtxStringHandle_t)(void *)strdup(s); }

static void event(const char *kind, const nvtxEventAttributes_t *a) {
	fprintf(out, "%s %s color=%08x", kind, (const char *)a->message.registered, a->colorType == NVTX_COLOR_ARGB ? a->color : 0);
	if (a->payloadType == NVTX_PAYLOAD_TYPE_INT64) fprintf(out, " int=%lld", (long long)a->payload.llValue);
	if (a->payloadType == NVTX_PAYLOAD_TYPE_DOUBLE) fprintf(out, " double=%g", a->payload.dValue);
	fprintf(out, "\n");
	fflush(out);
}

static void mark(nvtxDomainHandle_t d, const nvtxEventAttributes_t *a) { event("mark", a); }

static nvtxRangeId_t start(nvtxDomainHandle_t d, const nvtxEventAttributes_t *a) {
	event("start", a);
	return ++next;
}

static void end(nvtxDomainHandle_t d, nvtxRangeId_t id) {
	fprintf(out, "end\n");
	fflush(out);
}

static void category(nvtxDomainHandle_t d, uint32_t id, const char *name) { fprintf(out, "category %s\n", name); }

__attribute__((visibility("default"))) int InitializeInjectionNvtx2(NvtxGetExportTableFunc_t tables) {
	const NvtxExportTableCallbacks *callbacks = tables(NVTX_ETID_CALLBACKS);
	NvtxFunctionTable core;
	unsigned n;
	out = fopen(getenv("NVTX_TOOL_RECORD"), "w");
	if (!out || !callbacks || !callbacks->GetModuleFunctionTable(NVTX_CB_MODULE_CORE2, &core, &n)) return 0;
	*core[NVTX_CBID_CORE2_DomainCreateA] = (NvtxFunctionPointer)create;
	*core[NVTX_CBID_CORE2_DomainRegisterStringA] = (NvtxFunctionPointer)intern;
	*core[NVTX_CBID_CORE2_DomainMarkEx] = (NvtxFunctionPointer)mark;
	*core[NVTX_CBID_CORE2_DomainRangeStartEx] = (NvtxFunctionPointer)start;
	*core[NVTX_CBID_CORE2_DomainRangeEnd] = (NvtxFunctionPointer)end;
	*core[NVTX_CBID_CORE2_DomainNameCategoryA] = (NvtxFunctionPointer)category;
	return 1;
}
