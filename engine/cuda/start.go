//go:build cuda

package cuda

import "fmt"

// startParams mirrors Params of start.cu.
type startParams struct {
	Starts                             [2]ptr
	Step                               ptr
	BiasAt, TokenAt                    uint32
	SlotParam, Bias, Counts, SlotToken ptr
}

// startOp: the slot state of n new sequences.
func startOp(_ device, s shape, b *buffers, n int) op {
	l := newStartLayout(s)
	p := startParams{Starts: b.Starts, Step: b.Step, BiasAt: uint32(l.bias), TokenAt: uint32(l.tokens), SlotParam: b.SlotParam, Bias: b.Bias,
		Counts: b.Counts, SlotToken: b.SlotToken}
	return op{Name: "start", Unit: unit{"start.cu", "start", fmt.Sprintf("MAX_BIAS=%d", maxBias)}, Grid: [3]int{n, 1, 1}, Block: 256, Params: paramBytes(&p)}
}
