package cpu

import "math"

// RMSNorm writes x / sqrt(mean(x²) + eps) * weight to dst, one row: x, weight and dst are [hidden]; dst may be x. The squares
// are summed in float64.
func RMSNorm(dst, x, weight []float32, eps float64) {
	var s0, s1, s2, s3 float64
	i := 0
	for ; i+4 <= len(x); i += 4 {
		s0 += float64(x[i]) * float64(x[i])
		s1 += float64(x[i+1]) * float64(x[i+1])
		s2 += float64(x[i+2]) * float64(x[i+2])
		s3 += float64(x[i+3]) * float64(x[i+3])
	}
	for ; i < len(x); i++ {
		s0 += float64(x[i]) * float64(x[i])
	}
	scale := float32(1 / math.Sqrt((s0+s1+s2+s3)/float64(len(x))+eps))
	weight, dst = weight[:len(x)], dst[:len(x)]
	for i, v := range x {
		dst[i] = v * scale * weight[i]
	}
}

// SwiGLU writes silu(gate) * up to dst, elementwise; silu(g) = g / (1 + exp(-g)). dst may be gate or up.
func SwiGLU(dst, gate, up []float32) {
	gate, up = gate[:len(dst)], up[:len(dst)]
	for i, g := range gate {
		dst[i] = g / (1 + exp32(-g)) * up[i]
	}
}

// exp32 is e to the x in float32 arithmetic, within 2 ulp; it is 0 below -87.3 (no subnormal results) and +Inf above 88.7.
//
// x = n ln2 + r with |r| <= ln2/2, and exp(r) by the polynomial of Cephes' expf.
func exp32(x float32) float32 {
	if x != x {
		return x
	}
	if x > 88.72 {
		return float32(math.Inf(1))
	}
	if x < -87.33 {
		return 0
	}
	const magic = 1.5 * (1 << 23) // adding it rounds to an integer
	n := x*math.Log2E + magic
	n -= magic
	r := x - n*0.693359375
	r -= n * -2.12194440e-4
	p := float32(1.9875691500e-4)
	p = p*r + 1.3981999507e-3
	p = p*r + 8.3334519073e-3
	p = p*r + 4.1665795894e-2
	p = p*r + 1.6666665459e-1
	p = p*r + 5.0000001201e-1
	p = p*r*r + r + 1
	// 2^n in two factors, as n may be 128.
	half := int32(n) >> 1
	return p * math.Float32frombits(uint32(half+127)<<23) * math.Float32frombits(uint32(int32(n)-half+127)<<23)
}

// MatMul computes y = x wᵀ: x [m, k], w [n, k], y [m, n], all row-major, in float32 with the package's summing order.
func MatMul(y, x, w []float32, m, n, k int) {
	for i := range m {
		for j := range n {
			y[i*n+j] = dot(x[i*k:(i+1)*k], w[j*k:(j+1)*k])
		}
	}
}

// MatMulBF16 is MatMul with bfloat16 inputs: x [m, k], w [n, k] as bits, accumulated in float32, y [m, n].
func MatMulBF16(y []float32, x, w []uint16, m, n, k int) {
	wide := func(bits []uint16) []float32 {
		out := make([]float32, len(bits))
		for i, b := range bits {
			out[i] = math.Float32frombits(uint32(b) << 16)
		}
		return out
	}
	MatMul(y, wide(x), wide(w), m, n, k)
}

// Attend computes causal grouped-query attention for n consecutive tokens of one sequence, the last n of its ctx tokens:
// q and out are [n, heads, headDim], k and v [ctx, kvHeads, headDim]. Query head h reads KV head h/(heads/kvHeads). A token
// sees itself and the tokens before it, at most window of them in all; window 0 is no limit. Scores are scaled by
// 1/sqrt(headDim). Source of the grouping: arXiv:2305.13245.
func Attend(out, q, k, v []float32, n, ctx, heads, kvHeads, headDim, window int) {
	group := heads / kvHeads
	scale := float32(1 / math.Sqrt(float64(headDim)))
	scores := make([]float32, ctx)
	for t := range n {
		end := ctx - n + t + 1
		begin := windowStart(end, window)
		for h := range heads {
			at := func(x []float32, position int) []float32 {
				return x[(position*kvHeads+h/group)*headDim:][:headDim]
			}
			query := q[(t*heads+h)*headDim:][:headDim]
			largest := float32(math.Inf(-1))
			for p := begin; p < end; p++ {
				scores[p] = dot(query, at(k, p)) * scale
				largest = max(largest, scores[p])
			}
			o := out[(t*heads+h)*headDim:][:headDim]
			clear(o)
			var sum float32
			for p := begin; p < end; p++ {
				e := exp32(scores[p] - largest)
				sum += e
				for i, x := range at(v, p) {
					o[i] += e * x
				}
			}
			for i := range o {
				o[i] /= sum
			}
		}
	}
}

// windowStart is the first position that a token sees whose own position is end-1.
func windowStart(end, window int) int {
	if window == 0 {
		return 0
	}
	return max(0, end-window)
}
