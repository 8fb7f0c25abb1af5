//go:build cuda

package cuda

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// gemm_sm90: the products of 17 to 256 tokens on the warpgroup matrix units of sm_90a.

const (
	gemmTokens     = 256 // the most tokens it takes
	gemmPays       = 48  // the most tokens for which it beats cuBLASLt: docs/perf-log.md
	gemmHeadTokens = 128 // the most rows whose tokens the head chooses in its epilogue
	gemmRows       = 128 // rows of W of a tile
	gemmStep       = 64  // columns of a stage
	gemmThreads    = 288
	gemmStageBytes = 204 << 10 // of shared memory
)

// gemmParams mirrors Params of gemm_sm90.cu.
type gemmParams struct {
	W, X                                                            driver.TensorMap
	Bias, Y, Logits, Slot, Position, SlotParam, Best, Part, Arrived ptr
	Tokens                                                          int32
	_                                                               [13]int32
}

// fitsGEMM tells whether gemm_sm90 can take the product.
func (l linear) fitsGEMM(d device) bool {
	return d.SM == 90 && l.m <= gemmTokens && l.n%8 == 0 && l.k%8 == 0 && ceilDiv(l.n, gemmRows) <= gemmMaxTiles
}

// gemmMaxTiles is the number of counters for tiles that CTAs share.
const gemmMaxTiles = 4096

// gemmScratch is where sums of shared tiles and their counters lie: behind attention's counters and over its partial results, which no
// kernel needs at the same time.
func gemmScratch(s shape, b *buffers) (arrived, part ptr) {
	return b.AttnScratch + ptr(attnCounterBytes(s)), b.AttnScratch + ptr(attnCounterBytes(s)+gemmCounterBytes)
}

const gemmCounterBytes = 4 * gemmMaxTiles

// gemmPartBytes is the room for sums of shared tiles: two a CTA.
func gemmPartBytes(d device, s shape) int64 {
	if d.SM != 90 {
		return 0
	}
	return int64(d.SMs) * 2 * gemmRows * int64(min(gemmTokens, s.tokenRows())) * 4
}

// op90 is the product on gemm_sm90: x is normed already.
func (l linear) op90(d device, s shape, b *buffers, w, x ptr, p gemmParams) op {
	tokens := gemmTokens
	for _, class := range []int{32, 64, 96, 128, 192} { // few, as each is a compilation; what is past m costs no memory traffic
		if l.m <= class {
			tokens = class
			break
		}
	}
	stage := (gemmRows + tokens) * gemmStep * bf16Bytes
	stages := min(gemmStageBytes/stage, 16)
	p.W, p.X, p.Tokens = tensorMap(w, l.n, l.k, gemmRows), tensorMap(x, l.m, l.k, tokens), int32(l.m)
	p.Arrived, p.Part = gemmScratch(s, b)
	smem := stages*stage + 16*stages + tokens*(2*4*8+16) + 16
	return op{Name: l.name, PDL: true, Params: paramBytes(&p), Grid: [3]int{l.gemmCTAs(d), 1, 1}, Block: gemmThreads, Smem: pad(smem, 1024),
		Unit:  unit{"gemm_sm90.cu", "gemm_sm90", fmt.Sprintf("EPILOGUE=%d K=%d M=%d N=%d NORM=0 STAGES=%d TOKENS=%d", l.end, l.k, tokens, l.n, stages, tokens)},
		Bytes: int64(l.n)*int64(l.k)*bf16Bytes + int64(l.m)*int64(l.k+l.outputs())*bf16Bytes, FLOPs: 2 * int64(l.m) * int64(l.n) * int64(l.k)}
}

// gemmCTAs is one CTA an SM, each with at least one stage of one tile.
func (l linear) gemmCTAs(d device) int {
	return min(d.SMs, ceilDiv(l.n, gemmRows)*ceilDiv(l.k, gemmStep))
}

// tensorMap describes a matrix of rows x cols to the tensor copies, which take boxRows x 64 at a time. A plan made without memory, for its
// list of kernels, has none.
func tensorMap(p ptr, rows, cols, boxRows int) (m driver.TensorMap) {
	if p == 0 {
		return m
	}
	m, err := driver.TensorMap2D(p, rows, cols, boxRows, gemmStep)
	if err != nil {
		panic(fmt.Sprintf("tensor map of %d x %d: %v", rows, cols, err)) // sizes and alignment are the arena's own
	}
	return m
}

// The products of a layer and the head for m tokens.

func (s shape) qkv(m int) linear {
	l := linear{name: "qkv", m: m, n: s.qkvDim(), k: s.Hidden, norm: true}
	if s.QKVBias {
		l.end = epilogueBias
	}
	return l
}

func (s shape) o(m int) linear {
	return linear{name: "o", m: m, n: s.Hidden, k: s.qDim(), end: epilogueResidual}
}

func (s shape) gateUp(m int) linear {
	return linear{name: "gate_up", m: m, n: 2 * s.Inter, k: s.Hidden, norm: true, end: epilogueSwiGLU}
}

func (s shape) down(m int) linear {
	return linear{name: "down", m: m, n: s.Hidden, k: s.Inter, end: epilogueResidual}
}

// fitsGEMM tells whether gemm_sm90 takes the products of a step of m tokens.
func (s shape) fitsGEMM(d device, m int) bool {
	return s.qkv(m).fitsGEMM(d) && s.o(m).fitsGEMM(d) && s.gateUp(m).fitsGEMM(d) && s.down(m).fitsGEMM(d) && (linear{m: m, n: s.Vocab, k: s.Hidden}).fitsGEMM(d)
}

// gemmHeadOp: the LM head over the normed rows xs: logits if full, else only the best token that each CTA saw.
func gemmHeadOp(d device, s shape, b *buffers, samples int, full bool) op {
	l := linear{name: "gemm_head", m: samples, n: s.Vocab, k: s.Hidden, end: epilogueHeadFast}
	if full {
		l.name, l.end = "gemm_head_logits", epilogueHeadLogits
	}
	return l.op90(d, s, b, b.Head.Data, b.XS, gemmParams{Logits: b.Logits, Slot: b.SampleSlot, Position: b.SamplePos, SlotParam: b.SlotParam, Best: b.HeadScratch})
}
