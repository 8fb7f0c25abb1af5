//go:build cuda

package cuda

// siluMulParams mirrors Params of silu_mul.cu.
type siluMulParams struct{ GU, Act ptr }

// siluMulOp: act = silu(gate) * up.
func siluMulOp(_ device, s shape, b *buffers, tokens int) op {
	p := siluMulParams{GU: b.GU, Act: b.Act}
	return op{Name: "silu_mul", Unit: unit{File: "silu_mul.cu", Symbol: "silu_mul"}, Grid: [3]int{ceilDiv(s.Inter/8, 256), tokens, 1}, Block: 256, PDL: true,
		Params: paramBytes(&p), Bytes: 3 * int64(tokens) * int64(s.Inter) * bf16Bytes}
}
