//go:build cuda

package cuda

// rmsnormParams mirrors Params of rmsnorm.cu.
type rmsnormParams struct{ X, Gamma, Y, Rows ptr }

func (p rmsnormParams) op(s shape, n int) op {
	return op{Name: "rmsnorm", Unit: unit{File: "rmsnorm.cu", Symbol: "rmsnorm"}, Grid: [3]int{n, 1, 1}, Block: 256, PDL: true, Params: paramBytes(&p),
		Bytes: 2 * int64(n) * int64(s.Hidden) * bf16Bytes}
}

// rmsnormOp: xn = norm(x).
func rmsnormOp(_ device, s shape, b *buffers, gamma ptr, tokens int) op {
	return rmsnormParams{X: b.X, Gamma: gamma, Y: b.XN}.op(s, tokens)
}

// gatherNormOp: xs[i] = norm(x[sample_tok[i]]), the head's input.
func gatherNormOp(_ device, s shape, b *buffers, samples int) op {
	return rmsnormParams{X: b.X, Gamma: b.Norm, Y: b.XS, Rows: b.SampleTok}.op(s, samples)
}

// normRowsOp: xs[i] = norm(x[first+i]), the head's input for prompt log probabilities.
func normRowsOp(_ device, s shape, b *buffers, first, n int) op {
	return rmsnormParams{X: b.X + ptr(first*s.Hidden*bf16Bytes), Gamma: b.Norm, Y: b.XS}.op(s, n)
}
