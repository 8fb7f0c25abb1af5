//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cpu"
)

// TestGEMM holds gemm_sm90 against exact arithmetic: every epilogue, numbers of tokens at edges, one to four CTAs of a cluster, CTAs that have
// many tiles, rows of W that do not fill a tile and columns that do not fill a stage. Tiles without rows are what the engine would choose.
func TestGEMM(t *testing.T) {
	s := testShapes()["llama-1b"]
	if r := newRig(t, s); r.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
	}
	ends := map[string]epilogue{"store": epilogueStore, "bias": epilogueBias, "residual": epilogueResidual, "swiglu": epilogueSwiGLU, "logits": epilogueHeadLogits}
	type product struct {
		end         string
		m, n, k     int
		rows, split int
	}
	cases := []product{
		{"store", 17, 3072, 576, 0, 0}, {"store", 50, 1000, 1000, 0, 0}, {"store", 32, 192, 1024, 32, 2}, {"bias", 33, 1152, 896, 0, 0}, {"bias", 100, 640, 2048, 48, 4}, {"residual", 64, 2048, 512, 0, 0},
		{"residual", 65, 576, 1536, 0, 0}, {"residual", 128, 384, 4096, 0, 0}, {"residual", 20, 4104, 328, 160, 4}, {"residual", 90, 1000, 648, 144, 4}, {"residual", 47, 1000, 648, 96, 2},
		{"residual", 31, 264, 200, 64, 4}, {"residual", 111, 6144, 200, 32, 1}, {"swiglu", 20, 3072, 576, 0, 0}, {"swiglu", 96, 1024, 512, 0, 0}, {"swiglu", 128, 2048, 256, 80, 2}, {"swiglu", 40, 2048, 264, 96, 4},
		{"swiglu", 24, 8192, 264, 32, 1}, {"swiglu", 127, 10240, 72, 192, 1}, {"logits", 31, 20480, 128, 0, 0}, {"logits", 100, 832, 320, 0, 0}, {"logits", 128, 17408, 64, 112, 1},
		{"store", 32, 448, 4096, 192, 4}, {"swiglu", 32, 448, 1024, 192, 1}, {"store", 40, 4256, 1024, 32, 1},
		{"swiglu", 127, 10240, 72, 224, 1}, {"swiglu", 48, 33792, 264, 256, 1}, {"store", 40, 1000, 648, 256, 2}, {"bias", 96, 1152, 896, 224, 2}, {"logits", 128, 34816, 64, 256, 1}, {"residual", 90, 1000, 648, 256, 4},
	}
	cut := func(c product, d device) (linear, gemmTile) {
		l := linear{name: "gemm", m: c.m, n: c.n, k: c.k, end: ends[c.end]}
		if c.rows == 0 {
			return l, l.gemmTile(d)
		}
		i := slices.IndexFunc(l.gemmTiles(d), func(t gemmTile) bool { return t.rows == c.rows && t.split == c.split })
		require.GreaterOrEqual(t, i, 0, "no such tile: %+v", c)
		return l, l.gemmTiles(d)[i]
	}
	var ops []op
	for _, c := range cases {
		l, tile := cut(c, testDevices["sm_90"])
		ops = append(ops, l.call90(testDevices["sm_90"], tile, 0, 0, gemmParams{}).op())
	}
	newRig(t, s).prepare(ops...)
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s/m=%d/n=%d/k=%d/rows=%d/split=%d", c.end, c.m, c.n, c.k, c.rows, c.split), func(t *testing.T) {
			r := newRig(t, s)
			l, tile := cut(c, r.device)
			holdProduct(t, r, l, func(w, x, bias, y ptr) op {
				params := gemmParams{Bias: bias, Y: y}
				if l.end == epilogueHeadLogits {
					params = gemmParams{Logits: y}
				}
				return l.call90(r.device, tile, w, x, params).op()
			})
		})
	}
}

// putTokens uploads tokens of k columns, and NaNs where a tile's room for tokens reaches past them.
func (r *rig) putTokens(x []float32, k int) ptr {
	x = slices.Clone(x)
	for range swigluTokens * k {
		x = append(x, float32(math.NaN()))
	}
	return r.putBF16(x)
}

// holdProduct holds the product l of random numbers against exact arithmetic, and its bits and what lies past its outputs against a second
// run. launch gives the kernel; y is fp32 for logits.
func holdProduct(t *testing.T, r *rig, l linear, launch func(w, x, bias, y ptr) op) {
	p := newProduct(r, l.m, l.n, l.k, false)
	out, guard := l.m*l.outputs(), 8*l.outputs() // tokens past the last one: nothing may be written there
	logits := l.end == epilogueHeadLogits
	var before []float32
	var bias, y ptr
	switch {
	case logits:
		y = r.room((out + guard) * 4)
	case l.end == epilogueResidual:
		before = r.normal(out, 1)
		y = r.putBF16(append(slices.Clone(before), make([]float32, guard)...))
		for i := range before {
			before[i] = toBF16(before[i])
		}
	default:
		y = r.room((out + guard) * bf16Bytes)
		if l.end == epilogueBias {
			before = r.normal(l.n, 1)
			bias = r.putBF16(before)
		}
	}
	o := launch(r.putBF16(p.w), r.putTokens(p.x, l.k), bias, y)
	read := func() (got []float32, past []uint32) {
		if logits {
			return get[float32](r, y, out), get[uint32](r, y+ptr(out*4), guard)
		}
		for _, bits := range get[uint16](r, y+ptr(out*bf16Bytes), guard) {
			past = append(past, uint32(bits))
		}
		return r.getBF16(y, out), past
	}
	_, untouched := read()
	r.run(o)
	got, past := read()
	exact, plain := p.exact, p.plain
	if !logits {
		exact, plain = p.finish(l.end, before)
	}
	requireClose(t, exact, plain, got, "product")
	require.Equal(t, untouched, past, "past the last token")
	if l.end != epilogueResidual { // which would add once more
		r.run(o)
		again, _ := read()
		require.Equal(t, got, again, "the same bits")
	}
}

// TestGEMMNorm holds the RMSNorm that two products split between them: the first adds to the residual stream, the second takes its norm.
func TestGEMMNorm(t *testing.T) {
	s := testShapes()["llama-1b"]
	r := newRig(t, s)
	if r.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
	}
	pick := func(l linear, rows, split int) gemmTile {
		for _, tile := range l.gemmTiles(r.device) {
			if tile.rows == rows && tile.split == split {
				return tile
			}
		}
		t.Fatalf("no tile of %d rows and %d parts for %+v", rows, split, l)
		return gemmTile{}
	}
	for _, c := range []struct {
		m, n, k, out  int
		end           epilogue
		first, second [2]int // rows and split
	}{
		{17, 576, 1536, 1152, epilogueStore, [2]int{32, 2}, [2]int{96, 4}}, {40, 4104, 264, 320, epilogueBias, [2]int{160, 4}, [2]int{32, 1}},
		{100, 1000, 328, 640, epilogueSwiGLU, [2]int{48, 4}, [2]int{80, 2}}, {32, 8456, 72, 512, epilogueSwiGLU, [2]int{32, 1}, [2]int{64, 1}},
		{128, 1600, 512, 4304, epilogueStore, [2]int{80, 4}, [2]int{32, 1}},
	} {
		t.Run(fmt.Sprintf("m=%d/n=%d", c.m, c.n), func(t *testing.T) {
			r := newRig(t, s)
			first, second := linear{name: "o", m: c.m, n: c.n, k: c.k, end: epilogueResidual}, linear{name: "gate_up", m: c.m, n: c.out, k: c.n, norm: true, end: c.end}
			holdNorm(t, r, first, second, int(gemmSquaresBytes(r.device)), func(a normOperands) []op {
				one := first.call90(r.device, pick(first, c.first[0], c.first[1]), a.w1, a.x1, gemmParams{Y: a.stream})
				two := second.call90(r.device, pick(second, c.second[0], c.second[1]), a.w2, a.scaled, gemmParams{Y: a.y, Bias: a.bias})
				two.gamma = a.gamma
				require.True(t, one.norms(two, a.scaled, a.squares))
				return []op{one.op(), two.op()}
			})
		})
	}
}

// normOperands are what two products that split a norm between them work on: x1 w1ᵀ is added to stream, and y is made of its norm and w2.
type normOperands struct{ w1, x1, stream, gamma, scaled, squares, w2, bias, y ptr }

// holdNorm holds two products that split the RMSNorm between them against exact arithmetic.
func holdNorm(t *testing.T, r *rig, first, second linear, squaresBytes int, launch func(normOperands) []op) {
	p, q := newProduct(r, first.m, first.n, first.k, false), newProduct(r, second.m, second.n, second.k, true)
	before, bias := r.normal(first.m*first.n, 1), r.normal(second.n, 1)
	a := normOperands{w1: r.putBF16(p.w), x1: r.putTokens(p.x, first.k), stream: r.putBF16(before), gamma: r.putBF16(q.gamma), scaled: r.putTokens(make([]float32, first.m*first.n), first.n), squares: r.room(squaresBytes),
		w2: r.putBF16(q.w), bias: r.putBF16(bias), y: r.room(second.m * second.outputs() * bf16Bytes)}
	ops := launch(a)
	r.prepare(ops...)
	r.run(ops...)
	q.x = r.getBF16(a.stream, first.m*first.n)
	exact, plain := p.finish(epilogueResidual, before)
	requireClose(t, exact, plain, q.x, "residual stream")
	q.multiply(r, true)
	exact, plain = q.finish(second.end, bias)
	requireClose(t, exact, plain, r.getBF16(a.y, second.m*second.outputs()), "product of the norm")
}

// TestGEMMHead holds the tokens that the head chooses in its epilogue, greedy and drawn, against its own logits.
func TestGEMMHead(t *testing.T) {
	s := testShapes()["llama-8b"]
	s.Vocab, s.Hidden = 3003*8, 200
	r := newRig(t, s)
	if r.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
	}
	rows := []int{17, 40, 128}
	var ops []op
	for _, m := range rows {
		for _, full := range []bool{false, true} {
			ops = append(ops, gemmHead(r.device, s, &buffers{}, m, full).op())
		}
	}
	r.prepare(ops...)
	for _, m := range rows {
		p := newProduct(r, m, s.Vocab, s.Hidden, false)
		slots, positions, params := make([]int32, m), make([]int32, m), make([]slotParams, s.MaxRows)
		for i := range m {
			slots[i], positions[i] = int32(s.MaxRows-1-i), int32(100+7*i)
			if i%3 > 0 {
				params[slots[i]] = slotParams{Temperature: 0.05 * float32(i), Seed: uint64(i)<<33 + 5}
			}
		}
		b := &buffers{Head: weight{Data: r.putBF16(p.w)}, XS: r.putTokens(p.x, s.Hidden), SampleSlot: put(r, slots), SamplePos: put(r, positions), SlotParam: put(r, params), Logits: r.room(4 * m * s.Vocab),
			HeadScratch: r.room(int(headScratchBytes(r.device, s))), SlotToken: r.room(4 * s.MaxRows), Step: put(r, []uint64{6}), Ring: r.room(ringEntries * newRingLayout(s).size),
			AttnScratch: put(r, make([]byte, attnScratchBytes(r.device, s)))}
		r.run(gemmHead(r.device, s, b, m, true).op(), gemmHead(r.device, s, b, m, false).op(), sampleFastOp(r.device, s, b, m))
		logits := get[float32](r, b.Logits, m*s.Vocab)
		requireClose(t, p.exact, p.plain, logits, "logits")
		for i, v := range get[sampled](r, b.Ring+ptr(6%ringEntries*newRingLayout(s).size), m) {
			z := logits[i*s.Vocab : (i+1)*s.Vocab]
			want := cpu.Argmax(z)
			if q := params[slots[i]]; q.Temperature > 0 {
				scaled := make([]float32, len(z))
				for j, l := range z {
					scaled[j] = l / q.Temperature
				}
				want = cpu.Draw(scaled, q.Seed, int(positions[i]))
			}
			require.Equal(t, want, v.Token, "m=%d row %d", m, i)
			require.Zero(t, v.Flags)
		}
	}
}

// TestGEMMTiles holds what gemm_sm90 asks of a tile, for every product of every model.
func TestGEMMTiles(t *testing.T) {
	d := testDevices["sm_90"]
	for name, s := range testShapes() {
		for _, m := range []int{17, 32, 33, 64, 65, 128} {
			for _, l := range []linear{s.qkv(m), s.o(m), s.gateUp(m), s.down(m), headLinear(s, m, false), headLinear(s, m, true)} {
				if !l.fitsGEMM(d) {
					continue
				}
				chosen := l.gemmTile(d)
				t.Logf("%s %s m=%d: %+v, %d CTAs", name, l.name, m, chosen, chosen.ctas(l, d))
				for _, tile := range l.gemmTiles(d) {
					o := l.call90(d, tile, 0, 0, gemmParams{}).op()
					require.LessOrEqual(t, o.Smem, d.MaxSmem, "%+v", tile)
					require.GreaterOrEqual(t, tile.stages, 3, "%+v", tile)
					require.GreaterOrEqual(t, tile.tokens, m)
					require.Zero(t, o.Grid[0]%tile.split)
					if tile.split > 1 {
						require.GreaterOrEqual(t, o.Grid[0]/tile.split*tile.rows, l.n, "a cluster has one tile")
						require.LessOrEqual(t, o.Grid[0], d.SMs)
					}
				}
			}
		}
	}
}
