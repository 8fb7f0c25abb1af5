//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// gemm_sm90: the products of 17 to 128 tokens on the warpgroup matrix units of sm_90a.

const (
	gemmTokens     = 128 // the most tokens it takes
	gemmPays       = 128 // the most tokens for which it beats cuBLASLt: docs/perf-log.md
	gemmMostRows   = 256 // rows of W of a tile, the widest that a warpgroup multiplies
	headChooses    = 128 // the most rows whose tokens the head chooses in its epilogue, gemv_mma's or gemm_sm90's
	gemmStep       = 64  // columns of a stage
	gemmThreads    = 320
	gemmStageBytes = 208 << 10 // of shared memory
)

// gemmParams mirrors Params of gemm_sm90.cu.
type gemmParams struct {
	W, X                                             driver.TensorMap
	Bias, Y, Logits, Slot, Position, SlotParam, Best ptr
	Gamma, Scaled, Squares, RMSOf                    ptr
	Tokens, Parts                                    int32
	_                                                [8]int32
}

// gemmTile is how gemm_sm90 cuts a product: rows of W of a tile, CTAs that share a tile's K (a cluster), the tokens it has room for, stages.
type gemmTile struct{ rows, split, tokens, stages int }

// fitsGEMM tells whether gemm_sm90 can take the product.
func (l linear) fitsGEMM(d device) bool {
	return d.SM == 90 && l.m <= gemmTokens && l.n%8 == 0 && l.k%8 == 0
}

// gemmTiles lists every tile that the product may be cut into.
func (l linear) gemmTiles(d device) []gemmTile {
	t := gemmTile{tokens: 32}
	for t.tokens < l.m { // few classes, as each is a compilation; what is past m costs no memory traffic
		t.tokens *= 2
	}
	step := 32 // two warpgroups with blocks of 16 rows
	if t.tokens > 64 {
		step = 16
	}
	var tiles []gemmTile
	for _, t.split = range []int{1, 2, 4} {
		if t.split > 1 && (l.end == epilogueHeadFast || l.end == epilogueHeadLogits) {
			break // it is large, and its epilogue sees whole sums
		}
		most := gemmMostRows
		if t.tokens > 64 && l.end == epilogueResidual && t.split == 1 {
			most = 160 // registers
		}
		for t.rows = 32; t.rows <= most; t.rows += step {
			stage := (t.rows + t.tokens) * gemmStep * bf16Bytes
			t.stages = min(gemmStageBytes/stage, 16)
			if t.split > 1 && (t.ctas(l, d) > gemmCTAs(d, t.split) || ceilDiv(l.k, gemmStep) < t.split || t.sums(l) > t.stages*stage) {
				continue
			}
			tiles = append(tiles, t)
		}
	}
	return tiles
}

// gemmCTAs is how many CTAs surely run at once in clusters of split: GPCs differ in size, and the SMs that are left over in each stay idle.
func gemmCTAs(d device, split int) int {
	if split <= 2 {
		return d.SMs / split * split
	}
	return d.SMs * 10 / 11 / split * split
}

// ctas is the grid. A cluster has one tile; without clusters a CTA has as many as it takes.
func (t gemmTile) ctas(l linear, d device) int {
	if t.split == 1 {
		return min(d.SMs, ceilDiv(l.n, t.rows))
	}
	return ceilDiv(l.n, t.rows) * t.split
}

// sums is the room for what the CTAs of a cluster give each other, bytes.
func (t gemmTile) sums(l linear) int {
	units, blocks := t.rows/8, 1
	if t.tokens <= 64 {
		units /= 2
	}
	if l.end == epilogueSwiGLU {
		units, blocks = units/2, 2
	}
	return t.split * ceilDiv(units, t.split) * blocks * 256 * 16
}

// cost estimates the product's time in nanoseconds, on an H200 with what BenchmarkGEMMTiles measured there. Memory's share is the same for all tiles. What
// counts is where one CTA is slower than that, in the bytes of its stages or in their number, and the exchange between CTAs.
func (t gemmTile) cost(l linear, d device) float64 {
	const memory, one, l2, exchange = 4500, 40, 100, 25 // bytes/ns: the device's, what of it reaches one SM, L2's into an SM, between SMs
	const stage, meet = 185, 1000                       // ns: the least that a stage takes; what a cluster waits for itself
	rounds := 1
	if t.split == 1 {
		rounds = ceilDiv(ceilDiv(l.n, t.rows), d.SMs)
	}
	stages := float64(ceilDiv(ceilDiv(l.k, gemmStep), t.split) * rounds)
	weight, bytes := float64(t.rows*gemmStep*bf16Bytes), float64((t.rows+t.tokens)*gemmStep*bf16Bytes)
	if int(stages) <= t.stages {
		weight = 0 // all of it is on its way before the kernel in front has ended
	}
	cta := stages * max(weight/one, bytes/l2, stage)
	all := float64(l.n*l.k*bf16Bytes) / memory
	tail := 0.
	if t.split > 1 {
		tail = meet + float64(t.sums(l))/exchange
	}
	return max(cta, all) + stages*bytes/l2/20 + tail
}

// gemmTile is the tile of least cost.
func (l linear) gemmTile(d device) gemmTile {
	return slices.MinFunc(l.gemmTiles(d), func(a, b gemmTile) int { return cmp.Compare(a.cost(l, d), b.cost(l, d)) })
}

// gemmCall is one launch of gemm_sm90.
type gemmCall struct {
	linear
	tile   gemmTile
	device device
	gamma  ptr // where norm is set
	params gemmParams
}

// call90 is the product of x, normed already, on gemm_sm90. x has room for all the tokens of the tile: a tensor copy that leaves rows out
// is slow (at 96 of 128 tokens a product took up to 1.3 times as long), and what the room holds reaches no output.
func (l linear) call90(d device, t gemmTile, w, x ptr, p gemmParams) *gemmCall {
	p.W, p.X, p.Tokens = tensorMap(w, l.n, l.k, t.rows), tensorMap(x, t.tokens, l.k, t.tokens), int32(l.m)
	return &gemmCall{linear: l, tile: t, device: d, params: p}
}

// call is a launch of a matrix kernel that can take a part of the RMSNorm behind it, or before it.
type call interface {
	// norms takes the RMSNorm between the call, whose outputs it is of, and next into both, if it can: next's x is then the call's outputs times
	// gamma, in scaled, and squares is where the two tell each other what the outputs' squares sum up to.
	norms(next call, scaled, squares ptr) bool
	op() op
}

func (c *gemmCall) norms(next call, scaled, squares ptr) bool {
	n, ok := next.(*gemmCall)
	if !ok || c.end != epilogueResidual || !n.end.takesNorm() {
		return false
	}
	c.params.Gamma, c.params.Scaled, c.params.Squares = n.gamma, scaled, squares
	n.params.RMSOf, n.params.Parts = squares, int32(c.tile.ctas(c.linear, c.device))
	return true
}

// takesNorm tells whether a product that ends so may have a norm's input.
func (e epilogue) takesNorm() bool {
	return e == epilogueStore || e == epilogueBias || e == epilogueSwiGLU
}

// linkGEMMs makes kernels of calls; a norm between two of them is none.
func (p *planner) linkGEMMs(nodes []node) []node {
	out := make([]node, 0, len(nodes))
	for i := 0; i < len(nodes); i++ {
		out = append(out, nodes[i])
		if i+2 >= len(nodes) || nodes[i+1].op == nil || nodes[i+1].op.Name != "rmsnorm" {
			continue
		}
		if c, after := nodes[i].own, nodes[i+2].own; c != nil && after != nil && c.norms(after, p.buffers.XN, p.buffers.AttnScratch+ptr(attnCounterBytes(p.shape))) {
			i++
		}
	}
	for i := range out {
		if out[i].own != nil {
			o := out[i].own.op()
			out[i].op = &o
		}
	}
	return out
}

// gemmSquaresBytes is the room for squares between two products. They lie over attention's partial results, which no kernel needs
// at the same time.
func gemmSquaresBytes(d device) int64 { return int64(d.SMs) * gemmTokens * 4 }

func (c *gemmCall) op() op {
	l, t := c.linear, c.tile
	smem := t.stages*((t.rows+t.tokens)*gemmStep*bf16Bytes+16) + 64*(8+4) + max(t.tokens, 64)*4
	cluster := 0
	if t.split > 1 {
		cluster = t.split
	}
	return op{Name: l.name, PDL: true, Params: paramBytes(&c.params), Grid: [3]int{t.ctas(l, c.device), 1, 1}, Block: gemmThreads, Smem: pad(smem, 1024), Cluster: cluster,
		Unit: unit{"gemm_sm90.cu", "gemm_sm90", fmt.Sprintf("EPILOGUE=%d K=%d M=%d N=%d NORM=0 ROWS=%d SPLIT=%d STAGES=%d TOKENS=%d", l.end, l.k, t.tokens, l.n, t.rows, t.split,
			t.stages, t.tokens)},
		Bytes: int64(l.n)*int64(l.k)*bf16Bytes + int64(l.m)*int64(l.k+l.outputs())*bf16Bytes, FLOPs: 2 * int64(l.m) * int64(l.n) * int64(l.k)}
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

// gemmHead is the LM head over the normed rows xs: logits if full, else only the best token that each CTA saw.
func gemmHead(d device, s shape, b *buffers, samples int, full bool) *gemmCall {
	l := headLinear(s, samples, full)
	l.name = "gemm" + strings.TrimPrefix(l.name, "gemv")
	return l.call90(d, l.gemmTile(d), b.Head.Data, b.XS, gemmParams{Logits: b.Logits, Slot: b.SampleSlot, Position: b.SamplePos, SlotParam: b.SlotParam, Best: b.HeadScratch})
}
