//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cpu"
)

// exactProduct is one matrix product with its exact and its plain bf16 result before the epilogue.
type exactProduct struct {
	m, n, k      int
	x, w, gamma  []float32
	exact, plain []float32 // [m, n]
}

// newProduct draws w in bf16, and the rest as productWith does.
func newProduct(r *rig, m, n, k int, norm bool) *exactProduct {
	w := r.normal(n*k, 1/math.Sqrt(float64(k)))
	for i := range w {
		w[i] = toBF16(w[i])
	}
	return productWith(r, m, n, k, w, norm)
}

// productWith draws x and, with norm, gamma, and multiplies them by w: exactly, in float64, and as plain bf16 arithmetic does, rounding
// w, the normed x before and after gamma, and the sum.
func productWith(r *rig, m, n, k int, w []float32, norm bool) *exactProduct {
	p := &exactProduct{m: m, n: n, k: k, x: r.normal(m*k, 1.5), w: w, gamma: r.normal(k, 0.3)}
	for i := range p.gamma {
		p.gamma[i] = toBF16(p.gamma[i] + 1)
	}
	for i := range p.x {
		p.x[i] = toBF16(p.x[i])
	}
	p.multiply(r, norm)
	return p
}

// multiply makes exact and plain of x, w and gamma.
func (p *exactProduct) multiply(r *rig, norm bool) {
	m, n, k := p.m, p.n, p.k
	plainW := make([]float32, len(p.w))
	for i, v := range p.w {
		plainW[i] = toBF16(v)
	}
	p.exact, p.plain = make([]float32, m*n), make([]float32, m*n)
	var wg sync.WaitGroup
	row := func(i int) {
		exactX, plainX := make([]float32, k), make([]float32, k)
		x := p.x[i*k : (i+1)*k]
		copy(exactX, x)
		copy(plainX, x)
		if norm {
			cpu.RMSNorm(exactX, x, p.gamma, r.shape.Eps)
			ones := make([]float32, k)
			for j := range ones {
				ones[j] = 1
			}
			cpu.RMSNorm(plainX, x, ones, r.shape.Eps)
			for j := range plainX {
				plainX[j] = toBF16(toBF16(plainX[j]) * p.gamma[j])
			}
		}
		cpu.MatMul(p.exact[i*n:(i+1)*n], exactX, p.w, 1, n, k)
		cpu.MatMul(p.plain[i*n:(i+1)*n], plainX, plainW, 1, n, k)
	}
	for i := range m {
		wg.Go(func() { row(i) })
	}
	wg.Wait()
	for i := range p.plain {
		p.plain[i] = toBF16(p.plain[i])
	}
}

// finish applies an epilogue to exact and plain results; before holds what a residual adds to, or one bias a column.
func (p *exactProduct) finish(end epilogue, before []float32) (exact, plain []float32) {
	if end != epilogueSwiGLU {
		exact, plain = append(exact, p.exact...), append(plain, p.plain...)
		for i := range exact {
			switch end {
			case epilogueResidual:
				exact[i], plain[i] = exact[i]+before[i], toBF16(plain[i]+before[i])
			case epilogueBias:
				exact[i], plain[i] = exact[i]+before[i%p.n], toBF16(plain[i]+before[i%p.n])
			}
		}
		return exact, plain
	}
	half := p.n / 2
	exact, plain = make([]float32, p.m*half), make([]float32, p.m*half)
	for i := range exact {
		row, j := i/half, i%half
		gate := row*p.n + j/8*16 + j%8
		cpu.SwiGLU(exact[i:i+1], p.exact[gate:gate+1], p.exact[gate+8:gate+9])
		one := []float32{1}
		cpu.SwiGLU(plain[i:i+1], p.plain[gate:gate+1], one)
		plain[i] = toBF16(toBF16(plain[i]) * p.plain[gate+8])
	}
	return exact, plain
}

// linearShapes are outputs x inputs: real layers, and sizes that leave ragged ends everywhere.
var linearShapes = []struct{ n, k int }{{1024, 4096}, {576, 1536}, {960, 576}, {768, 896}, {512, 14336}, {336, 18944}, {48, 64}, {1040, 2048}, {80, 8}, {176, 1000}}

var linearRows = []int{1, 2, 3, 5, 8, 9, 13, 16}

// TestGEMV holds gemv and gemv_mma against exact products for every epilogue that stores bf16.
func TestGEMV(t *testing.T) {
	for _, c := range linearShapes {
		for _, m := range linearRows {
			t.Run(fmt.Sprintf("n=%d/k=%d/m=%d", c.n, c.k, m), func(t *testing.T) {
				r := newRig(t, testShapes()["llama-8b"])
				for _, norm := range []bool{false, true} {
					p := newProduct(r, m, c.n, c.k, norm)
					x, w, gamma := r.putBF16(p.x), r.putBF16(p.w), r.putBF16(p.gamma)
					for _, end := range []epilogue{epilogueStore, epilogueBias, epilogueResidual, epilogueSwiGLU} {
						var before []float32
						y, bias := r.room(m*c.n*2), ptr(0)
						switch end {
						case epilogueBias:
							before = r.normal(c.n, 1)
							bias = r.putBF16(before)
						case epilogueResidual:
							before = r.normal(m*c.n, 1)
							y = r.putBF16(before)
						}
						l := linear{name: "test", m: m, n: c.n, k: c.k, norm: norm, end: end}
						o := l.op(r.device, linearParams{W: w, X: x, Gamma: gamma, Bias: bias, Y: y})
						r.run(o)
						exact, plain := p.finish(end, before)
						requireClose(t, exact, plain, r.getBF16(y, m*l.outputs()), fmt.Sprintf("%s norm=%v", o.Unit, norm))
					}
				}
			})
		}
	}
}

// TestGEMVHead holds the head's two epilogues: fp32 logits, and the best token of greedy and drawing rows.
func TestGEMVHead(t *testing.T) {
	for _, m := range linearRows {
		t.Run(fmt.Sprintf("m=%d", m), func(t *testing.T) {
			s := testShapes()["llama-8b"]
			s.Vocab, s.Hidden = 3003, 576
			r := newRig(t, s)
			p := newProduct(r, m+3, s.Vocab, s.Hidden, true)
			rows, slots, positions := make([]int32, m), make([]int32, m), make([]int32, m)
			params := make([]slotParams, s.MaxRows)
			for i := range m { // rows in another order than tokens, slots in another than rows
				rows[i], slots[i], positions[i] = int32((i*5+2)%(m+3)), int32(20-i), int32(100+7*i)
				if i%3 > 0 {
					params[slots[i]] = slotParams{Temperature: 0.5 * float32(i), Seed: uint64(i)<<33 + 5}
				}
			}
			b := &buffers{Head: weight{Data: r.putBF16(p.w)}, X: r.putBF16(p.x), Norm: r.putBF16(p.gamma), SampleTok: put(r, rows), SampleSlot: put(r, slots),
				SamplePos: put(r, positions), SlotParam: put(r, params), Logits: r.room(4 * m * s.Vocab), HeadScratch: r.room(int(headScratchBytes(r.device, s))),
				SlotToken: r.room(4 * s.MaxRows), Step: put(r, []uint64{6}), Ring: r.room(ringEntries * newRingLayout(s).size)}
			r.run(gemvHeadOp(r.device, s, b, m, true), gemvHeadOp(r.device, s, b, m, false), sampleFastOp(r.device, s, b, m))
			logits := get[float32](r, b.Logits, m*s.Vocab)
			var exact, plain []float32
			for _, row := range rows {
				exact = append(exact, p.exact[int(row)*s.Vocab:int(row+1)*s.Vocab]...)
				plain = append(plain, p.plain[int(row)*s.Vocab:int(row+1)*s.Vocab]...)
			}
			requireClose(t, exact, plain, logits, "logits")
			entry := b.Ring + ptr(6%ringEntries*newRingLayout(s).size)
			results := get[sampled](r, entry, m)
			tokens := get[int32](r, b.SlotToken, s.MaxRows)
			for i := range m {
				z := logits[i*s.Vocab : (i+1)*s.Vocab]
				want := cpu.Argmax(z)
				if q := params[slots[i]]; q.Temperature > 0 {
					scaled := make([]float32, len(z))
					for j, v := range z {
						scaled[j] = v / q.Temperature
					}
					want = cpu.Draw(scaled, q.Seed, int(positions[i]))
				}
				assert.Equal(t, want, results[i].Token, "row %d", i)
				assert.Zero(t, results[i].Flags, "row %d", i)
				assert.Equal(t, want, tokens[slots[i]], "row %d", i)
			}
			assert.Equal(t, []uint64{7}, get[uint64](r, b.Step, 1))
			assert.Equal(t, []uint64{7}, get[uint64](r, entry+ptr(newRingLayout(s).seq), 1))
		})
	}
}

// TestGEMVHeadNonFinite: a NaN or an infinity among a row's logits is told, and only for that row.
func TestGEMVHeadNonFinite(t *testing.T) {
	s := testShapes()["llama-8b"]
	s.Vocab, s.Hidden = 3003, 576
	for _, m := range []int{2, 4} {
		r := newRig(t, s)
		p := newProduct(r, m, s.Vocab, s.Hidden, true)
		p.x[s.Hidden+7] = float32(math.Inf(1))
		index := make([]int32, m)
		for i := range index {
			index[i] = int32(i)
		}
		b := &buffers{Head: weight{Data: r.putBF16(p.w)}, X: r.putBF16(p.x), Norm: r.putBF16(p.gamma), SampleTok: put(r, index), SampleSlot: put(r, index), SamplePos: put(r, index),
			SlotParam: put(r, make([]slotParams, s.MaxRows)), HeadScratch: r.room(int(headScratchBytes(r.device, s))), SlotToken: r.room(4 * s.MaxRows),
			Step: put(r, []uint64{0}), Ring: r.room(ringEntries * newRingLayout(s).size)}
		r.run(gemvHeadOp(r.device, s, b, m, false), sampleFastOp(r.device, s, b, m))
		for i, v := range get[sampled](r, b.Ring, m) {
			want := uint32(0)
			if i == 1 {
				want = sampledNonFinite
			}
			require.Equal(t, want, v.Flags, "m=%d row %d", m, i)
		}
	}
}
