//go:build cuda

package cuda

// advanceParams mirrors Params of advance.cu.
type advanceParams struct {
	Plan                                      [2]ptr
	Step                                      ptr
	TokAt, UpdateAt                           uint32
	TokID, TokPos, TokSlot                    ptr
	RowSlot, RowPos, RowLen, RowStart, RowCtx ptr
	RowFrom                                   ptr
	SampleTok, SampleSlot, SamplePos, MaskRow ptr
	SlotToken, PageTable                      ptr
	Tokens, Rows                              int32
}

const (
	advanceThreads = 512
	advanceChunk   = 2048 // tokens of a CTA
)

// advanceOp: the plan to the device, for a step padded to rows and tokens.
func advanceOp(_ device, s shape, b *buffers, rows, tokens int) op {
	l := newPlanLayout(s)
	p := advanceParams{Plan: b.Plan, Step: b.Step,
		TokAt: uint32(l.tok), UpdateAt: uint32(l.update),
		TokID: b.TokID, TokPos: b.TokPos, TokSlot: b.TokSlot,
		RowSlot: b.RowSlot, RowPos: b.RowPos, RowLen: b.RowLen, RowStart: b.RowStart, RowCtx: b.RowCtx, RowFrom: b.RowFrom,
		SampleTok: b.SampleTok, SampleSlot: b.SampleSlot, SamplePos: b.SamplePos, MaskRow: b.MaskRow,
		SlotToken: b.SlotToken, PageTable: b.PageTable, Tokens: int32(tokens), Rows: int32(bucketFor(rows))}
	return op{Name: "advance", Unit: unit{File: "advance.cu", Symbol: "advance"}, Grid: [3]int{ceilDiv(tokens, advanceChunk), 1, 1},
		Block: advanceThreads, Params: paramBytes(&p)}
}
