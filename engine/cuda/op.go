//go:build cuda

package cuda

import (
	"fmt"
	"strings"
	"unsafe"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// unit names one compilation: a source file of engine/kernels, the kernel in it, and the defines it is compiled with beside
// the model's own. It is comparable, and the key of the compiled function.
type unit struct {
	File, Symbol string
	Defines      string // "K=4096 N=6144", in the order the kernel's Go file writes them
}

func (u unit) String() string { return strings.TrimSpace(u.Symbol + " " + u.Defines) }

// op is one kernel launch with everything decided but its stream. Making one needs no device.
type op struct {
	Name    string // for errors, traces and tables: "gemv_qkv"
	Unit    unit
	Grid    [3]int
	Block   int // threads
	Smem    int // dynamic shared memory, bytes
	Cluster int // CTAs of a cluster along x; 0: no cluster
	// PDL lets the kernel start before the one in front of it has ended. Every CTA of such a kernel executes
	// griddepcontrol.wait before it touches what that one wrote.
	PDL     bool
	Params  []byte // the kernel's one parameter, a struct
	Bytes   int64  // global memory the kernel must move at least
	FLOPs   int64
	Context contextOf // of which rows it reads the context, for traces
}

// device is what a kernel's tile choice may look at.
type device struct {
	Name     string
	SM       int // compute capability times ten: 90
	SMs      int
	L2Bytes  int
	MaxSmem  int // dynamic shared memory that one CTA may have
	TotalMem int64
}

// arch is the NVRTC target: the "a" targets carry wgmma, setmaxnreg and their successors.
func (d device) arch() string {
	if d.SM >= 90 {
		return fmt.Sprintf("sm_%da", d.SM)
	}
	return fmt.Sprintf("sm_%d", d.SM)
}

// shape is the model's sizes and the backend's limits as kernels see them.
type shape struct {
	Hidden, Inter, Layers int
	Heads, KVHeads, Dim   int // Dim: of one head
	Vocab                 int
	Eps                   float64
	QKVBias, QKNorm       bool
	Window                int // 0: full attention
	Page, MaxPages        int // tokens of a page; pages of one sequence
	MaxRows, MaxTokens    int
	MaxContext, NumPages  int
	MaxVerify             int // rows and draft tokens of a step with drafts, each of which is a row to the kernels; 0: there are none
	MoE                   moeShape
	Deterministic         bool // a row's results do not depend on its batch mates
	TiedHead              bool
	Dequantised           int   // elements of the largest matrix of which there is room for a bf16 copy; 0: none is copied
	KeepInt4              bool  // matrices of four bits stay so, else they become bf16
	QuantizeFP8           bool  // plain matrices of the layers become e4m3 at load
	BlasFP8               bool  // cuBLASLt multiplies e4m3 with a scale for each row of both
	QuantizedCols         int   // the most columns of an fp8 product; 0: there are none
	KVFP8                 bool  // the KV cache holds e4m3, else bf16
	DraftPageBytes        int64 // of a page in the draft head's cache; 0: there is no head
	Prefixes              bool  // decode rows that begin with the same pages read them together
}

func (s shape) qDim() int   { return s.Heads * s.Dim }
func (s shape) kvDim() int  { return s.KVHeads * s.Dim }
func (s shape) qkvDim() int { return s.qDim() + 2*s.kvDim() }

// layerKVBytes is the size of one layer's pages.
func (s shape) layerKVBytes() int64 { return int64(s.NumPages) * s.pageBytes() }

// pageBytes is the size of one page of one layer, K and V.
func (s shape) pageBytes() int64 { return int64(2*s.kvDim()*s.Page) * s.kvBytes() }

// kvBytes is the size of an element of the KV cache.
func (s shape) kvBytes() int64 { return int64(bf16Bytes - s.kvFP8()) }

// kvFP8 is the define KV_FP8 of the kernels that touch the cache.
func (s shape) kvFP8() int {
	if s.KVFP8 {
		return 1
	}
	return 0
}

const bf16Bytes = 2

func newShape(c *model.Config) shape {
	return shape{
		Hidden: c.HiddenSize, Inter: c.IntermediateSize, Layers: c.NumLayers, Heads: c.NumHeads, KVHeads: c.NumKVHeads,
		Dim: c.HeadDim, Vocab: c.VocabSize, Eps: c.RMSNormEps, QKVBias: c.QKVBias, QKNorm: c.QKNorm, Window: c.SlidingWindow,
		TiedHead: c.TieEmbeddings, MoE: newMoEShape(c),
	}
}

// defines are the model's constants, known to every kernel.
func (s shape) defines(d device) []string {
	flag := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return []string{
		fmt.Sprintf("SM=%d", d.SM), fmt.Sprintf("HIDDEN=%d", s.Hidden), fmt.Sprintf("INTER=%d", s.Inter),
		fmt.Sprintf("HEADS=%d", s.Heads), fmt.Sprintf("KV_HEADS=%d", s.KVHeads), fmt.Sprintf("HEAD_DIM=%d", s.Dim),
		fmt.Sprintf("VOCAB=%d", s.Vocab), fmt.Sprintf("PAGE=%d", s.Page), fmt.Sprintf("MAX_PAGES=%d", s.MaxPages),
		fmt.Sprintf("MAX_ROWS=%d", s.MaxRows), fmt.Sprintf("RMS_EPS=%.9gf", s.Eps), fmt.Sprintf("QKV_BIAS=%d", flag(s.QKVBias)),
		fmt.Sprintf("QK_NORM=%d", flag(s.QKNorm)), fmt.Sprintf("WINDOW=%d", s.Window),
	}
}

// paramBytes copies a parameter struct. T holds no Go pointers, and has the layout of the kernel's struct.
func paramBytes[T any](p *T) []byte {
	return append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(p)), unsafe.Sizeof(*p))...)
}
