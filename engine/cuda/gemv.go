//go:build cuda

package cuda

import "fmt"

// The streaming matrix kernels of decode, gemv (at most 2 tokens, CUDA cores) and gemv_mma (at most 16, matrix units): y = f(x Wᵀ).

// epilogue is what happens to a finished output; the numbers are linear.cuh's.
type epilogue int

const (
	epilogueStore epilogue = iota
	epilogueBias
	epilogueResidual
	epilogueSwiGLU
	epilogueHeadFast
	epilogueHeadLogits
)

// linearParams mirrors Params of linear.cuh.
type linearParams struct {
	W, X, Gamma, Bias, Y, Logits, XRow, Slot, Position, SlotParam, Best, RowScale ptr
	Tokens                                                                        int32
	_                                                                             int32
}

// linear is one product: n outputs (SwiGLU: gate and up together) of k inputs for m tokens.
type linear struct {
	name    string
	m, n, k int
	norm    bool
	end     epilogue
	fp8     bool // W is e4m3 with a scale for each row
}

const (
	gemvThreads = 256
	gemvWarps   = gemvThreads / 32
	gemvLoads   = 16 // 16-byte loads of W that a lane keeps in flight
	coreTokens  = 2  // the most tokens that gemv takes: beyond, it would be bound by arithmetic
)

// gemvTile is how gemv cuts a product.
type gemvTile struct{ rows, grid, smem int }

func (l linear) outputs() int {
	if l.end == epilogueSwiGLU {
		return l.n / 2
	}
	return l.n
}

// gemvTile picks the rows that a warp reads at once: more than one where a row alone would leave too few loads in flight, but
// not so many that warps go idle.
func (l linear) gemvTile(d device) gemvTile {
	step := 256 // columns of a warp's loads
	if l.fp8 {
		step = 512
	}
	steps := ceilDiv(l.k, step)
	warps := 2 * d.SMs * gemvWarps
	best, bestCost := 1, 0
	for _, rows := range []int{1, 2, 4, 8} {
		if rows > 1 && (rows*steps > gemvLoads/l.m || rows > l.n) { // a second token takes registers of its own
			break
		}
		perUnit, cost := rows, rows
		if l.end == epilogueSwiGLU {
			perUnit, cost = max(rows/2, 1), max(rows, 2)
		}
		cost *= ceilDiv(ceilDiv(l.outputs(), perUnit), warps)
		if rows == 1 || cost <= bestCost {
			best, bestCost = rows, cost
		}
	}
	perUnit := best
	if l.end == epilogueSwiGLU {
		perUnit = max(best/2, 1)
	}
	chunks := 1
	if best == 1 {
		chunks = ceilDiv(steps, gemvLoads)
	}
	padded := chunks * ceilDiv(steps, chunks) * step
	return gemvTile{rows: best, grid: min(2*d.SMs, ceilDiv(ceilDiv(l.outputs(), perUnit), gemvWarps)), smem: l.m * padded * bf16Bytes}
}

// mmaTile is how gemv_mma cuts a product: blocks of 16 rows that a CTA works on at once.
type mmaTile struct{ blocks, grid, smem int }

const (
	mmaThreads = 512
	mmaWarps   = mmaThreads / 32
)

// mmaTile takes one block at a time where x stays in registers (KEEP_X of gemv_mma.cu); elsewhere as many as balance allows, since
// each pass reads x again.
func (l linear) mmaTile(d device) mmaTile {
	if l.fp8 {
		return l.mmaTileOf(d, l.balanced(d, l.fp8Blocks()))
	}
	tiles, steps := ceilDiv(l.m, 8), ceilDiv(ceilDiv(l.k, 32), mmaWarps)
	most := 3
	if tiles > 1 {
		most = 2 // three would not fit the registers
	}
	if steps <= 8 && (tiles == 1 || steps <= 4 || steps == 8) {
		most = 1
	}
	return l.mmaTileOf(d, l.balanced(d, most))
}

// balanced is the number of blocks, at most most, that leaves the fewest to the CTA with the most of them; the largest of equals.
func (l linear) balanced(d device, most int) int {
	best, bestCost := 1, 0
	for blocks := 1; blocks <= most && 16*blocks <= l.n; blocks++ {
		cost := blocks * ceilDiv(ceilDiv(l.n, 16*blocks), d.SMs)
		if blocks == 1 || cost <= bestCost {
			best, bestCost = blocks, cost
		}
	}
	return best
}

// mmaTileOf is gemv_mma's tile of so many blocks.
func (l linear) mmaTileOf(d device, best int) mmaTile {
	tiles := ceilDiv(l.m, 8)
	smem := best*tiles*2*mmaWarps*16*8*4 + mmaWarps*16*4 + 16*4 // sums, squares, scales: struct Shared of gemv_mma.cu
	gamma, found, draw := 1, 1, 1
	if l.norm {
		gamma = ceilDiv(l.k, 8)
	}
	if l.end == epilogueHeadFast {
		found, draw = mmaThreads, 16
	}
	return mmaTile{blocks: best, grid: min(d.SMs, ceilDiv(l.n, 16*best)), smem: pad(smem+gamma*16+found*8+draw*16, 16) + 16}
}

// useCores tells whether gemv takes the product.
func (l linear) useCores(d device) bool {
	return l.m <= coreTokens && l.gemvTile(d).smem <= d.MaxSmem
}

func (l linear) grid(d device) int {
	if l.useCores(d) {
		return l.gemvTile(d).grid
	}
	return l.mmaTile(d).grid
}

func (l linear) op(d device, p linearParams) op {
	p.Tokens = int32(l.m)
	norm := 0
	if l.norm {
		norm = 1
	}
	o := op{Name: l.name, PDL: true, Params: paramBytes(&p),
		Bytes: int64(l.n)*int64(l.k)*bf16Bytes + int64(l.m)*int64(l.k+l.outputs())*bf16Bytes, FLOPs: 2 * int64(l.m) * int64(l.n) * int64(l.k)}
	defines := fmt.Sprintf("EPILOGUE=%d K=%d N=%d NORM=%d", l.end, l.k, l.n, norm)
	if l.fp8 {
		defines = "FP8=1 " + defines
		o.Bytes -= int64(l.n) * int64(l.k)
	}
	if l.useCores(d) {
		t := l.gemvTile(d)
		o.Unit = unit{"gemv.cu", "gemv", fmt.Sprintf("%s M=%d ROWS_PER_PASS=%d", defines, l.m, t.rows)}
		o.Grid, o.Block, o.Smem = [3]int{t.grid, 1, 1}, gemvThreads, t.smem
		return o
	}
	t := l.mmaTile(d)
	o.Unit = unit{"gemv_mma.cu", "gemv_mma", fmt.Sprintf("%s M=%d BLOCKS=%d", defines, pad(l.m, 8), t.blocks)}
	o.Grid, o.Block, o.Smem = [3]int{t.grid, 1, 1}, mmaThreads, t.smem
	return o
}

func headLinear(s shape, samples int, full bool) linear {
	l := linear{name: "gemv_head", m: samples, n: s.Vocab, k: s.Hidden, norm: true, end: epilogueHeadFast}
	if full {
		l.name, l.end = "gemv_head_logits", epilogueHeadLogits
	}
	return l
}

// gemvHeadOp: the LM head over the sampling rows' last tokens: logits if full, else only the best token that each CTA saw.
func gemvHeadOp(d device, s shape, b *buffers, samples int, full bool) op {
	return headLinear(s, samples, full).op(d, linearParams{W: b.Head.Data, X: b.X, Gamma: b.Norm, Logits: b.Logits, XRow: b.SampleTok,
		Slot: b.SampleSlot, Position: b.SamplePos, SlotParam: b.SlotParam, Best: b.HeadScratch})
}

// headScratchBytes is the room for the head's candidates: {f32 score, u32 token} [rows, CTAs].
func headScratchBytes(d device, _ shape) int64 {
	return max(int64(gemvRows)*int64(2*d.SMs), int64(gemmTokens)*int64(d.SMs)) * 8
}

// headCTAs is the number of candidates of each row.
func headCTAs(d device, s shape, samples int) int {
	if samples > gemvRows {
		l := headLinear(s, samples, false)
		return l.gemmTile(d).ctas(l, d)
	}
	return headLinear(s, samples, false).grid(d)
}

func ceilDiv(a, b int) int { return (a + b - 1) / b }
