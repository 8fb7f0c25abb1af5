//go:build cuda

package cuda

// The layouts of the pinned blocks that host and device share. Offsets are bytes; arrays are little-endian.

// planLayout is one copy of the plan: a planHeader, planRow [MaxRows], i32 tokens [MaxTokens], pageUpdate [maxUpdates].
type planLayout struct {
	rows, tok, update int
	maxUpdates        int
	size              int
}

// planHeader and planRow are the mirrors of PlanHeader and PlanRow in plan.cuh.
type planHeader struct {
	Tokens, Rows, Decode, Samples, Updates int32
	_                                      [3]int32
}

type planRow struct {
	Slot, Pos, Len, Start int32
	SampleRow, MaskRow    int32 // of the r-th sampled row, not of this one
	Token                 int32 // of a decode row: its token, or -1 for the slot's
	From                  int32 // of a decode row: leading tokens that attn_prefix attends to
}

// pageUpdate sets one entry of a slot's page table; the mirror of PageUpdate in plan.cuh.
type pageUpdate struct{ Slot, Index, Page, _ uint32 }

func newPlanLayout(s shape) planLayout {
	l := planLayout{rows: 32, maxUpdates: s.MaxRows * s.MaxPages}
	l.tok = l.rows + 32*s.MaxRows
	l.update = l.tok + pad(4*s.MaxTokens, 16)
	l.size = l.update + 16*l.maxUpdates
	return l
}

// startLayout is one copy of the start kernel's input: entries, then a pool of tokens and a pool of biases that they point into.
type startLayout struct {
	entry     int // startEntry [MaxRows]
	bias      int // {i32 token, f32 bias} [MaxRows*maxBias]
	tokens    int // i32 [maxTokens]
	maxTokens int
	size      int
}

// startEntry is one new sequence; the mirror of StartEntry in start.cu. 96 bytes.
type startEntry struct {
	Params              slotParams
	Slot                int32
	Token               int32 // the slot's last token, for a sequence whose first row here is a decode row; else 0
	BiasFirst           int32 // in the pool of biases; Params.NumBias of them
	PromptFirst, Prompt int32 // in the pool of tokens
	OutputFirst, Output int32
	_                   [3]int32
}

// slotParams is how a slot's tokens are chosen; the mirror of SlotParams in plan.cuh. 56 bytes.
type slotParams struct {
	Seed                            uint64
	Temperature, TopP, MinP         float32
	Repetition, Presence, Frequency float32
	TopK, NumBias                   int32
	Flags                           uint32
	TopLogProbs                     int32
	_                               [2]uint32
}

const (
	slotPenalties = 1 << iota
	slotLogProbs
)

func newStartLayout(s shape) startLayout {
	l := startLayout{maxTokens: s.MaxRows * 64}
	l.maxTokens = max(l.maxTokens, 4*s.MaxContext)
	l.bias = 96 * s.MaxRows
	l.tokens = l.bias + 8*maxBias*s.MaxRows
	l.size = l.tokens + 4*l.maxTokens
	return l
}

// ringLayout is one entry of the results' ring: Sampled [MaxRows], Top [MaxRows, maxTop], then the sequence number, stored last.
type ringLayout struct{ sampled, top, seq, size int }

func newRingLayout(s shape) ringLayout {
	l := ringLayout{top: 16 * s.MaxRows}
	l.seq = l.top + 8*maxTop*s.MaxRows
	l.size = l.seq + 64
	return l
}

// sampled is one sampled token; the mirror of Sampled in plan.cuh.
type sampled struct {
	Token   int32
	LogProb float32
	Flags   uint32
	_       uint32
}

const sampledNonFinite = 1
