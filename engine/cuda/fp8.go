//go:build cuda

package cuda

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// Weights of e4m3 with a scale for each row: how they lie on the device (fp8.cuh says why), and their products.
//
// Up to gemvRows tokens x stays bf16 (W8A16) and gemv and gemv_mma widen W in registers; up to gemmFP8Pays gemm_fp8_sm90 does. Beyond, x is rounded to
// e4m3 with a scale for each token (W8A8) and cuBLASLt multiplies; where it cannot, W becomes bf16 first.

// fp8Group is the number of columns whose bytes stand in an order of their own. Rows are whole groups, and cuBLASLt wants as many of them.
const fp8Group = 16

// fp8Takes tells whether the kernels take tensors that form one matrix as e4m3. Others are quantised at load if so asked; scales of blocks
// are left to bf16.
func fp8Takes(tensors []*weights.Tensor, quantize bool) bool {
	for _, t := range tensors {
		stored := t.DType == weights.F8E4M3 && t.Quant.GroupSize == t.RowLen()
		if !(stored || quantize && t.Quant == nil) || t.RowLen()%fp8Group != 0 || t.Rows()%fp8Group != 0 {
			return false
		}
	}
	return len(tensors) > 0
}

// fp8Arrays are the values and the rows' scales.
func (w *weight) fp8Arrays(cols int) []array {
	return []array{{to: &w.Data, rowBytes: cols, encode: encodeFP8, fill: fillFP8Op}, {to: &w.Scales, rowBytes: 4, encode: encodeFP8Scales, fill: fillFP8ScalesOp}}
}

func encodeFP8(dst []byte, t *weights.Tensor, first, rows int, scratch *[]float32) {
	n := t.RowLen()
	for r := range rows {
		row := dst[r*n : (r+1)*n]
		if t.DType == weights.F8E4M3 {
			copy(row, t.Data[(first+r)*n:])
		} else {
			weights.QuantizeF8E4M3(row, decodedRow(t, first+r, scratch))
		}
		orderFP8(row)
	}
}

// orderFP8 brings a row's bytes into the order of fp8.cuh.
func orderFP8(row []byte) {
	for ; len(row) > 0; row = row[fp8Group:] {
		plain := [fp8Group]byte(row)
		for j := range 4 {
			copy(row[4*j:], []byte{plain[2*j], plain[2*j+8], plain[2*j+1], plain[2*j+9]})
		}
	}
}

func encodeFP8Scales(dst []byte, t *weights.Tensor, first, rows int, scratch *[]float32) {
	for r := range rows {
		var scale float32
		switch {
		case t.DType != weights.F8E4M3:
			scale = weights.F8E4M3Scale(decodedRow(t, first+r, scratch))
		case len(t.Quant.Scales) == 1:
			scale = t.Quant.Scales[0]
		default:
			scale = t.Quant.Scales[first+r]
		}
		binary.LittleEndian.PutUint32(dst[4*r:], math.Float32bits(scale))
	}
}

// decodedRow decodes row i to scratch.
func decodedRow(t *weights.Tensor, i int, scratch *[]float32) []float32 {
	if n := t.RowLen(); cap(*scratch) < n {
		*scratch = make([]float32, n)
	}
	row := (*scratch)[:t.RowLen()]
	t.Row(i, row)
	return row
}

// fp8FillParams mirrors FP8FillParams of fp8_fill.cu.
type fp8FillParams struct {
	Dst                  ptr
	Count                uint64
	Row, Seed            uint32
	Step, Inverse        float32
	Constant, Interleave uint32
}

func fillFP8Op(d device, dst ptr, t *weights.Tensor, order int) op {
	return fp8FillOp(d, fp8FillParams{Dst: dst, Row: uint32(t.RowLen() / 4), Seed: t.Dummy.Seed, Step: t.Dummy.Scale * (1.0 / (1 << 23)),
		Inverse: 1 / t.Quant.Scales[0], Interleave: uint32(order)}, t)
}

func fillFP8ScalesOp(d device, dst ptr, t *weights.Tensor, order int) op {
	return fp8FillOp(d, fp8FillParams{Dst: dst, Row: 1, Constant: math.Float32bits(t.Quant.Scales[0]), Interleave: uint32(order)}, t)
}

func fp8FillOp(d device, p fp8FillParams, t *weights.Tensor) op {
	p.Count = uint64(t.Rows()) * uint64(p.Row)
	return op{Name: "fp8_fill", Unit: unit{File: "fp8_fill.cu", Symbol: "fp8_fill"}, Grid: [3]int{gridFor(d, p.Count, 256), 1, 1}, Block: 256, Params: paramBytes(&p), Bytes: 4 * int64(p.Count)}
}

// fp8Blocks is the most blocks of 16 rows that a CTA of gemv_mma takes at once. x of 16 tokens leaves registers for one.
func (l linear) fp8Blocks() int {
	if l.m > 8 {
		return 1
	}
	return 2
}

// What fp8_quantize makes rows of.
const (
	quantizePlain = iota
	quantizeNorm
	quantizeSwiGLU
)

// fp8QuantizeParams mirrors Params of fp8_quantize.cu.
type fp8QuantizeParams struct{ X, Gamma, Y, Scale ptr }

// fp8QuantizeOp: qx, qscale = e4m3 of m rows of k values made of x.
func fp8QuantizeOp(b *buffers, source int, x, gamma ptr, m, k int) op {
	p := fp8QuantizeParams{X: x, Gamma: gamma, Y: b.QX, Scale: b.QScale}
	return op{Name: "fp8_quantize", Unit: unit{"fp8_quantize.cu", "fp8_quantize", fmt.Sprintf("K=%d SOURCE=%d", k, source)}, Grid: [3]int{m, 1, 1}, Block: 256, PDL: true,
		Params: paramBytes(&p), Bytes: 3 * int64(m) * int64(k)}
}

// fp8DequantParams mirrors Params of fp8_dequant.cu.
type fp8DequantParams struct{ W, Scale, Out ptr }

// fp8DequantOp makes a bf16 copy of w, [n, k], in out.
func fp8DequantOp(d device, w weight, n, k int, out ptr) op {
	p := fp8DequantParams{W: w.Data, Scale: w.Scales, Out: out}
	return op{Name: "fp8_dequant", Unit: unit{"fp8_dequant.cu", "fp8_dequant", fmt.Sprintf("K=%d N=%d", k, n)}, Grid: [3]int{gridFor(d, uint64(n)*uint64(k)/fp8Group, 256), 1, 1},
		Block: 256, PDL: true, Params: paramBytes(&p), Bytes: 3 * int64(n) * int64(k)}
}

// fastSumsColumns is the longest row of W whose products the library may sum in the matrix units, which keep 14 bits of a sum. Over 4,096 columns of
// normal values that errs by 0.8 of what rounding the result to bf16 does, over 14,336 by 1.7 times as much (rms); fp32 sums of all products would
// take a tenth more of a prompt's time (H200).
const fastSumsColumns = 8192

// productFP8 chooses by the number of tokens.
func (p *planner) productFP8(g product) []node {
	d, s, b := p.device, p.shape, p.buffers
	if g.m <= gemvRows && !s.Deterministic {
		g.name, g.fp8 = "gemv_fp8_"+g.name, true
		return nodesOf(g.op(d, linearParams{W: g.w.Data, X: g.x, Gamma: g.gamma, Bias: g.bias, Y: g.y, RowScale: g.w.Scales}))
	}
	if own := p.ownFP8(g.m); own || !s.BlasFP8 {
		var nodes []node
		if g.norm {
			nodes, g.x = nodesOf(rmsnormOp(d, s, b, g.gamma, g.m)), b.XN
		}
		if own {
			g.name = "gemm_fp8_" + g.name
			return append(nodes, node{fp8: &fp8Call{linear: g.linear, tile: g.fp8Tile(d), w: g.w, x: g.x, gamma: g.gamma, params: gemmFP8Params{Bias: g.bias, Y: g.y}}})
		}
		nodes = append(nodes, nodesOf(fp8DequantOp(d, g.w, g.n, g.k, b.Dequantised))...)
		g.w = weight{Data: b.Dequantised}
		return append(nodes, p.productBLAS(g)...)
	}
	source := quantizePlain
	switch {
	case g.norm:
		source = quantizeNorm
	case g.swiglu:
		source = quantizeSwiGLU
	}
	call := driver.GEMM{Name: "gemm_fp8_" + g.name, M: g.m, N: g.n, K: g.k, W: g.w.Data, X: b.QX, Y: g.y, Bias: g.bias, Accumulate: g.end == epilogueResidual, FP8: true, WScale: g.w.Scales, XScale: b.QScale, FastSums: g.k <= fastSumsColumns}
	nodes := nodesOf(fp8QuantizeOp(b, source, g.x, g.gamma, g.m, g.k))
	if g.end != epilogueSwiGLU {
		return append(nodes, p.blas(call)...)
	}
	call.Y = b.GU
	return append(append(nodes, p.blas(call)...), nodesOf(siluMulOp(d, s, b, g.m))...)
}

// quantizesSwiGLU tells whether down's rows are made of what gate_up leaves, without act between.
func (p *planner) quantizesSwiGLU(gateUp, down product) bool {
	return gateUp.w.Format == formatFP8 && down.w.Format == formatFP8 && p.shape.BlasFP8 && !p.ownFP8(gateUp.m) && (gateUp.m > gemvRows || p.shape.Deterministic)
}

// ownFP8 tells whether gemm_fp8_sm90 takes products of m tokens. It does not where the sums' order may not depend on m.
func (p *planner) ownFP8(m int) bool {
	return m > gemvRows && m <= gemmFP8Pays && p.device.SM == 90 && !p.blasOnly && !p.shape.Deterministic
}

// roomForFP8 decides how products of more tokens than gemv_mma's go with the layers' fp8 weights, and the room they need.
func (s *shape) roomForFP8(d device, layers []layerWeights) error {
	most, cols := 0, 0
	s.eachMatrix(layers, func(w weight, l linear) {
		if w.Format == formatFP8 {
			most, cols = max(most, l.n*l.k), max(cols, l.k)
		}
	})
	if most > 0 && d.SM == 90 {
		version, err := driver.BlasLtVersion()
		if err != nil {
			return err
		}
		s.BlasFP8 = version >= driver.MinBlasLtFP8
	}
	if s.BlasFP8 {
		s.QuantizedCols = cols
	} else {
		s.Dequantised = max(s.Dequantised, most)
	}
	return nil
}
