//go:build cuda

package cuda

import "github.com/tokamak-engine/tokamak/engine/cuda/driver"

// ptr is an address on the device.
type ptr = driver.Ptr

// buffers are the addresses that a step's kernels work on; docs/design/cuda.md gives their shapes. They never move, so that
// graphs can hold them.
type buffers struct {
	// Pinned host memory, as the device sees it.
	Plan     [2]ptr // the step's plan; copy step&1 is the running step's
	PlanCopy ptr    // device memory: the plan of a step that is no graph
	Ring     ptr    // results, ringEntries entries of ringLayout.size bytes
	Starts   [2]ptr // input of the start kernel; the copies go like Plan's

	// State that lives from step to step.
	Step      ptr // u64: number of steps published
	SlotToken ptr // i32 [MaxRows]
	SlotParam ptr // SlotParams [MaxRows]
	Counts    ptr // u16 [MaxRows, Vocab]
	Bias      ptr // TokenBias [MaxRows, maxBias]
	PageTable ptr // i32 [MaxRows, MaxPages]
	KV        ptr // bf16 or e4m3 [Layers, NumPages, 2, KVHeads, Page, Dim]
	Mask      ptr // u32 [MaxRows, (Vocab+31)/32]

	// The running step, written by advance.
	TokID, TokPos, TokSlot                    ptr // i32 [MaxTokens]
	RowSlot, RowPos, RowLen, RowStart, RowCtx ptr // i32 [MaxRows]
	RowFrom                                   ptr // i32 [MaxRows]
	SampleTok, SampleSlot, SamplePos, MaskRow ptr // i32 [MaxRows]

	// Activations and scratch.
	X, XN, QKV, Att, GU, Act ptr
	XS                       ptr // bf16 [logitRows, Hidden]
	Logits                   ptr // f32 [logitRows, Vocab]
	AttnScratch, HeadScratch ptr
	Widened, WidenedFirst    ptr // f16 [widenedPages, 2, KVHeads, Page, Dim], i32 [MaxRows]: kv_widen's
	Sampled                  ptr // Sampled [MaxRows]: what sample gives publish
	Top                      ptr // TokenLogProb [MaxRows, maxTop]
	Targets, TargetLogProbs  ptr // i32, f32 [MaxTokens]
	MoE                      moeBuffers

	// Weights that do not belong to a layer.
	Rope        ptr // float2 (cos, sin) [MaxContext, Dim/2]
	Embed, Norm ptr
	Head        weight

	Dequantised   ptr // bf16, the largest matrix that is multiplied so
	QX, QScale    ptr // e4m3 [MaxTokens, the most columns of an fp8 product], f32 [MaxTokens]
	W4Part        ptr // f32 [SMs, 2, 256, 64]: w4_gemm's sums of shared tiles
	W4Arrived     ptr // u32 [w4Counters], zero between kernels
	blasWorkspace ptr
}

// layerWeights are the weights of one layer.
type layerWeights struct {
	Norm1, BQKV, QNorm, KNorm, Norm2 ptr // BQKV, QNorm and KNorm are 0 where the family has none
	WQKV, WO, WGU, WDown             weight
	Router                           ptr // bf16 [Experts, Hidden], mixture layers; WGU and WDown are then all experts', one behind the other
	Layer                            int
	KV                               kvScale
}

const (
	maxBias     = 1024 // biased tokens of one sequence
	maxTop      = 64   // TopLogProbs of one sequence
	ringEntries = 4
)
