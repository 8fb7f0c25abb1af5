//go:build cuda

package cuda

import (
	"slices"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// buckets are the numbers of rows that a decode step is padded to; each has its own graph.
var buckets = []int{1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640, 704, 768, 832, 896, 960, 1024}

const (
	// gemvRows is the most rows that the streaming kernels take; more go to cuBLASLt.
	gemvRows = 16
	// tokenPad is what larger numbers of tokens are padded to, so that cuBLASLt's plans repeat.
	tokenPad = 64
	// targetRows is the number of tokens whose log probabilities are computed at a time: they need whole logits.
	targetRows = 256
)

// bucketFor is the smallest bucket of at least n rows; past the last, multiples of tokenPad.
func bucketFor(n int) int {
	i, _ := slices.BinarySearch(buckets, n)
	if i < len(buckets) {
		return buckets[i]
	}
	return pad(n, tokenPad)
}

// node is one piece of a step: a kernel, a matrix product of cuBLASLt, or a hook that enqueues something itself.
type node struct {
	op   *op
	gemm *driver.GEMM
	hook func() error
	own  call     // what op is made of in the end, if it is a gemm kernel of ours: norms between two of them go into both
	fp8  *fp8Call // likewise, gemm_fp8_sm90
	// layer counts from 1; 0 is outside of the layers.
	layer int
}

// stepShape is all that a step's plan depends on.
type stepShape struct {
	rows, decode int // rows in all; decode rows, which come first
	tokens       int // decode rows count one each
	samples      int
	longest      int  // tokens of the longest prefill row
	full         bool // logits are stored and the full sampler runs
	drafts       bool // decode rows follow each other in a slot: K and V of all are written before attention reads
	widens       bool // pages of an e4m3 cache are copied as f16 for prefill attention, and there is room for those of all rows
	shared       bool // attn_prefix reads what decode rows share
}

// decodeOnly tells that the step has decode rows alone and all of them sample.
func (st stepShape) decodeOnly() bool { return st.decode == st.rows && st.samples == st.rows }

// padded gives the sizes that the step is run at.
func (st stepShape) padded() stepShape {
	if st.decodeOnly() {
		n := bucketFor(st.rows)
		return stepShape{rows: n, decode: n, tokens: n, samples: n, full: st.full || n > headChooses, drafts: st.drafts, shared: st.shared}
	}
	if st.tokens <= gemvRows {
		st.tokens = bucketFor(st.tokens)
	} else {
		st.tokens = pad(st.tokens, tokenPad)
	}
	st.longest = min(pad(st.longest, attnPrefillTile), st.tokens)
	if st.samples > 0 {
		st.samples = bucketFor(st.samples)
	}
	st.full = st.full || st.samples > headChooses
	return st
}

// planner makes steps of kernels. It needs no device.
type planner struct {
	device  device
	shape   shape
	buffers *buffers
	layers  []layerWeights
	// noPDL takes the programmatic edges out: the same kernels, each started when the one before has ended.
	noPDL bool
	// blasOnly leaves every product of more than gemvRows tokens to cuBLASLt.
	blasOnly bool
	// captures is the draft head that reads the layers' outputs, reads the one whose own steps these are. Both are nil where there is none.
	captures, reads *draftHead
}

// hooks are put into a step that gives more than tokens. Either may be nil.
type hooks struct{ beforeHead, beforeSampling func() error }

// step lists what a padded step runs, in order.
func (p *planner) step(st stepShape, h hooks) []node {
	d, s, b := p.device, p.shape, p.buffers
	nodes := nodesOf(advanceOp(d, s, b, max(st.rows, st.samples), st.tokens))
	if p.reads != nil {
		nodes = append(nodes, p.reads.input(p, st)...)
	} else {
		nodes = append(nodes, nodesOf(embedOp(d, s, b, st.tokens))...)
	}
	for i, l := range p.layers {
		first := len(nodes)
		nodes = append(nodes, p.layer(st, i, l)...)
		if p.captures != nil {
			nodes = append(nodes, p.captures.capture(p, st, i)...)
		}
		for j := first; j < len(nodes); j++ {
			nodes[j].layer = i + 1
		}
	}
	if p.reads != nil {
		nodes = append(nodes, p.reads.keep(p, st)...)
	}
	if h.beforeHead != nil {
		nodes = append(nodes, node{hook: h.beforeHead})
	}
	nodes = append(nodes, p.sample(st, h)...)
	nodes = p.linkFP8(p.linkGEMMs(nodes))
	for i := range nodes {
		// A kernel may overlap the end of the one before it, but not a library's, whose kernels know nothing of it.
		if o := nodes[i].op; o != nil && (i == 0 || nodes[i-1].op == nil || p.noPDL) {
			o.PDL = false
		}
	}
	return nodes
}

// layer lists what layer i runs, from the residual stream to the residual stream.
func (p *planner) layer(st stepShape, i int, l layerWeights) []node {
	var nodes []node
	if p.reads != nil {
		nodes = p.reads.qkv(p, st, l)
	} else {
		nodes = p.qkv(st, l)
	}
	nodes = append(nodes, p.attention(st, i, l)...)
	nodes = append(nodes, p.o(st, l)...)
	return append(nodes, p.mlp(st, l)...)
}

// attention lists what makes attention's output of qkv, and writes K and V to their pages.
func (p *planner) attention(st stepShape, i int, l layerWeights) []node {
	d, s, b := p.device, p.shape, p.buffers
	var nodes []node
	decode, longest := st.decode, st.longest
	if s.Deterministic {
		// After a preemption a decoded token is computed again as part of a prompt: one kernel does both, so that its sums have one order.
		decode, longest = 0, max(1, longest)
	}
	if decode > 0 {
		attend := attnDecodeOp(d, s, b, l, i, decode)
		if st.drafts {
			nodes = append(nodes, nodesOf(draftKVOp(d, s, b, l, i, decode))...)
			attend.PDL = false // it reads pages before it waits
		}
		if st.shared {
			nodes, attend = append(nodes, nodesOf(attnPrefixOp(d, s, b, l, i, decode))...), behindPrefixOp(d, s, b, l, i, decode)
		}
		nodes = append(nodes, nodesOf(attend)...)
	}
	if st.rows > decode {
		nodes = append(nodes, nodesOf(ropeKVOp(d, s, b, l, i, decode, st.tokens))...)
		nodes = append(nodes, prefillAttention(d, s, b, l, i, decode, st.rows, longest, st.widens)...)
	}
	return nodes
}

// sample lists what chooses the tokens: the head, and what follows it.
func (p *planner) sample(st stepShape, h hooks) []node {
	d, s, b := p.device, p.shape, p.buffers
	nodes, full := p.head(st)
	if h.beforeSampling != nil {
		nodes = append(nodes, node{hook: h.beforeSampling})
	}
	if st.samples > 0 && !full {
		return append(nodes, nodesOf(sampleFastOp(d, s, b, st.samples))...)
	}
	if st.samples > 0 {
		nodes = append(nodes, nodesOf(sampleOp(d, s, b, st.samples))...)
	}
	return append(nodes, nodesOf(publishOp(d, s, b, st.samples))...)
}

// targets lists what computes the log probabilities of Targets[first..first+n-1] from the residual stream, after the layers and
// before the head: it uses the same buffers.
func (p *planner) targets(first, n int) []node {
	d, s, b := p.device, p.shape, p.buffers
	norm, logprob := normRowsOp(d, s, b, first, n), targetLogprobOp(d, s, b, first, n)
	norm.PDL, logprob.PDL = false, false
	nodes := append([]node{{op: &norm}}, p.headLogits(pad(n, tokenPad))...)
	return append(nodes, node{op: &logprob})
}

// units lists every compilation that any step may need.
func (p *planner) units() []unit {
	seen := map[unit]bool{}
	add := func(nodes []node) {
		for _, n := range nodes {
			if n.op != nil {
				seen[n.op.Unit] = true
			}
		}
	}
	for _, n := range buckets {
		if n > max(gemvRows, p.shape.MaxRows, min(max(gemmPays, gemmFP8Pays), p.shape.MaxTokens)) {
			break
		}
		for _, full := range []bool{false, true} {
			if n <= p.shape.MaxRows {
				add(p.step(stepShape{rows: n, decode: n, tokens: n, samples: n, full: full, drafts: p.shape.MaxVerify > 0, shared: p.shape.canShare()}.padded(), hooks{}))
			}
			samples := min(n, p.shape.MaxRows)
			for _, tokens := range []int{n, p.shape.MaxTokens} {
				for _, widens := range []bool{false, p.shape.widenedPages(p.device) > 0} {
					add(p.step(stepShape{rows: 2, decode: 1, tokens: tokens, samples: samples, longest: tokens, full: full, widens: widens}.padded(), hooks{}))
				}
			}
		}
	}
	add(p.targets(0, targetRows))
	if p.shape.MoE.Experts > 0 { // its tiles follow the number of tokens
		for n := tokenPad; n < p.shape.MaxTokens; n *= 2 {
			add(p.moe(stepShape{tokens: n}, p.layers[0]))
		}
	}
	if p.device.SM == 90 { // likewise
		for n := tokenPad; n <= p.shape.MaxTokens; n += tokenPad {
			st := stepShape{tokens: n}
			add(p.mlp(st, p.layers[0]))
		}
	}
	start := startOp(p.device, p.shape, p.buffers, 1)
	seen[start.Unit] = true
	list := make([]unit, 0, len(seen))
	for u := range seen {
		list = append(list, u)
	}
	slices.SortFunc(list, func(a, b unit) int { return strings.Compare(a.String(), b.String()) })
	return list
}
