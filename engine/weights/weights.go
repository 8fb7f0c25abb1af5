// Package weights gives a model's tensors under their Hugging Face names, whatever they come from: safetensors shards, plain or
// quantised (fp8, AWQ, GPTQ, packed int4), a GGUF file, or nothing but a seed (dummy weights). Files are memory-mapped; a
// tensor's bytes are read when a backend touches them.
package weights

import (
	"math"
	"strings"
)

// DType is an element type as stored. Block types hold several elements in one block with shared scales (GGUF).
type DType uint8

const (
	F32 DType = iota
	F16
	BF16
	Q8_0 // blocks of 32
	Q4_0
	Q4_1
	Q4_K // blocks of 256
	Q5_K
	Q6_K
	F8E4M3
	I32
	I64
	I4 // unsigned, two in a byte, the first in the low half; Tensor.Quant gives them their meaning
)

// Tensor is one weight. A matrix is [out, in], row-major, and blocks never cross a row.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	// Data holds the elements as stored, little-endian, usually in mapped memory: read only, valid until the store is closed,
	// aligned to nothing. It is nil for a dummy tensor.
	Data []byte
	// Dummy says how to make the values where there are no bytes; nil for a tensor read from a file.
	Dummy *Dummy
	// Quant holds the scales of F8E4M3 and I4 tensors; nil for others. GGUF blocks carry theirs.
	Quant *Quant
	// CacheScale is what the checkpoint divides the outputs of a k_proj or v_proj by before they are rounded to F8E4M3 for the KV cache;
	// 0 where it stores none.
	CacheScale float32
}

// Quant gives a quantised matrix [out, in] its meaning, the same for every kind of checkpoint. With q for a stored element,
// the value of an F8E4M3 matrix is q*scale and that of an I4 matrix (q-zero)*scale, the difference in whole numbers and the
// product in float32.
type Quant struct {
	// Scales is [1] (of the whole matrix), [out] (of each row), or [out, in/GroupSize] (of each group of neighbours in a row;
	// rows of a block repeat its scale).
	Scales    []float32
	Zeros     []uint8 // as Scales, 0..16; nil for F8E4M3, and for I4 where all are 8
	GroupSize int     // elements of a group, a multiple of 8; in where a row has one scale or the matrix has
	// InputScale is what the checkpoint divides the layer's input by before it rounds it to F8E4M3; 0 where it stores none.
	InputScale float32
}

// RowLen is the number of elements of a row; a vector is one row.
func (t *Tensor) RowLen() int { return t.Shape[len(t.Shape)-1] }

// Rows is the number of rows; 1 for a vector.
func (t *Tensor) Rows() int {
	n := 1
	for _, d := range t.Shape[:len(t.Shape)-1] {
		n *= d
	}
	return n
}

// RowBytes is the size of a row as stored.
func (t *Tensor) RowBytes() int { return t.DType.bytes(t.RowLen()) }

// Bytes is the size of the tensor as stored; for a dummy, as bfloat16.
func (t *Tensor) Bytes() int64 { return int64(t.Rows()) * int64(t.RowBytes()) }

// Dummy makes a tensor's values from its name. Element i is
//
//	bfloat16(Scale * float32(int32(h(i)>>8 & Mask) - 1<<23) / 1<<23)
//
// with h as in [Dummy.At]: a 32-bit hash of the seed and the index, so that a GPU makes the same values in place. A constant
// tensor (a norm) has Scale 0 and the value Constant.
type Dummy struct {
	Seed     uint32  // from the tensor's name
	Scale    float32 // sqrt(3/fan_in): uniform in [-Scale, Scale) has a standard deviation of 1/sqrt(fan_in)
	Constant float32
	Bits     int // 4: values are those of four bits, with 8 for 0, as the dummy of a checkpoint that is quantised so; 8: of E4M3; 0: whole
}

// Mask is what stays of the 24 bits that a value is made of.
func (d *Dummy) Mask() uint32 {
	if d.Bits == 4 {
		return 0xF00000
	}
	return 0xFFFFFF
}

// At returns element i before rounding to bfloat16.
func (d *Dummy) At(i uint64) float32 {
	if d.Scale == 0 {
		return d.Constant
	}
	h := uint32(i)*0x9E3779B1 ^ uint32(i>>32)*0x85EBCA77 ^ d.Seed
	h ^= h >> 16
	h *= 0x85EBCA6B
	h ^= h >> 13
	h *= 0xC2B2AE35
	h ^= h >> 16
	v := float32(int32(h>>8&d.Mask())-1<<23) * (d.Scale * (1.0 / (1 << 23)))
	if d.Bits == 8 {
		return d.roundF8E4M3(v)
	}
	return v
}

// newDummy seeds a tensor by its name, FNV-1a in 32 bits, so that no two are alike.
func newDummy(name string, shape []int) *Tensor {
	t := &Tensor{Name: name, DType: BF16, Shape: shape, Dummy: &Dummy{Seed: 2166136261}}
	for i := range len(name) {
		t.Dummy.Seed = (t.Dummy.Seed ^ uint32(name[i])) * 16777619
	}
	switch {
	case strings.HasSuffix(name, ".bias"):
		// Large enough to show in the logits if a backend forgets it, small beside queries and keys of variance 1.
		t.Dummy.Scale = 0.1
	case len(shape) == 1: // a norm
		t.Dummy.Constant = 1
	default:
		// An embedding too: its rows are the head's where it is tied, and its input is normalised.
		t.Dummy.Scale = float32(math.Sqrt(3 / float64(t.RowLen())))
	}
	return t
}

// newInt4Dummy is newDummy of a matrix of four bits in groups. Its scale has five significant bits, so that bfloat16 holds the values.
func newInt4Dummy(name string, shape []int, group int) *Tensor {
	t := newDummy(name, shape)
	t.DType, t.Quant, t.Dummy.Bits = I4, &Quant{GroupSize: group}, 4
	t.Dummy.Scale = math.Float32frombits((math.Float32bits(t.Dummy.Scale) + 1<<18) &^ (1<<19 - 1))
	return t
}

// BF16FromFloat32 rounds to the nearest bfloat16, ties to even; a NaN stays one.
func BF16FromFloat32(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7FFFFFFF > 0x7F800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7FFF + b>>16&1) >> 16)
}
