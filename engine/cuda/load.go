//go:build cuda

package cuda

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/weights"
)

// Where a tensor's rows lie in the matrix they become a part of.
const (
	rowsInOrder = iota
	rowsOfGate  // blocks of 8 rows, each followed by the 8 rows of up
	rowsOfUp
)

type fillParams struct {
	Dst            ptr
	Count          uint64
	Cols, Seed     uint32
	Step, Constant float32
	Interleave     uint32
	Mask           uint32
	FP8Scale       float32
	_              uint32
}

// fillOp makes a dummy tensor in place.
func fillOp(d device, dst ptr, t *weights.Tensor, order int) op {
	count := uint64(t.Rows()) * uint64(t.RowLen())
	p := fillParams{Dst: dst, Count: count, Cols: uint32(t.RowLen()), Seed: t.Dummy.Seed, Step: t.Dummy.Scale * (1.0 / (1 << 23)),
		Constant: t.Dummy.Constant, Interleave: uint32(order), Mask: t.Dummy.Mask()}
	if t.DType == weights.F8E4M3 {
		p.FP8Scale = t.Quant.Scales[0]
	}
	return op{Name: "fill", Unit: unit{File: "fill.cu", Symbol: "fill"}, Grid: [3]int{gridFor(d, count/2, 256), 1, 1}, Block: 256,
		Params: paramBytes(&p), Bytes: int64(count) * bf16Bytes}
}

type ropeTableParams struct {
	Out, InvFreq ptr
	Count        uint64
	Factor       float64
}

// ropeTableOp fills the table of cos and sin from invFreq, f32 [Dim/2] on the device.
func ropeTableOp(d device, s shape, out, invFreq ptr, factor float64) op {
	p := ropeTableParams{Out: out, InvFreq: invFreq, Count: uint64(s.MaxContext) * uint64(s.Dim/2), Factor: factor}
	return op{Name: "rope_table", Unit: unit{File: "rope_table.cu", Symbol: "rope_table"}, Grid: [3]int{gridFor(d, p.Count, 256), 1, 1}, Block: 256,
		Params: paramBytes(&p), Bytes: int64(p.Count) * 8}
}

type readProbeParams struct {
	Src   ptr
	Count uint64
	Sink  ptr
}

// readProbes are the ways of reading that are tried; the best one is the card's bandwidth.
var readProbes = []struct{ threads, ctas, unroll int }{{256, 4, 16}, {512, 2, 16}, {512, 4, 8}, {1024, 2, 8}}

// readProbeOp reads bytes from src in the given way. sink is 4 bytes that it may write.
func readProbeOp(d device, src, sink ptr, bytes int64, way int) op {
	w := readProbes[way]
	step := int64(16 * 32 * w.unroll)
	p := readProbeParams{Src: src, Count: uint64(bytes / step * step / 16), Sink: sink}
	return op{Name: "read_probe", Unit: unit{"read_probe.cu", "read_probe", fmt.Sprintf("UNROLL=%d", w.unroll)}, Grid: [3]int{d.SMs * w.ctas, 1, 1},
		Block: w.threads, Params: paramBytes(&p), Bytes: int64(p.Count) * 16}
}

// gridFor is enough CTAs for items, at most what fills the device a few times over.
func gridFor(d device, items uint64, threads int) int {
	return int(min(max(1, (items+uint64(threads)-1)/uint64(threads)), uint64(d.SMs)*16))
}
