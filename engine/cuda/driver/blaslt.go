//go:build cuda

package driver

/*
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

// cublasLt.h is not needed to build: these are the few declarations of its stable C interface that are used here.
typedef struct { uint64_t data[8]; } ltAlgo;
typedef struct { ltAlgo algo; size_t workspace; int state; float waves; int reserved[4]; } ltHeuristic;
enum { COMPUTE_32F = 68, TYPE_32F = 0, TYPE_16BF = 14, TYPE_8F_E4M3 = 28, OP_T = 1,
       DESC_TRANSA = 3, DESC_EPILOGUE = 7, DESC_BIAS_POINTER = 8, DESC_A_SCALE_POINTER = 17, DESC_B_SCALE_POINTER = 18, DESC_FAST_ACCUM = 25,
       DESC_A_SCALE_MODE = 31, DESC_B_SCALE_MODE = 32, SCALE_OUTER_VEC_32F = 3, PREF_MAX_WORKSPACE = 1, EPILOGUE_BIAS = 4 };

static struct {
	int (*create)(void **);
	size_t (*version)(void);
	int (*descCreate)(void **, int, int);
	int (*descSet)(void *, int, const void *, size_t);
	int (*descDestroy)(void *);
	int (*layoutCreate)(void **, int, uint64_t, uint64_t, int64_t);
	int (*layoutDestroy)(void *);
	int (*prefCreate)(void **);
	int (*prefSet)(void *, int, const void *, size_t);
	int (*prefDestroy)(void *);
	int (*heuristic)(void *, void *, void *, void *, void *, void *, void *, int, ltHeuristic *, int *);
	int (*matmul)(void *, void *, const void *, const void *, void *, const void *, void *, const void *, const void *, void *, void *, void *,
		const ltAlgo *, void *, size_t, void *);
	const char *(*status)(int);
} lt;

// ltLoad fills the table; it returns the name of the first symbol that is missing, or NULL.
static const char *ltLoad(uintptr_t lib) {
	struct { void *slot; const char *name; } want[] = {
		{&lt.create, "cublasLtCreate"}, {&lt.version, "cublasLtGetVersion"}, {&lt.descCreate, "cublasLtMatmulDescCreate"},
		{&lt.descSet, "cublasLtMatmulDescSetAttribute"}, {&lt.descDestroy, "cublasLtMatmulDescDestroy"}, {&lt.layoutCreate, "cublasLtMatrixLayoutCreate"},
		{&lt.layoutDestroy, "cublasLtMatrixLayoutDestroy"}, {&lt.prefCreate, "cublasLtMatmulPreferenceCreate"},
		{&lt.prefSet, "cublasLtMatmulPreferenceSetAttribute"}, {&lt.prefDestroy, "cublasLtMatmulPreferenceDestroy"},
		{&lt.heuristic, "cublasLtMatmulAlgoGetHeuristic"}, {&lt.matmul, "cublasLtMatmul"}, {&lt.status, "cublasLtGetStatusName"},
	};
	for (size_t i = 0; i < sizeof want / sizeof *want; i++)
		if (!(*(void **)want[i].slot = dlsym((void *)lib, want[i].name))) return want[i].name;
	return NULL;
}
static int ltCreate(void **handle) { return lt.create(handle); }
static size_t ltVersion(void) { return lt.version(); }
static const char *ltStatus(int s) { return lt.status(s); }

typedef struct { void *desc, *w, *x, *y; ltHeuristic choice; float beta; int fp8; } gemm;
static int setInt(void *desc, int attribute, int value) { return lt.descSet(desc, attribute, &value, sizeof value); }
static int setScales(gemm *g, uintptr_t w, uintptr_t x) {
	int s = lt.descSet(g->desc, DESC_A_SCALE_POINTER, &w, sizeof w);
	return s ? s : lt.descSet(g->desc, DESC_B_SCALE_POINTER, &x, sizeof x);
}

static void gemmFree(gemm *g) {
	if (g->desc) lt.descDestroy(g->desc);
	if (g->w) lt.layoutDestroy(g->w);
	if (g->x) lt.layoutDestroy(g->x);
	if (g->y) lt.layoutDestroy(g->y);
	free(g);
}
// gemmNew plans y[m,n] = x[m,k] * w[n,k]^T (+ bias[n]) (+ y), all row-major. To cuBLAS, which counts by columns, that is
// y'[n,m] = w'^T x' with w' [k,n] and x' [k,m]. With fp8, w and x are e4m3 with an f32 scale for each row; fast leaves their sums to the matrix
// units.
static int gemmNew(void *handle, gemm **out, int m, int n, int k, int f32out, uintptr_t bias, int accumulate, int fp8, int fast, size_t workspace) {
	gemm *g = calloc(1, sizeof *g);
	void *pref = NULL;
	int epilogue = EPILOGUE_BIAS, in = fp8 ? TYPE_8F_E4M3 : TYPE_16BF, type = f32out ? TYPE_32F : TYPE_16BF, found = 0;
	int s = lt.descCreate(&g->desc, COMPUTE_32F, TYPE_32F);
	if (!s) s = setInt(g->desc, DESC_TRANSA, OP_T);
	if (!s && fp8) s = lt.descSet(g->desc, DESC_FAST_ACCUM, &(signed char){fast}, 1);
	if (!s && fp8) s = setInt(g->desc, DESC_A_SCALE_MODE, SCALE_OUTER_VEC_32F);
	if (!s && fp8) s = setInt(g->desc, DESC_B_SCALE_MODE, SCALE_OUTER_VEC_32F);
	if (!s && fp8) s = setScales(g, 16, 16); // the choice of an algorithm looks at their alignment
	if (!s && bias) s = lt.descSet(g->desc, DESC_EPILOGUE, &epilogue, sizeof epilogue);
	if (!s && bias) s = lt.descSet(g->desc, DESC_BIAS_POINTER, &bias, sizeof bias);
	if (!s) s = lt.layoutCreate(&g->w, in, k, n, k);
	if (!s) s = lt.layoutCreate(&g->x, in, k, m, k);
	if (!s) s = lt.layoutCreate(&g->y, type, n, m, n);
	if (!s) s = lt.prefCreate(&pref);
	if (!s) s = lt.prefSet(pref, PREF_MAX_WORKSPACE, &workspace, sizeof workspace);
	if (!s) s = lt.heuristic(handle, g->desc, g->w, g->x, g->y, g->y, pref, 1, &g->choice, &found);
	if (pref) lt.prefDestroy(pref);
	if (!s && found == 0) s = 15; // NOT_SUPPORTED
	if (s) { gemmFree(g); return s; }
	g->beta = accumulate ? 1.f : 0.f;
	*out = g;
	return 0;
}
static int gemmRun(void *handle, gemm *g, uintptr_t w, uintptr_t x, uintptr_t y, uintptr_t workspace, size_t bytes, void *stream) {
	float alpha = 1.f;
	return lt.matmul(handle, g->desc, &alpha, (void *)w, g->w, (void *)x, g->x, &g->beta, (void *)y, g->y, (void *)y, g->y,
		&g->choice.algo, (void *)workspace, bytes, stream);
}
static int gemmSetBias(gemm *g, uintptr_t bias) { return lt.descSet(g->desc, DESC_BIAS_POINTER, &bias, sizeof bias); }
*/
import "C"

import (
	"fmt"
	"sync"
	"unsafe"
)

var blasLtLibrary = library{"cublasLt", "TOKAMAK_CUBLASLT", "install the CUDA toolkit, or: pip install nvidia-cublas"}

var openBlasLt = sync.OnceValues(func() (string, error) {
	h, path, err := blasLtLibrary.open(nil)
	if err != nil {
		return "", err
	}
	if missing := C.ltLoad(C.uintptr_t(h)); missing != nil {
		return "", fmt.Errorf("%s has no %s", path, C.GoString(missing))
	}
	return path, nil
})

// BlasLt multiplies large matrices with cuBLASLt. Plans are kept for the life of the handle.
type BlasLt struct {
	Path           string
	Version        int
	handle         unsafe.Pointer
	workspace      Ptr
	workspaceBytes int64
	plans          map[gemmKey]*gemmPlan
}

type gemmKey struct {
	m, n, k                    int
	f32, bias, accumulate, fp8 bool
	fastSums                   bool
}

type gemmPlan struct {
	g    *C.gemm
	bias Ptr
}

// OpenBlasLt opens cuBLASLt for the current context. workspace is device memory that all products of one stream share.
func OpenBlasLt(workspace Ptr, bytes int64) (*BlasLt, error) {
	path, err := openBlasLt()
	if err != nil {
		return nil, err
	}
	b := &BlasLt{Path: path, Version: int(C.ltVersion()), workspace: workspace, workspaceBytes: bytes, plans: map[gemmKey]*gemmPlan{}}
	return b, ltCheck("cublasLtCreate", C.ltCreate(&b.handle))
}

func ltCheck(op string, status C.int) error {
	if status == 0 {
		return nil
	}
	return fmt.Errorf("%s: %s (%d)", op, C.GoString(C.ltStatus(status)), int(status))
}

// GEMM is one product: Y[M,N] = X[M,K] W[N,K]ᵀ, row-major, X and W bf16 or e4m3, sums in fp32.
type GEMM struct {
	Name       string // for traces and tables: "gemm_qkv"
	M, N, K    int
	W, X, Y    Ptr
	F32        bool // Y is fp32, else bf16
	Bias       Ptr  // bf16 [N], added to each row; 0: none
	Accumulate bool // Y += instead of =
	// FP8 says that X and W are e4m3, with scales for their rows, f32 [M] and [N]. It takes compute capability 9.0, a library of at least
	// MinBlasLtFP8, and N and K that are multiples of 16.
	FP8            bool
	WScale, XScale Ptr
	// FastSums leaves the sums of FP8 to the matrix units, which on Hopper keep 14 bits of them; without it they go on in fp32 every so many
	// columns.
	FastSums bool
}

// MinBlasLtFP8 is the first version that scales rows: 12.9.
const MinBlasLtFP8 = 120900

// BlasLtVersion is that of the library which OpenBlasLt opens, 10000*major + 100*minor + patch.
func BlasLtVersion() (int, error) {
	if _, err := openBlasLt(); err != nil {
		return 0, err
	}
	return int(C.ltVersion()), nil
}

// Plan chooses the algorithm for p's shape, once a shape.
func (b *BlasLt) Plan(p GEMM) error {
	_, err := b.plan(p)
	return err
}

func (b *BlasLt) plan(p GEMM) (*gemmPlan, error) {
	key := gemmKey{p.M, p.N, p.K, p.F32, p.Bias != 0, p.Accumulate, p.FP8, p.FastSums}
	if plan := b.plans[key]; plan != nil {
		return plan, nil
	}
	plan := &gemmPlan{bias: p.Bias}
	status := C.gemmNew(b.handle, &plan.g, C.int(p.M), C.int(p.N), C.int(p.K), cBool(p.F32), C.uintptr_t(p.Bias), cBool(p.Accumulate), cBool(p.FP8), cBool(p.FastSums), C.size_t(b.workspaceBytes))
	if status != 0 {
		return nil, ltCheck(fmt.Sprintf("cublasLt heuristics for M=%d N=%d K=%d fp8=%v", p.M, p.N, p.K, p.FP8), status)
	}
	b.plans[key] = plan
	return plan, nil
}

// Run enqueues the product.
func (b *BlasLt) Run(p GEMM, s Stream) error {
	plan, err := b.plan(p)
	if err != nil {
		return err
	}
	if p.Bias != 0 && p.Bias != plan.bias {
		if status := C.gemmSetBias(plan.g, C.uintptr_t(p.Bias)); status != 0 {
			return ltCheck("cublasLtMatmulDescSetAttribute", status)
		}
		plan.bias = p.Bias
	}
	if p.FP8 {
		if status := C.setScales(plan.g, C.uintptr_t(p.WScale), C.uintptr_t(p.XScale)); status != 0 {
			return ltCheck("cublasLtMatmulDescSetAttribute", status)
		}
	}
	status := C.gemmRun(b.handle, plan.g, C.uintptr_t(p.W), C.uintptr_t(p.X), C.uintptr_t(p.Y), C.uintptr_t(b.workspace), C.size_t(b.workspaceBytes), s.raw())
	if status != 0 {
		return ltCheck(fmt.Sprintf("cublasLtMatmul M=%d N=%d K=%d", p.M, p.N, p.K), status)
	}
	return nil
}

// Close frees the plans. The handle itself lives as long as the context.
func (b *BlasLt) Close() {
	for _, plan := range b.plans {
		C.gemmFree(plan.g)
	}
	b.plans = nil
}

func cBool(b bool) C.int {
	if b {
		return 1
	}
	return 0
}
