//go:build cuda

package cuda

import "fmt"

// The kernels of a draft head, and its place in the model's steps and in its own.

// draftCaptureParams mirrors Params of draft_capture.cu.
type draftCaptureParams struct {
	X, Aux, Step ptr
	Part, Rows   int32
}

// draftGatherParams mirrors Params of draft_gather.cu.
type draftGatherParams struct{ X, Y, Index ptr }

// draftPairParams mirrors Params of draft_pair.cu.
type draftPairParams struct{ TokID, Embed, NormToken, NormHidden, Hidden, Index, X, Pairs ptr }

// draftCaptureOp: the residual stream of a step's tokens to part of aux.
func draftCaptureOp(s shape, b *buffers, aux ptr, part, rows, tokens int) op {
	p := draftCaptureParams{X: b.X, Aux: aux, Step: b.Step, Part: int32(part), Rows: int32(rows)}
	return op{Name: "draft_capture", Unit: unit{File: "draft_capture.cu", Symbol: "draft_capture"}, Grid: [3]int{tokens, 1, 1}, Block: 128, PDL: true,
		Params: paramBytes(&p), Bytes: 2 * int64(tokens) * int64(s.Hidden) * bf16Bytes}
}

// draftGatherOp: y[i] = x[index[i]], or x[i] where index is 0, for n rows of cols.
func draftGatherOp(x, y, index ptr, n, cols int) op {
	p := draftGatherParams{X: x, Y: y, Index: index}
	return op{Name: "draft_gather", Unit: unit{"draft_gather.cu", "draft_gather", fmt.Sprintf("COLS=%d", cols)}, Grid: [3]int{n, 1, 1}, Block: 128, PDL: true,
		Params: paramBytes(&p), Bytes: 2 * int64(n) * int64(cols) * bf16Bytes}
}

// draftPairOp: the layer's input for tokens pairs.
func draftPairOp(s shape, p draftPairParams, tokens int) op {
	return op{Name: "draft_pair", Unit: unit{File: "draft_pair.cu", Symbol: "draft_pair"}, Grid: [3]int{tokens, 2, 1}, Block: 256, PDL: true,
		Params: paramBytes(&p), Bytes: 4 * int64(tokens) * int64(s.Hidden) * bf16Bytes}
}

// capture lists what keeps the output of the model's layer i for the head.
func (h *draftHead) capture(p *planner, st stepShape, i int) []node {
	var nodes []node
	for part, layer := range h.config.AuxLayers {
		if layer == i {
			nodes = append(nodes, nodesOf(draftCaptureOp(p.shape, p.buffers, h.aux, part, h.rows, st.tokens))...)
		}
	}
	return nodes
}

// input lists what makes a pass's residual stream and the layer's input.
func (h *draftHead) input(p *planner, st stepShape) []node {
	index := ptr(0)
	if h.index != nil { // a plan made for its list of kernels has no memory
		index = h.index.Device
	}
	pair := draftPairParams{TokID: p.buffers.TokID, Embed: *h.embed, NormToken: h.normToken, NormHidden: h.normHidden, Hidden: p.buffers.X, X: p.buffers.X, Pairs: h.pairs}
	if st.decodeOnly() {
		pair.Hidden, pair.Index = h.last, index
		return nodesOf(draftPairOp(p.shape, pair, st.tokens))
	}
	nodes := nodesOf(draftGatherOp(h.aux, h.gathered, index, st.tokens, h.auxCols()))
	fc := product{linear: linear{name: "fc", m: st.tokens, n: p.shape.Hidden, k: h.auxCols()}, w: h.fc, x: h.gathered, y: p.buffers.X}
	nodes = append(nodes, p.product(fc)...)
	return append(nodes, nodesOf(draftPairOp(p.shape, pair, st.tokens))...)
}

// qkv lists what makes qkv of the layer's input.
func (h *draftHead) qkv(p *planner, st stepShape, l layerWeights) []node {
	return p.product(product{linear: linear{name: "qkv", m: st.tokens, n: p.shape.qkvDim(), k: 2 * p.shape.Hidden}, w: l.WQKV, x: h.pairs, y: p.buffers.QKV})
}

// keep lists what keeps the output of the rows that the pass samples.
func (h *draftHead) keep(p *planner, st stepShape) []node {
	if st.samples == 0 {
		return nil
	}
	return nodesOf(draftGatherOp(p.buffers.X, h.last, p.buffers.SampleTok, st.samples, p.shape.Hidden))
}
