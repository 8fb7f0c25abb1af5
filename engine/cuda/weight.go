//go:build cuda

package cuda

import (
	"unsafe"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

// format is how the elements of a weight lie on the device.
type format int

const (
	formatBF16 format = iota
	formatFP8         // fp8.go
	formatInt4        // w4.go
)

// String is the name that backend.Info uses.
func (f format) String() string { return [...]string{"bfloat16", "fp8_e4m3", "int4"}[f] }

// weight is a matrix [out, in] on the device, rows one behind the other.
type weight struct {
	Format       format
	Data, Scales ptr // Scales is 0 where the format has none
	Group        int // elements of a row that share a scale; 0: the row
}

// formatOf decides how tensors that form one matrix lie on the device, and the size of a group: all the same way, and as bf16 where they
// differ.
func formatOf(tensors []*weights.Tensor, s shape) (f format, group int) {
	if fp8Takes(tensors, s.QuantizeFP8) {
		return formatFP8, 0
	}
	if group, ok := int4Group(tensors); ok && s.KeepInt4 {
		return formatInt4, group
	}
	return formatBF16, 0
}

// eachMatrix calls f with each weight of the layers and the product it is for.
func (s shape) eachMatrix(layers []layerWeights, f func(w weight, l linear)) {
	for _, y := range layers {
		f(y.WQKV, s.qkv(1))
		f(y.WO, s.o(1))
		f(y.WGU, s.gateUp(1))
		f(y.WDown, s.down(1))
	}
}

// array is one of those that a weight is made of. Each row of a tensor gives it rowBytes bytes.
type array struct {
	to       *ptr
	rowBytes int
	// encode writes rows first..first+rows-1 of t, rowBytes each. scratch is for decoded rows, kept from call to call.
	encode func(dst []byte, t *weights.Tensor, first, rows int, scratch *[]float32)
	// fill makes a dummy tensor's rows in place. order says where they lie: see [part].
	fill func(d device, dst ptr, t *weights.Tensor, order int) op
}

// arrays lists what a weight of so many columns is made of. A new format adds a case here, in [formatOf] and in [planner.product].
func (w *weight) arrays(cols int) []array {
	switch w.Format {
	case formatFP8:
		return w.fp8Arrays(cols)
	case formatInt4:
		return w.int4Arrays(cols)
	default:
		return []array{bf16Array(&w.Data, cols)}
	}
}

func bf16Array(to *ptr, cols int) array { return array{to, cols * bf16Bytes, encodeBF16, fillOp} }

func encodeBF16(dst []byte, t *weights.Tensor, first, rows int, scratch *[]float32) {
	if t.DType == weights.BF16 {
		size := t.RowBytes()
		copy(dst, t.Data[first*size:(first+rows)*size])
		return
	}
	n := t.RowLen()
	if cap(*scratch) < n {
		*scratch = make([]float32, n)
	}
	row := (*scratch)[:n]
	out := unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(dst))), len(dst)/bf16Bytes)
	for r := range rows {
		t.Row(first+r, row)
		for i, v := range row {
			out[r*n+i] = weights.BF16FromFloat32(v)
		}
	}
}
