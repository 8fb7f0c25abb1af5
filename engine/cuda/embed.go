//go:build cuda

package cuda

// embedParams mirrors Params of embed.cu.
type embedParams struct{ TokID, Embed, X ptr }

// embedOp: x = embed[tok_id].
func embedOp(_ device, s shape, b *buffers, tokens int) op {
	p := embedParams{TokID: b.TokID, Embed: b.Embed, X: b.X}
	return op{Name: "embed", Unit: unit{File: "embed.cu", Symbol: "embed"}, Grid: [3]int{tokens, 1, 1}, Block: 128, PDL: true, Params: paramBytes(&p),
		Bytes: 2 * int64(tokens) * int64(s.Hidden) * bf16Bytes}
}
