//go:build amd64 && !purego

package cpu

import (
	"golang.org/x/sys/cpu"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

// levels are the kernels this processor can run, the fastest first.
var levels = func() []*kernels {
	var l []*kernels
	x := &cpu.X86
	if x.HasAVX512F && x.HasAVX512VL && x.HasAVX512BW && x.HasAVX512DQ {
		l = append(l, &avx512)
	}
	if x.HasAVX2 && x.HasFMA { // every processor with both has F16C
		l = append(l, &avx2)
	}
	return append(l, &portable)
}()

var avx512 = kernels{
	name:       "avx512",
	tile:       tileOf(4, tile4AVX512, tile1AVX512),
	accumulate: accumulateOf(accumulate4AVX512, accumulate1AVX512),
	softmax: func(x []float32, scale float32) (largest, sum float32) {
		return softmaxAVX512(&x[0], len(x), scale)
	},
	swiglu: swigluOf(swigluAVX512),
	vecmat: [numDTypes]func(y, x []float32, w []byte, rowBytes int){
		weights.F32:  vecmatOf(vecmatF32AVX512),
		weights.F16:  vecmatOf(vecmatF16AVX512),
		weights.BF16: vecmatOf(vecmatBF16AVX512),
		weights.Q8_0: vecmatOf(vecmatQ8_0AVX512),
		weights.Q4_0: vecmatOf(vecmatQ4_0AVX512),
		weights.Q4_1: vecmatOf(vecmatQ4_1AVX512),
	},
	decode: [numDTypes]func(dst []float32, row []byte){
		weights.F32:  decodeOf(decodeF32AVX512),
		weights.F16:  decodeOf(decodeF16AVX512),
		weights.BF16: decodeOf(decodeBF16AVX512),
		weights.Q8_0: decodeOf(decodeQ8_0AVX512),
		weights.Q4_0: decodeOf(decodeQ4_0AVX512),
		weights.Q4_1: decodeOf(decodeQ4_1AVX512),
		weights.Q4_K: decodeBlocksOf(decodeQ4_K),
		weights.Q5_K: decodeBlocksOf(decodeQ5_K),
		weights.Q6_K: decodeBlocksOf(decodeQ6_K),
	},
}

var avx2 = kernels{
	name:       "avx2",
	tile:       tileOf(2, tile2AVX2, tile1AVX2),
	accumulate: accumulateOf(accumulate4AVX2, accumulate1AVX2),
	softmax: func(x []float32, scale float32) (largest, sum float32) {
		return softmaxAVX2(&x[0], len(x), scale)
	},
	swiglu: swigluOf(swigluAVX2),
	vecmat: [numDTypes]func(y, x []float32, w []byte, rowBytes int){
		weights.F32:  vecmatOf(vecmatF32AVX2),
		weights.F16:  vecmatOf(vecmatF16AVX2),
		weights.BF16: vecmatOf(vecmatBF16AVX2),
		weights.Q8_0: vecmatOf(vecmatQ8_0AVX2),
		weights.Q4_0: vecmatOf(vecmatQ4_0AVX2),
		weights.Q4_1: vecmatOf(vecmatQ4_1AVX2),
	},
	decode: [numDTypes]func(dst []float32, row []byte){
		weights.F32:  decodeOf(decodeF32AVX2),
		weights.F16:  decodeOf(decodeF16AVX2),
		weights.BF16: decodeOf(decodeBF16AVX2),
		weights.Q8_0: decodeOf(decodeQ8_0AVX2),
		weights.Q4_0: decodeOf(decodeQ4_0AVX2),
		weights.Q4_1: decodeOf(decodeQ4_1AVX2),
		weights.Q4_K: decodeBlocksOf(decodeQ4_K),
		weights.Q5_K: decodeBlocksOf(decodeQ5_K),
		weights.Q6_K: decodeBlocksOf(decodeQ6_K),
	},
}

// Tables that the assembly reads, which staticcheck does not.
//
//lint:file-ignore U1000 read by assembly
var (
	nibbles        = [16]float32{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}
	nibblesAround8 = [16]float32{-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7}
	minusInf       = negativeInf

	// expConstants: bounds of the argument, log2(e), the number that rounds, -ln2 in two parts, the polynomial, 1.
	expConstants = [13]float32{
		-86, 88, 1.44269504088896341, 1.5 * (1 << 23), -0.693359375, 2.12194440e-4,
		1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1, 1,
	}
	expVectors = func() (v [len(expConstants) * 8]float32) { // each constant eight times
		for i := range v {
			v[i] = expConstants[i/8]
		}
		return v
	}()
	tailMasks = func() (m [32]uint32) {
		for i := range 16 {
			m[i] = ^uint32(0)
		}
		return m
	}()
)

// tileOf makes a tile kernel of two that take whole groups of four rows of w: one for several rows of x, one for one.
func tileOf(rows int, several func(y, x, w *float32, ldy, ldx, ldw, k, groups int), one func(y, x, w *float32, ldw, k, groups int)) func(y, x, w []float32, ldy, ldx, ldw, m, n, k int) {
	return func(y, x, w []float32, ldy, ldx, ldw, m, n, k int) {
		groups, rest := n/4, n%4
		i := 0
		for ; i+rows <= m && groups > 0; i += rows {
			several(&y[i*ldy], &x[i*ldx], &w[0], ldy, ldx, ldw, k, groups)
		}
		for ; i < m && groups > 0; i++ {
			one(&y[i*ldy], &x[i*ldx], &w[0], ldw, k, groups)
		}
		if rest > 0 {
			out := make([]float32, 4)
			for i := range m {
				one(&out[0], &x[i*ldx], &w[(n-rest)*ldw], ldw, k, 1)
				copy(y[i*ldy+n-rest:][:rest], out)
			}
		}
	}
}

// vecmatOf makes a vecmat kernel of one that takes four rows.
func vecmatOf(four func(y, x *float32, w0, w1, w2, w3 *byte, units int)) func(y, x []float32, w []byte, rowBytes int) {
	return func(y, x []float32, w []byte, rowBytes int) {
		units := len(x) / decodeUnit
		j := 0
		for ; j+4 <= len(y); j += 4 {
			rows := w[j*rowBytes : (j+4)*rowBytes]
			four(&y[j], &x[0], &rows[0], &rows[rowBytes], &rows[2*rowBytes], &rows[3*rowBytes], units)
		}
		if j == len(y) {
			return
		}
		last := (len(y) - 1) * rowBytes
		row := func(i int) *byte { return &w[min((j+i)*rowBytes, last)] }
		out := make([]float32, 4)
		four(&out[0], &x[0], row(0), row(1), row(2), row(3), units)
		copy(y[j:], out)
	}
}

func decodeOf(decode func(dst *float32, src *byte, units int)) func(dst []float32, row []byte) {
	return func(dst []float32, row []byte) { decode(&dst[0], &row[0], len(dst)/decodeUnit) }
}

// decodeBlocksOf is decodeOf for the formats with blocks of 256, whose kernels need AVX2 alone.
func decodeBlocksOf(decode func(dst *float32, src *byte, blocks int)) func(dst []float32, row []byte) {
	return func(dst []float32, row []byte) { decode(&dst[0], &row[0], len(dst)/256) }
}

func accumulateOf(four func(out, p, v *float32, ldp, n, dim int), one func(out, p, v *float32, n, dim int)) func(out, p, v []float32, ldp, m, n, dim int) {
	return func(out, p, v []float32, ldp, m, n, dim int) {
		if m == 4 {
			four(&out[0], &p[0], &v[0], ldp, n, dim)
			return
		}
		for i := range m {
			one(&out[i*dim], &p[i*ldp], &v[0], n, dim)
		}
	}
}

func swigluOf(kernel func(dst, gate, up *float32, n int)) func(dst, gate, up []float32) {
	return func(dst, gate, up []float32) {
		n := len(dst) / lanes * lanes
		if n > 0 {
			kernel(&dst[0], &gate[0], &up[0], n)
		}
		SwiGLU(dst[n:], gate[n:], up[n:])
	}
}

// pause tells the processor that a thread spins.
//
//go:noescape
func pause()

//go:noescape
func tile4AVX512(y, x, w *float32, ldy, ldx, ldw, k, groups int)

//go:noescape
func tile1AVX512(y, x, w *float32, ldw, k, groups int)

//go:noescape
func accumulate4AVX512(out, p, v *float32, ldp, n, dim int)

//go:noescape
func accumulate1AVX512(out, p, v *float32, n, dim int)

//go:noescape
func softmaxAVX512(x *float32, n int, scale float32) (largest, sum float32)

//go:noescape
func swigluAVX512(dst, gate, up *float32, n int)

//go:noescape
func decodeF32AVX512(dst *float32, src *byte, units int)

//go:noescape
func decodeF16AVX512(dst *float32, src *byte, units int)

//go:noescape
func decodeBF16AVX512(dst *float32, src *byte, units int)

//go:noescape
func decodeQ8_0AVX512(dst *float32, src *byte, units int)

//go:noescape
func decodeQ4_0AVX512(dst *float32, src *byte, units int)

//go:noescape
func decodeQ4_1AVX512(dst *float32, src *byte, units int)

//go:noescape
func vecmatF32AVX512(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatF16AVX512(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatBF16AVX512(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatQ8_0AVX512(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatQ4_0AVX512(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatQ4_1AVX512(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func tile2AVX2(y, x, w *float32, ldy, ldx, ldw, k, groups int)

//go:noescape
func tile1AVX2(y, x, w *float32, ldw, k, groups int)

//go:noescape
func accumulate4AVX2(out, p, v *float32, ldp, n, dim int)

//go:noescape
func accumulate1AVX2(out, p, v *float32, n, dim int)

//go:noescape
func softmaxAVX2(x *float32, n int, scale float32) (largest, sum float32)

//go:noescape
func swigluAVX2(dst, gate, up *float32, n int)

//go:noescape
func decodeF32AVX2(dst *float32, src *byte, units int)

//go:noescape
func decodeF16AVX2(dst *float32, src *byte, units int)

//go:noescape
func decodeBF16AVX2(dst *float32, src *byte, units int)

//go:noescape
func decodeQ8_0AVX2(dst *float32, src *byte, units int)

//go:noescape
func decodeQ4_0AVX2(dst *float32, src *byte, units int)

//go:noescape
func decodeQ4_1AVX2(dst *float32, src *byte, units int)

//go:noescape
func vecmatF32AVX2(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatF16AVX2(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatBF16AVX2(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatQ8_0AVX2(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatQ4_0AVX2(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func vecmatQ4_1AVX2(y, x *float32, w0, w1, w2, w3 *byte, units int)

//go:noescape
func decodeQ4_K(dst *float32, src *byte, blocks int)

//go:noescape
func decodeQ5_K(dst *float32, src *byte, blocks int)

//go:noescape
func decodeQ6_K(dst *float32, src *byte, blocks int)
