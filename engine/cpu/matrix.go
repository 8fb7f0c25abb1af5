package cpu

import (
	"encoding/binary"
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

// matrix is a weight [n, k] as stored, rows one after the other.
type matrix struct {
	n, k     int
	tensor   *weights.Tensor
	rowBytes int
}

// newMatrix takes a tensor that has its bytes.
func newMatrix(t *weights.Tensor) (*matrix, error) {
	if len(t.Shape) != 2 {
		return nil, fmt.Errorf("weight %s has shape %v, want a matrix", t.Name, t.Shape)
	}
	if _, ok := dtypeNames[t.DType]; !ok {
		return nil, fmt.Errorf("weight %s is stored as %v, which the CPU cannot compute with", t.Name, t.DType)
	}
	return &matrix{t.Shape[0], t.Shape[1], t, t.RowBytes()}, nil
}

// bytes is row i as stored.
func (w *matrix) bytes(i int) []byte { return w.tensor.Data[i*w.rowBytes : (i+1)*w.rowBytes] }

// fillDummy makes a dummy tensor's values as bfloat16.
func fillDummy(t *weights.Tensor, p *pool) *weights.Tensor {
	count := 1
	for _, d := range t.Shape {
		count *= d
	}
	data := make([]byte, 2*count)
	const piece = 1 << 16
	p.run((count+piece-1)/piece, func(_, task int) {
		for i := task * piece; i < min(count, (task+1)*piece); i++ {
			binary.LittleEndian.PutUint16(data[2*i:], weights.BF16FromFloat32(t.Dummy.At(uint64(i))))
		}
	})
	return &weights.Tensor{Name: t.Name, DType: weights.BF16, Shape: t.Shape, Data: data}
}

// decodeRow writes row i to dst, [k].
func (ks *kernels) decodeRow(dst []float32, w *matrix, i int) {
	if decode := ks.decode[w.tensor.DType]; decode != nil && w.k%decodeUnit == 0 {
		decode(dst, w.bytes(i))
		return
	}
	w.tensor.Row(i, dst)
}

// decodeUnit divides the row lengths that the decode and vecmat kernels take. Rows that it does not divide exist only in tiny
// models of F32, F16 and BF16.
const decodeUnit = 32
