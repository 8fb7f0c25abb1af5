package weights

import (
	"encoding/binary"
	"math"
)

// Row decodes row i into dst, [RowLen()]; a vector is row 0. The values are those of llama.cpp's and gguf-py's dequantize,
// bit for bit; a dummy tensor's are rounded to bfloat16. It may be called by many goroutines.
func (t *Tensor) Row(i int, dst []float32) {
	n := t.RowLen()
	dst = dst[:n]
	if t.Dummy != nil {
		base := uint64(i) * uint64(n)
		for j := range dst {
			dst[j] = BF16ToFloat32(BF16FromFloat32(t.Dummy.At(base + uint64(j))))
		}
		return
	}
	size := t.RowBytes()
	row := t.Data[i*size : (i+1)*size]
	if t.DType == I4 {
		t.Quant.decodeI4(i, dst, row)
		return
	}
	layouts[t.DType].decodeBlocks(dst, row)
	if t.Quant != nil {
		t.Quant.scaleRow(i, dst)
	}
}

// scaleRow multiplies row i by its scales.
func (q *Quant) scaleRow(i int, dst []float32) {
	groups := len(dst) / q.GroupSize
	for g := range groups {
		at := i*groups + g
		if len(q.Scales) == 1 {
			at = 0
		}
		scale, group := q.Scales[at], dst[g*q.GroupSize:(g+1)*q.GroupSize]
		for j := range group {
			group[j] *= scale
		}
	}
}

// Float32 returns the tensor decoded, in memory of its own; the tensor itself if it is stored so. It is how a backend without
// kernels for a form runs it all the same.
func (t *Tensor) Float32() *Tensor {
	if t.DType == F32 && t.Dummy == nil {
		return t
	}
	out := &Tensor{Name: t.Name, DType: F32, Shape: t.Shape, Data: make([]byte, 0, 4*t.Rows()*t.RowLen())}
	row := make([]float32, t.RowLen())
	for i := range t.Rows() {
		t.Row(i, row)
		for _, v := range row {
			out.Data = binary.LittleEndian.AppendUint32(out.Data, math.Float32bits(v))
		}
	}
	return out
}

// decodeI4 decodes row i, group by group.
func (q *Quant) decodeI4(i int, dst []float32, row []byte) {
	groups := len(dst) / q.GroupSize
	for g := range groups {
		scale, zero := q.Scales[i*groups+g], 8
		if q.Zeros != nil {
			zero = int(q.Zeros[i*groups+g])
		}
		out := dst[g*q.GroupSize : (g+1)*q.GroupSize]
		for j := range out {
			nibble := row[(g*q.GroupSize+j)/2] >> (4 * uint(j&1)) & 15
			out[j] = float32(int(nibble)-zero) * scale
		}
	}
}

// F16ToFloat32 is exact. A subnormal goes the same way as all: the float32 with the same exponent field is 2^-112 of it.
func F16ToFloat32(h uint16) float32 {
	bits := uint32(h&0x7FFF) << 13
	if h&0x7C00 == 0x7C00 { // infinity, NaN
		return math.Float32frombits(uint32(h&0x8000)<<16 | 0x7F800000 | bits)
	}
	return math.Float32frombits(uint32(h&0x8000)<<16 | math.Float32bits(math.Float32frombits(bits)*0x1p112))
}

// BF16ToFloat32 is exact.
func BF16ToFloat32(h uint16) float32 { return math.Float32frombits(uint32(h) << 16) }

// F8E4M3ToFloat32 is exact. The format has no infinity; 0x7F and 0xFF are NaN.
func F8E4M3ToFloat32(b byte) float32 {
	if b&0x7F == 0x7F {
		return float32(math.NaN())
	}
	// Four exponent bits with bias 7 in the place of float32's eight with bias 127: 2^-120 of the value, subnormals too.
	value := math.Float32frombits(uint32(b&0x7F)<<20) * 0x1p120
	return math.Float32frombits(uint32(b&0x80)<<24 | math.Float32bits(value))
}

func decodeF32(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = math.Float32frombits(binary.LittleEndian.Uint32(src[4*i:]))
	}
}

func decodeF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = F16ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func decodeBF16(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = BF16ToFloat32(binary.LittleEndian.Uint16(src[2*i:]))
	}
}

func decodeF8E4M3(dst []float32, src []byte) {
	for i := range dst {
		dst[i] = F8E4M3ToFloat32(src[i])
	}
}

// The block formats are ggml's. Products are converted to float32 before a sum, so that no machine fuses the two and differs.

func half(b []byte) float32 { return F16ToFloat32(binary.LittleEndian.Uint16(b)) }

// decodeQ8_0: scale d, 32 signed bytes.
func decodeQ8_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[34:] {
		d := half(src)
		for i, q := range src[2:34] {
			dst[i] = float32(int8(q)) * d
		}
	}
}

// decodeQ4_0: scale d, 16 bytes of two nibbles around 8; low nibbles are the first 16 elements.
func decodeQ4_0(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[18:] {
		d := half(src)
		for i, q := range src[2:18] {
			dst[i] = d * float32(int(q&15)-8)
			dst[i+16] = d * float32(int(q>>4)-8)
		}
	}
}

// decodeQ4_1: scale d, minimum m, nibbles as in Q4_0 but from 0.
func decodeQ4_1(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[32:], src[20:] {
		d, m := half(src), half(src[2:])
		for i, q := range src[4:20] {
			dst[i] = float32(d*float32(q&15)) + m
			dst[i+16] = float32(d*float32(q>>4)) + m
		}
	}
}

// scaleMin unpacks the 6-bit scale and minimum of sub-block j (0..7) from the 12 bytes that Q4_K and Q5_K share.
func scaleMin(packed []byte, j int) (scale, minimum byte) {
	if j < 4 {
		return packed[j] & 63, packed[j+4] & 63
	}
	return packed[j+4]&15 | packed[j-4]>>6<<4, packed[j+4]>>4 | packed[j]>>6<<4
}

// decodeQ4_K: d, dmin, eight sub-blocks of 32 with 6-bit scales and minima; 32 bytes hold two sub-blocks, low nibbles first.
func decodeQ4_K(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[144:] {
		d, dmin, packed, quants := half(src), half(src[2:]), src[4:16], src[16:144]
		for j := range 8 {
			sc, mn := scaleMin(packed, j)
			scale, minimum := d*float32(sc), dmin*float32(mn)
			shift := 4 * uint(j&1)
			out := dst[32*j : 32*j+32]
			for i, q := range quants[j/2*32 : j/2*32+32] {
				out[i] = float32(scale*float32(q>>shift&15)) - minimum
			}
		}
	}
}

// decodeQ5_K: as Q4_K, with a fifth bit in 32 bytes: bit j of byte i belongs to element i of sub-block j.
func decodeQ5_K(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[176:] {
		d, dmin, packed, high, quants := half(src), half(src[2:]), src[4:16], src[16:48], src[48:176]
		for j := range 8 {
			sc, mn := scaleMin(packed, j)
			scale, minimum := d*float32(sc), dmin*float32(mn)
			shift := 4 * uint(j&1)
			out := dst[32*j : 32*j+32]
			for i, q := range quants[j/2*32 : j/2*32+32] {
				out[i] = float32(scale*float32(q>>shift&15|high[i]>>uint(j)&1<<4)) - minimum
			}
		}
	}
}

// decodeQ6_K: 128 bytes of low nibbles, 64 of the upper two bits, 16 signed scales of 16 elements each, d at the end.
func decodeQ6_K(dst []float32, src []byte) {
	for ; len(dst) > 0; dst, src = dst[256:], src[210:] {
		d := half(src[208:])
		for h := range 2 { // halves of 128 elements
			low, high, scales, out := src[64*h:64*h+64], src[128+32*h:128+32*h+32], src[192+8*h:192+8*h+8], dst[128*h:128*h+128]
			for i := range 128 {
				quarter := i / 32 // 32 elements share a bit pair's place in high
				q := low[i%64] >> (4 * uint(i/64)) & 15
				q |= high[i%32] >> (2 * uint(quarter)) & 3 << 4
				out[i] = float32(d*float32(int8(scales[i/16]))) * float32(int(q)-32)
			}
		}
	}
}
