package cpu

import "github.com/tokamak-engine/tokamak/engine/weights"

// lanes is the number of partial sums of a dot product, and so the multiple that row lengths are padded to.
const lanes = 16

// kernels is one level of vector instructions. Every function of a level computes an element in an order of its own choice,
// but the same one whatever m, n and the element's place.
type kernels struct {
	name string

	// tile computes y[i*ldy+j] = dot(x[i*ldx:][:k], w[j*ldw:][:k]) for i < m, j < n. k is a multiple of lanes; w is readable up
	// to row n rounded up to a multiple of 4.
	tile func(y, x, w []float32, ldy, ldx, ldw, m, n, k int)

	// vecmat computes y[j] = dot(x, row j of w) for the len(y) rows stored in w from its beginning, bit for bit as decode and
	// tile do. A nil entry has none.
	vecmat [numDTypes]func(y, x []float32, w []byte, rowBytes int)

	// decode writes one stored row as float32. A nil entry leaves it to weights.Tensor.Row.
	decode [numDTypes]func(dst []float32, row []byte)

	// accumulate adds the rows of v, [n, dim], weighted by p: out[i*dim:][:dim] += sum over j < n, ascending, of
	// p[i*ldp+j] * v[j*dim:][:dim], for i < m. dim is a multiple of lanes.
	accumulate func(out, p, v []float32, ldp, m, n, dim int)

	// softmax replaces x by exp((x - largest)*scale) and returns the largest x and the sum of what it wrote.
	softmax func(x []float32, scale float32) (largest, sum float32)

	// swiglu is SwiGLU.
	swiglu func(dst, gate, up []float32)
}

const numDTypes = int(weights.I4) + 1

// portable is the level that needs no assembly.
var portable = kernels{
	name:       "portable",
	tile:       tilePortable,
	accumulate: accumulatePortable,
	softmax:    softmaxPortable,
	swiglu:     SwiGLU,
}

// dot is the package's dot product without fused multiply-adds: 16 lane sums, added as the vector kernels add them. Eight lanes
// a pass is what fits in registers.
func dot(a, b []float32) float32 {
	n := len(a) / lanes * lanes
	var s [lanes]float32
	dotLanes((*[8]float32)(s[:8]), a[:n], b[:n])
	if n > 0 {
		dotLanes((*[8]float32)(s[8:]), a[8:n], b[8:n])
	}
	for l := range len(a) - n {
		s[l] += a[n+l] * b[n+l]
	}
	for l := range 8 {
		s[l] += s[l+8]
	}
	return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]))
}

// dotLanes sums the products of the first eight of every sixteen elements.
func dotLanes(sums *[8]float32, a, b []float32) {
	var s0, s1, s2, s3, s4, s5, s6, s7 float32
	for len(a) >= 8 && len(b) >= 8 {
		x, y := (*[8]float32)(a), (*[8]float32)(b)
		s0 += x[0] * y[0]
		s1 += x[1] * y[1]
		s2 += x[2] * y[2]
		s3 += x[3] * y[3]
		s4 += x[4] * y[4]
		s5 += x[5] * y[5]
		s6 += x[6] * y[6]
		s7 += x[7] * y[7]
		if len(a) < lanes || len(b) < lanes {
			break
		}
		a, b = a[lanes:], b[lanes:]
	}
	*sums = [8]float32{s0, s1, s2, s3, s4, s5, s6, s7}
}

func tilePortable(y, x, w []float32, ldy, ldx, ldw, m, n, k int) {
	for j := range n {
		row := w[j*ldw:][:k]
		for i := range m {
			y[i*ldy+j] = dot(x[i*ldx:][:k], row)
		}
	}
}

func accumulatePortable(out, p, v []float32, ldp, m, n, dim int) {
	for i := range m {
		o := out[i*dim:][:dim]
		for j := range n {
			weight, row := p[i*ldp+j], v[j*dim:][:dim]
			for d := range o {
				o[d] += weight * row[d]
			}
		}
	}
}

func softmaxPortable(x []float32, scale float32) (largest, sum float32) {
	largest = negativeInf
	for _, v := range x {
		largest = max(largest, v)
	}
	for i, v := range x {
		x[i] = exp32((v - largest) * scale)
		sum += x[i]
	}
	return largest, sum
}

// fastest is the best of the kernels that this processor can run.
func fastest() *kernels { return levels[0] }
