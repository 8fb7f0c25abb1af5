//go:build cuda

package cuda

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cpu"
)

// TestAdvance: decode rows take their slots' tokens, prefill rows the plan's; updates reach the page table; what is past the plan
// is padding. The plan's second copy is the running one.
func TestAdvance(t *testing.T) {
	s := testShapes()["smollm2-135m"]
	s.MaxRows, s.MaxTokens, s.MaxPages = 16, 4096, 8
	r := newRig(t, s)
	l := newPlanLayout(s)
	plan := make([]byte, l.size)
	set := func(at int, values ...int32) {
		for i, v := range values {
			binary.LittleEndian.PutUint32(plan[at+4*i:], uint32(v))
		}
	}
	// Rows: two decode rows (one padding in between), two chunks of 3 and 2000 tokens; the first and the last sample.
	const tokens = 3 + 3 + 2000
	set(0, tokens, 5, 3, 2, 3)
	for i, row := range [][]int32{{4, 10, 1, 0, 0, -1, -1}, {-1, 0, 0, 1, 4, 1, -1}, {9, 33, 1, 2, 0, 0, 55}, {2, 0, 3, 3}, {7, 100, 2000, 6}} {
		set(l.rows+32*i, row...) // slot, position, length, start; of the i-th sampled row: the row, its mask; of a decode row: its token
	}
	for i := range 2003 {
		set(l.tok+4*(3+i), int32(1000+i))
	}
	set(l.update, 4, 0, 77, 0, 9, 2, 88, 0, 7, 7, 99, 0)
	slotToken := make([]int32, s.MaxRows)
	slotToken[4], slotToken[9] = 41, 91
	room := func() ptr { return r.room(4 * s.MaxTokens) }
	b := &buffers{Plan: [2]ptr{r.room(l.size), put(r, plan)}, Step: put(r, []uint64{5}), TokID: room(), TokPos: room(), TokSlot: room(), RowSlot: room(), RowPos: room(),
		RowLen: room(), RowStart: room(), RowCtx: room(), SampleTok: room(), SampleSlot: room(), SamplePos: room(), MaskRow: room(), SlotToken: put(r, slotToken),
		PageTable: put(r, make([]int32, s.MaxRows*s.MaxPages))}
	r.run(advanceOp(r.device, s, b, 6, pad(tokens, 64)))
	assert.Equal(t, []int32{4, -1, 9, 2, 7, -1}, get[int32](r, b.RowSlot, 6))
	assert.Equal(t, []int32{10, 0, 33, 0, 100, 0}, get[int32](r, b.RowPos, 6))
	assert.Equal(t, []int32{1, 0, 1, 3, 2000, 0}, get[int32](r, b.RowLen, 6))
	assert.Equal(t, []int32{11, 0, 34, 3, 2100, 0}, get[int32](r, b.RowCtx, 6))
	assert.Equal(t, []int32{3, 6}, get[int32](r, b.RowStart+12, 2))
	assert.Equal(t, []int32{0, 2005, 0}, get[int32](r, b.SampleTok, 3))
	assert.Equal(t, []int32{4, 7, -1}, get[int32](r, b.SampleSlot, 3))
	assert.Equal(t, []int32{11, 2100}, get[int32](r, b.SamplePos, 2))
	assert.Equal(t, []int32{-1, 1, -1}, get[int32](r, b.MaskRow, 3))
	id, pos, slot := get[int32](r, b.TokID, pad(tokens, 64)), get[int32](r, b.TokPos, pad(tokens, 64)), get[int32](r, b.TokSlot, pad(tokens, 64))
	for i := range pad(tokens, 64) {
		want := [3]int32{0, 0, -1}
		switch {
		case i == 0:
			want = [3]int32{41, 10, 4}
		case i == 2:
			want = [3]int32{55, 33, 9} // the plan's own, not the slot's
		case i >= 3 && i < 6:
			want = [3]int32{int32(1000 + i - 3), int32(i - 3), 2}
		case i >= 6 && i < tokens:
			want = [3]int32{int32(1000 + i - 3), int32(100 + i - 6), 7}
		case i == 1:
			continue // a padding row has no token of its own unless the host counts one; nothing reads it
		}
		require.Equal(t, want, [3]int32{id[i], pos[i], slot[i]}, "token %d", i)
	}
	table := get[int32](r, b.PageTable, s.MaxRows*s.MaxPages)
	for i, v := range table {
		want := map[int]int32{4 * 8: 77, 9*8 + 2: 88, 7*8 + 7: 99}[i]
		require.Equal(t, want, v, "page table entry %d", i)
	}
}

func TestEmbed(t *testing.T) {
	for _, hidden := range []int{64, 576, 4096} {
		s := testShapes()["llama-8b"]
		s.Hidden, s.Vocab = hidden, 100
		r := newRig(t, s)
		table := r.normal(s.Vocab*hidden, 1)
		ids := []int32{5, 99, 0, 5, 42}
		b := &buffers{Embed: r.putBF16(table), TokID: put(r, ids), X: r.room(2 * len(ids) * hidden)}
		r.run(embedOp(r.device, s, b, len(ids)))
		got := r.getBF16(b.X, len(ids)*hidden)
		for i, id := range ids {
			require.Equal(t, table[int(id)*hidden:int(id+1)*hidden], got[i*hidden:(i+1)*hidden], "hidden %d token %d", hidden, i)
		}
	}
}

func TestRMSNorm(t *testing.T) {
	for _, hidden := range []int{64, 576, 3584, 4096, 8192} {
		s := testShapes()["llama-8b"]
		s.Hidden = hidden
		r := newRig(t, s)
		const n = 7
		x, gamma, one := r.normal(n*hidden, 3), r.normal(hidden, 1), make([]float32, hidden)
		b := &buffers{X: r.putBF16(x), Norm: r.putBF16(gamma), SampleTok: put(r, []int32{6, 0, 3}), XN: r.room(2 * n * hidden), XS: r.room(2 * n * hidden)}
		var exact, plain []float32
		for i := range one {
			one[i] = 1
		}
		for i := range n {
			e, p := make([]float32, hidden), make([]float32, hidden)
			cpu.RMSNorm(e, x[i*hidden:(i+1)*hidden], gamma, s.Eps)
			cpu.RMSNorm(p, x[i*hidden:(i+1)*hidden], one, s.Eps)
			for j := range p {
				p[j] = toBF16(toBF16(p[j]) * gamma[j])
			}
			exact, plain = append(exact, e...), append(plain, p...)
		}
		r.run(rmsnormOp(r.device, s, b, b.Norm, n), gatherNormOp(r.device, s, b, 3))
		all := r.getBF16(b.XN, n*hidden)
		requireClose(t, exact, plain, all, fmt.Sprintf("hidden %d", hidden))
		got := r.getBF16(b.XS, 3*hidden)
		for i, row := range []int{6, 0, 3} {
			require.Equal(t, all[row*hidden:(row+1)*hidden], got[i*hidden:(i+1)*hidden], "gathered row %d", i)
		}
		r.run(normRowsOp(r.device, s, b, 2, 4))
		require.Equal(t, all[2*hidden:6*hidden], r.getBF16(b.XS, 4*hidden), "rows from 2")
	}
}

func TestSiLUMul(t *testing.T) {
	for _, inter := range []int{176, 1536, 14336, 18944} {
		s := testShapes()["llama-8b"]
		s.Inter = inter
		r := newRig(t, s)
		const n = 3
		gu := r.normal(2*n*inter, 3)
		b := &buffers{GU: r.putBF16(gu), Act: r.room(2 * n * inter)}
		exact, plain := make([]float32, n*inter), make([]float32, n*inter)
		for i := range exact {
			at := i/inter*2*inter + i%inter/8*16 + i%8
			cpu.SwiGLU(exact[i:i+1], gu[at:at+1], gu[at+8:at+9])
			cpu.SwiGLU(plain[i:i+1], gu[at:at+1], []float32{1})
			plain[i] = toBF16(toBF16(plain[i]) * gu[at+8])
		}
		r.run(siluMulOp(r.device, s, b, n))
		requireClose(t, exact, plain, r.getBF16(b.Act, n*inter), fmt.Sprintf("inter %d", inter))
	}
}
