//go:build cuda

package cuda

import "github.com/tokamak-engine/tokamak/engine/cuda/driver"

// The matrix products of a step. What runs one depends on its weight's format and on the number of tokens; a format has one function
// for all products.

// product is y = end(norm?(x) wᵀ). Where norm is set, x is the residual stream; where end adds to y, y is.
type product struct {
	linear
	w                 weight
	x, gamma, bias, y ptr  // gamma [k] is norm's, bias [n] epilogueBias's
	swiglu            bool // x is gate and up, interleaved: fp8 alone
	next              ptr  // what the next product reads first, nextBytes of it: w4_gemv brings it to the L2
	nextBytes         int
}

// qkv lists what makes qkv of the residual stream.
func (p *planner) qkv(st stepShape, l layerWeights) []node {
	g := product{linear: p.shape.qkv(st.tokens), w: l.WQKV, x: p.buffers.X, gamma: l.Norm1, bias: l.BQKV, y: p.buffers.QKV}
	return p.product(p.before(g, p.shape.o(st.tokens), l.WO))
}

// o lists what adds attention's output to the residual stream.
func (p *planner) o(st stepShape, l layerWeights) []node {
	g := product{linear: p.shape.o(st.tokens), w: l.WO, x: p.buffers.Att, y: p.buffers.X}
	return p.product(p.before(g, p.shape.gateUp(st.tokens), l.WGU))
}

// mlp lists what adds the feed-forward block's output to the residual stream.
func (p *planner) mlp(st stepShape, l layerWeights) []node {
	if p.shape.MoE.Experts > 0 {
		return p.moe(st, l)
	}
	gateUp := product{linear: p.shape.gateUp(st.tokens), w: l.WGU, x: p.buffers.X, gamma: l.Norm2, y: p.buffers.Act}
	down := product{linear: p.shape.down(st.tokens), w: l.WDown, x: p.buffers.Act, y: p.buffers.X}
	if p.quantizesSwiGLU(gateUp, down) {
		gateUp.y, gateUp.end, down.x, down.swiglu = p.buffers.GU, epilogueStore, p.buffers.GU, true
	}
	gateUp = p.before(gateUp, down.linear, down.w)
	if next := l.Layer + 1; next < len(p.layers) {
		down = p.before(down, p.shape.qkv(st.tokens), p.layers[next].WQKV)
	} else {
		down = p.before(down, linear{n: p.shape.Vocab, k: p.shape.Hidden}, p.buffers.Head)
	}
	return append(p.product(gateUp), p.product(down)...)
}

// head lists what makes logits of the sampling rows, or, unless full, only the best token that each CTA saw. It tells whether there are logits.
func (p *planner) head(st stepShape) (nodes []node, full bool) {
	d, s, b := p.device, p.shape, p.buffers
	switch {
	case st.samples == 0:
		return nil, st.full
	case st.samples <= gemvRows && !s.Deterministic:
		return nodesOf(gemvHeadOp(d, s, b, st.samples, st.full)), st.full
	case p.ownGEMM(st.samples):
		return append(nodesOf(gatherNormOp(d, s, b, st.samples)), node{own: gemmHead(d, s, b, st.samples, st.full)}), st.full
	}
	return append(nodesOf(gatherNormOp(d, s, b, st.samples)), p.headLogits(st.samples)...), true
}

// headLogits multiplies m normed rows xs by the head.
func (p *planner) headLogits(m int) []node {
	return p.blas(driver.GEMM{Name: "gemm_head", M: m, N: p.shape.Vocab, K: p.shape.Hidden, W: p.buffers.Head.Data, X: p.buffers.XS, Y: p.buffers.Logits, F32: true})
}

// product lists what runs g.
func (p *planner) product(g product) []node {
	switch g.w.Format {
	case formatFP8:
		return p.productFP8(g)
	case formatInt4:
		return p.productInt4(g)
	default:
		return p.productBF16(g)
	}
}

// before tells g which weight the product l reads after it.
func (p *planner) before(g product, l linear, w weight) product {
	all := l.n * l.k * bf16Bytes
	switch w.Format {
	case formatInt4:
		all = l.n * pad(l.k, w4Step) / 2
	case formatFP8:
		all /= 2
	}
	g.next, g.nextBytes = w.Data, min(all, p.device.SMs*max(w4Ahead, 8*pad(l.k, w4Step)))
	return g
}

// productBF16: up to gemvRows tokens go to the streaming kernels, which norm x on the way; some more to gemm_sm90; the rest to
// cuBLASLt, but for gate_up.
func (p *planner) productBF16(g product) []node {
	d, s, b := p.device, p.shape, p.buffers
	if g.m <= gemvRows && !s.Deterministic {
		g.name = "gemv_" + g.name
		return nodesOf(g.op(d, linearParams{W: g.w.Data, X: g.x, Gamma: g.gamma, Bias: g.bias, Y: g.y}))
	}
	var nodes []node
	if g.norm {
		nodes, g.x = nodesOf(rmsnormOp(d, s, b, g.gamma, g.m)), b.XN
	}
	if p.ownGEMM(g.m) {
		g.name = "gemm_" + g.name
		call := g.call90(d, g.gemmTile(d), g.w.Data, g.x, gemmParams{Bias: g.bias, Y: g.y})
		call.gamma = g.gamma
		return append(nodes, node{own: call})
	}
	if p.ownSwiGLU(g.linear) {
		return append(nodes, nodesOf(g.swigluOp(d, g.swigluTile(d), g.w.Data, g.x, g.y))...)
	}
	return append(nodes, p.productBLAS(g)...)
}

// productBLAS leaves g, whose x is normed and whose weight is bf16, to cuBLASLt.
func (p *planner) productBLAS(g product) []node {
	call := driver.GEMM{Name: "gemm_" + g.name, M: g.m, N: g.n, K: g.k, W: g.w.Data, X: g.x, Y: g.y, Bias: g.bias, Accumulate: g.end == epilogueResidual}
	if g.end == epilogueSwiGLU {
		call.Y = p.buffers.GU
		return append(p.blas(call), nodesOf(siluMulOp(p.device, p.shape, p.buffers, g.m))...)
	}
	return p.blas(call)
}

// ownGEMM tells whether gemm_sm90 takes products of m tokens. It does not where the sums' order may not depend on m.
func (p *planner) ownGEMM(m int) bool {
	return m > gemvRows && m <= gemmPays && !p.blasOnly && !p.shape.Deterministic && p.shape.fitsGEMM(p.device, m)
}

// deterministicRows is the one number of rows that every product has in deterministic mode: then an output depends on nothing but
// its own row, bit for bit. 256 is cheap for a single row (1.3 times the step's floor, H100) and within a third of the best for prompts.
const deterministicRows = 256

// blas is g, or in deterministic mode g in pieces of deterministicRows. The rows past g.M have room and no meaning.
func (p *planner) blas(g driver.GEMM) []node {
	if !p.shape.Deterministic {
		return []node{{gemm: &g}}
	}
	in, out := ptr(bf16Bytes), ptr(bf16Bytes)
	if g.F32 {
		out = 4
	}
	if g.FP8 {
		in = 1
	}
	var nodes []node
	for at := 0; at < g.M; at += deterministicRows {
		piece := g
		piece.M, piece.X, piece.Y = deterministicRows, g.X+ptr(at*g.K)*in, g.Y+ptr(at*g.N)*out
		if g.FP8 {
			piece.XScale += ptr(at * 4)
		}
		nodes = append(nodes, node{gemm: &piece})
	}
	return nodes
}

// nodesOf makes nodes of kernels.
func nodesOf(ops ...op) []node {
	nodes := make([]node, len(ops))
	for i := range ops {
		nodes[i].op = &ops[i]
	}
	return nodes
}
