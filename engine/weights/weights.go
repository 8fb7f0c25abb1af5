// Package weights gives a model's tensors under their Hugging Face names, whatever they come from: safetensors shards, a
// GGUF file, or nothing but a seed (dummy weights). Files are memory-mapped; a tensor's bytes are read when a backend
// touches them.
package weights

import "math"

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
)

// Tensor is one weight. A matrix is [out, in], row-major, and blocks never cross a row.
type Tensor struct {
	Name  string
	DType DType
	Shape []int
	// Data holds the elements as stored, little-endian, usually in mapped memory: read only, valid until the store is closed.
	// It is nil for a dummy tensor.
	Data []byte
	// Dummy says how to make the values where there are no bytes; nil for a tensor read from a file.
	Dummy *Dummy
}

// Dummy makes a tensor's values from its name. Element i is
//
//	bfloat16(Scale * float32(int32(h(i)>>8) - 1<<23) / 1<<23)
//
// with h as in [Dummy.At]: a 32-bit hash of the seed and the index, so that a GPU makes the same values in place. A constant
// tensor (a norm) has Scale 0 and the value Constant.
type Dummy struct {
	Seed     uint32  // from the tensor's name
	Scale    float32 // sqrt(3/fan_in): uniform in [-Scale, Scale) has a standard deviation of 1/sqrt(fan_in)
	Constant float32
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
	return float32(int32(h>>8)-1<<23) * (d.Scale * (1.0 / (1 << 23)))
}

// BF16FromFloat32 rounds to the nearest bfloat16, ties to even; a NaN stays one.
func BF16FromFloat32(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7FFFFFFF > 0x7F800000 {
		return uint16(b>>16) | 0x40
	}
	return uint16((b + 0x7FFF + b>>16&1) >> 16)
}
