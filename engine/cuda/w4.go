//go:build cuda

package cuda

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

// Weights of four bits: how they lie on the device (w4.cuh says why), and their kernels beside w4_gemv.

const (
	w4Rows   = 8        // rows that lie together
	w4Step   = 128      // columns of a row that do
	w4Tokens = 16       // the most tokens that w4_gemv takes
	w4Ahead  = 64 << 10 // bytes of the next weight for each SM, which are what a CTA asks for first
)

// int4Group tells whether the kernels take tensors that form one matrix in four bits, and the size of their groups. AWQ, GPTQ and
// packed checkpoints are alike by now; groups of 8 and 16 are left to bf16.
func int4Group(tensors []*weights.Tensor) (group int, ok bool) {
	for i, t := range tensors {
		if t.DType != weights.I4 || t.Rows()%w4Rows != 0 || i > 0 && t.Quant.GroupSize != group {
			return 0, false
		}
		group = t.Quant.GroupSize
		if one := group == t.RowLen(); !one && group != 32 && group != 64 && group%w4Step != 0 {
			return 0, false
		}
	}
	return group, len(tensors) > 0
}

// w4Scales is the number of scales of a row in a step: PER_STEP of w4.cuh.
func w4Scales(k, group int) int {
	if group < w4Step && group < k {
		return w4Step / group
	}
	return 1
}

// int4Arrays are the nibbles and the scales with their zero points.
func (w *weight) int4Arrays(cols int) []array {
	return []array{
		{to: &w.Data, rowBytes: pad(cols, w4Step) / 2, encode: encodeInt4, fill: fillInt4Op},
		{to: &w.Scales, rowBytes: 4 * (cols / w.Group), encode: encodeInt4Scales, fill: fillInt4ScalesOp},
	}
}

// encodeInt4 lays out rows, whole blocks of eight: first is a multiple of 8.
func encodeInt4(dst []byte, t *weights.Tensor, first, rows int, _ *[]float32) {
	words, rowBytes := t.RowLen()/8, t.RowBytes()
	blockBytes := pad(t.RowLen(), w4Step) / 2 * w4Rows
	clear(dst)
	for r := range rows {
		row, block := t.Data[(first+r)*rowBytes:], dst[r/w4Rows*blockBytes:]
		for c := range words { // columns 8c..8c+7
			lane := r%w4Rows*4 + c%4
			at := 4 * ((c/16*32+lane)*4 + c%16/4)
			binary.LittleEndian.PutUint32(block[at:], pairNibbles(binary.LittleEndian.Uint32(row[4*c:])))
		}
	}
}

// pairNibbles takes nibbles 0, 2, 4 and 6 of a word to its low half, the others to its high half: columns 2i and 2i+1 are at i and i+4.
func pairNibbles(w uint32) uint32 {
	even, odd := w&0x0F0F0F0F, w>>4&0x0F0F0F0F
	even, odd = (even|even>>4)&0x00FF00FF, (odd|odd>>4)&0x00FF00FF
	return (even|even>>8)&0xFFFF | (odd|odd>>8)<<16
}

// encodeInt4Scales lays out rows' scales, [groups, 8] for each block of eight, with the zero point in the last five bits.
func encodeInt4Scales(dst []byte, t *weights.Tensor, first, rows int, _ *[]float32) {
	groups := t.RowLen() / t.Quant.GroupSize
	for r := range rows {
		for g := range groups {
			at, zero := (first+r)*groups+g, uint8(8)
			if t.Quant.Zeros != nil {
				zero = t.Quant.Zeros[at]
			}
			binary.LittleEndian.PutUint32(dst[4*((r/w4Rows*groups+g)*w4Rows+r%w4Rows):], packScale(t.Quant.Scales[at], zero))
		}
	}
}

// packScale rounds a scale to 18 of its 23 bits, which is exact for those that were stored as f16 or bf16, and puts the zero point, 0..16,
// in place of the others.
func packScale(scale float32, zero uint8) uint32 {
	return (math.Float32bits(scale)+16)&^31 | uint32(zero)
}

type w4FillParams struct {
	Dst                               ptr
	Count                             uint64
	Block, Seed, Constant, Interleave uint32
}

func fillInt4Op(d device, dst ptr, t *weights.Tensor, order int) op {
	return w4FillOp(d, w4FillParams{Dst: dst, Block: uint32(pad(t.RowLen(), w4Step) * w4Rows / 8), Seed: t.Dummy.Seed, Interleave: uint32(order)}, t)
}

func fillInt4ScalesOp(d device, dst ptr, t *weights.Tensor, order int) op {
	return w4FillOp(d, w4FillParams{Dst: dst, Block: uint32(t.RowLen() / t.Quant.GroupSize * w4Rows), Constant: packScale(t.Dummy.Scale/8, 8), Interleave: uint32(order)}, t)
}

func w4FillOp(d device, p w4FillParams, t *weights.Tensor) op {
	p.Count = uint64(t.Rows()/w4Rows) * uint64(p.Block)
	return op{Name: "w4_fill", Unit: unit{"w4_fill.cu", "w4_fill", fmt.Sprintf("K=%d", t.RowLen())}, Grid: [3]int{gridFor(d, p.Count, 256), 1, 1}, Block: 256,
		Params: paramBytes(&p), Bytes: 4 * int64(p.Count)}
}

// int4Bytes is the size of a matrix of four bits.
func int4Bytes(n, k, group int) int64 { return int64(n) * int64(pad(k, w4Step)/2+4*(k/group)) }

type w4DequantParams struct{ W, Scale, Out ptr }

// dequantOp makes a bf16 copy of w, [n, k], in out.
func dequantOp(d device, w weight, n, k int, out ptr) op {
	p := w4DequantParams{W: w.Data, Scale: w.Scales, Out: out}
	return op{Name: "w4_dequant", Unit: unit{"w4_dequant.cu", "w4_dequant", fmt.Sprintf("GROUP=%d K=%d N=%d", w.Group, k, n)},
		Grid: [3]int{min(d.SMs*8, ceilDiv(n/w4Rows*ceilDiv(k, w4Step), 8)), 1, 1}, Block: 256, PDL: true, Params: paramBytes(&p), Bytes: int4Bytes(n, k, w.Group) + int64(n)*int64(k)*bf16Bytes}
}

// productInt4: few tokens go to w4_gemv, some more to w4_gemm_sm90 or w4_gemm; for many, cuBLASLt multiplies by a bf16 copy.
func (p *planner) productInt4(g product) []node {
	if t, ok := g.w4GemvTile(p.device, g.w.Group); ok && !p.shape.Deterministic && (p.shape.MaxVerify == 0 || g.alwaysW4Gemv(p.device)) {
		return nodesOf(g.w4GemvOp(p.device, t))
	}
	var nodes []node
	if g.norm {
		nodes, g.x = nodesOf(rmsnormOp(p.device, p.shape, p.buffers, g.gamma, g.m)), p.buffers.XN
	}
	if t, ok := g.w4GEMM90Tile(p.device, g.w.Group); ok && !p.shape.Deterministic {
		return append(nodes, node{own: g.w4GEMM90Call(p.device, t)})
	}
	if g.fitsW4GEMM() && !p.shape.Deterministic {
		return append(nodes, nodesOf(g.w4GEMMOp(p.device, p.buffers))...)
	}
	nodes = append(nodes, nodesOf(dequantOp(p.device, g.w, g.n, g.k, p.buffers.Dequantised))...)
	g.w = weight{Data: p.buffers.Dequantised}
	return append(nodes, p.productBLAS(g)...)
}

// alwaysW4Gemv tells whether w4_gemv takes the product of as many tokens as any. Where drafts are verified a token's bits may not depend on how many there are, and
// w4_gemv adds in another order than the others.
func (g product) alwaysW4Gemv(d device) bool {
	l := g.linear
	l.m = w4Tokens
	_, ok := l.w4GemvTile(d, g.w.Group)
	return ok
}

// dequantised is the number of elements of the largest matrix of four bits.
func (s shape) dequantised(layers []layerWeights) (elements int) {
	for _, l := range layers {
		for _, m := range []struct {
			w weight
			l linear
		}{{l.WQKV, s.qkv(1)}, {l.WO, s.o(1)}, {l.WGU, s.gateUp(1)}, {l.WDown, s.down(1)}} {
			if m.w.Format == formatInt4 {
				elements = max(elements, m.l.n*m.l.k)
			}
		}
	}
	return elements
}
