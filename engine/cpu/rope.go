package cpu

import "math"

// CosSin fills cos and sin, [headDim/2] each, for one position. The angle is the float32 product of the position and the
// frequency rounded to float32, as in transformers; invFreq is model.Config.InvFreq, scaling included. factor
// (model.RoPE.AttentionFactor, 1 but for yarn) multiplies both.
func CosSin(cos, sin []float32, invFreq []float64, position int, factor float64) {
	for i, f := range invFreq {
		s, c := math.Sincos(float64(float32(position) * float32(f)))
		cos[i], sin[i] = float32(c*factor), float32(s*factor)
	}
}

// Rotate applies the rotary embedding to one head, [headDim], in place: element i turns with element i+headDim/2.
func Rotate(head, cos, sin []float32) {
	half := len(cos)
	lo, hi := head[:half:half], head[half:2*half]
	sin = sin[:half]
	for i, c := range cos {
		a, b, s := lo[i], hi[i], sin[i]
		lo[i] = a*c - b*s
		hi[i] = b*c + a*s
	}
}
