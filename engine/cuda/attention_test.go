//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/kernels"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// attnCase is a batch for the attention kernels: each row has pos tokens in the cache and len new ones.
type attnCase struct {
	name     string
	pos, len []int
}

func attnShapes() map[string]shape {
	out := map[string]shape{}
	for _, c := range []struct {
		heads, kv, dim, page, window int
		norm                         bool
	}{{8, 2, 128, 64, 0, false}, {9, 3, 64, 64, 0, false}, {14, 2, 128, 16, 0, false}, {4, 4, 96, 32, 0, true}, {8, 1, 128, 64, 300, true},
		{4, 2, 16, 16, 40, false}, {6, 2, 80, 64, 0, true}, {10, 5, 112, 16, 0, false}} {
		s := testShapes()["llama-8b"]
		s.Heads, s.KVHeads, s.Dim, s.Page, s.Window, s.QKNorm, s.MaxContext = c.heads, c.kv, c.dim, c.page, c.window, c.norm, 4096
		s.MaxPages, s.MaxRows = s.MaxContext/s.Page, 16
		for _, s.KVFP8 = range []bool{false, true} {
			out[fmt.Sprintf("heads=%d/kv=%d/dim=%d/page=%d/window=%d/norm=%v/fp8=%v", c.heads, c.kv, c.dim, c.page, c.window, c.norm, s.KVFP8)] = s
		}
	}
	return out
}

// TestAttentionCompiles compiles attention for every head shape and cache type, which the models of TestKernelsCompile have not. For sm_90a it
// refuses local memory. Without TOKAMAK_KERNELS=all it takes two head shapes.
func TestAttentionCompiles(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	for name, s := range attnShapes() {
		if os.Getenv("TOKAMAK_KERNELS") != "all" && s.Dim != 80 && s.Dim != 64 {
			continue
		}
		for _, arch := range []string{"sm_80", "sm_89", "sm_90"} {
			d := testDevices[arch]
			c := newCompiler(d, s, nil)
			ops := []op{ropeKVOp(d, s, &buffers{}, layerWeights{}, 0, 0, 1), attnDecodeOp(d, s, &buffers{}, layerWeights{}, 0, 1)}
			for _, fits := range []bool{false, true} {
				for _, n := range prefillAttention(d, s, &buffers{}, layerWeights{}, 0, 0, 1, 1, fits) {
					ops = append(ops, *n.op)
				}
			}
			for _, o := range ops {
				source, err := kernels.Source(o.Unit.File)
				require.NoError(t, err)
				_, log, err := nvrtc.Compile(o.Unit.File, source, c.headers, append(c.options(o.Unit), "--ptxas-options=-v"))
				require.NoError(t, err, "%s: %s for %s", name, o.Unit, arch)
				assert.NotContains(t, log, "warning", "%s: %s", name, o.Unit)
				for _, m := range resourceLine.FindAllStringSubmatch(log, -1) {
					if arch == "sm_90" {
						assert.Equal(t, []string{"0", "0", "0"}, m[1:], "%s: %s uses local memory", name, o.Unit)
					}
				}
			}
		}
	}
}

// attnRig is one batch on the device and what is known of it. An e4m3 cache has scales that are no powers of two.
type attnRig struct {
	*rig
	b                     buffers
	w                     layerWeights
	c                     attnCase
	tokens, rows, longest int
	q, qPlain             [][]float32 // a row's new tokens, normed and rotated: [len, heads, dim]
	k, kPlain, v          [][]float32 // [ctx, kvHeads, dim]
	pages                 [][]int32
	kv                    []float32 // what the cache held before
}

// putKV uploads a cache. Values of e4m3 are given as they are stored.
func (a *attnRig) putKV(values []float32) ptr {
	if !a.shape.KVFP8 {
		return a.putBF16(values)
	}
	bits := make([]byte, len(values))
	for i, v := range values {
		bits[i] = weights.F8E4M3FromFloat32(v)
	}
	return put(a.rig, bits)
}

func (a *attnRig) getKV() []float32 {
	if !a.shape.KVFP8 {
		return a.getBF16(a.b.KV, len(a.kv))
	}
	out := make([]float32, len(a.kv))
	for i, b := range get[byte](a.rig, a.b.KV, len(out)) {
		out[i] = weights.F8E4M3ToFloat32(b)
	}
	return out
}

// kvAt is where token p of a row lies in the cache.
func (a *attnRig) kvAt(row, p, part, head int) int {
	s := a.shape
	return int(s.layerKVBytes()/s.kvBytes())*attnLayer + (((int(a.pages[row][p/s.Page])*2+part)*s.KVHeads+head)*s.Page+p%s.Page)*s.Dim
}

// attnLayer is the layer of the cache, of two, that the rig's kernels work on.
const attnLayer = 1

// newAttnRig fills a cache with random K and V, draws the new tokens' qkv and computes what attention gives.
func newAttnRig(t testing.TB, s shape, c attnCase) *attnRig {
	s.NumPages = 2
	for i := range c.pos {
		s.NumPages += ceilDiv(c.pos[i]+c.len[i], s.Page)
	}
	a := &attnRig{rig: newRig(t, s), rows: len(c.pos)}
	a.c = c
	a.kv = a.normal(2*int(s.layerKVBytes()/s.kvBytes()), 1)
	for i := range a.kv {
		a.kv[i] = toBF16(a.kv[i])
		if s.KVFP8 {
			a.kv[i] = weights.F8E4M3ToFloat32(weights.F8E4M3FromFloat32(a.kv[i]))
		}
	}
	if s.KVFP8 {
		a.w.KV = kvScale{0.7, 1.3}
	}
	qn, kn := a.normal(s.Dim, 0.2), a.normal(s.Dim, 0.2)
	for i := range qn {
		qn[i], kn[i] = toBF16(1+qn[i]), toBF16(1+kn[i])
	}
	table := make([]float32, s.MaxContext*s.Dim)
	for pos := range s.MaxContext {
		for i := range s.Dim / 2 {
			sin, cos := math.Sincos(float64(pos) * math.Pow(10000, -2*float64(i)/float64(s.Dim)))
			table[(pos*s.Dim/2+i)*2], table[(pos*s.Dim/2+i)*2+1] = float32(cos), float32(sin)
		}
	}
	pageTable := make([]int32, s.MaxRows*s.MaxPages)
	for i := range pageTable {
		pageTable[i] = math.MaxInt32 // a read of it faults
	}
	order := a.random.Perm(s.NumPages)
	var slot, pos, length, start, ctx, tokPos, tokSlot []int32
	var qkv []float32
	for row := range c.pos {
		sl, n, end := int32((row*3+1)%s.MaxRows), c.len[row], c.pos[row]+c.len[row]
		slot, pos, length, start, ctx = append(slot, sl), append(pos, int32(c.pos[row])), append(length, int32(n)), append(start, int32(a.tokens)), append(ctx, int32(end))
		var pages []int32
		for i := range (end + s.Page - 1) / s.Page {
			pages = append(pages, int32(order[0]))
			order = order[1:]
			pageTable[int(sl)*s.MaxPages+i] = pages[i]
		}
		a.pages = append(a.pages, pages)
		k, v := make([]float32, end*s.kvDim()), make([]float32, end*s.kvDim())
		for p := range c.pos[row] {
			for h := range s.KVHeads {
				for i := range s.Dim {
					k[(p*s.KVHeads+h)*s.Dim+i] = a.kv[a.kvAt(row, p, 0, h)+i] * a.w.KV.k()
					v[(p*s.KVHeads+h)*s.Dim+i] = a.kv[a.kvAt(row, p, 1, h)+i] * a.w.KV.v()
				}
			}
		}
		for p := end; p < len(pages)*s.Page; p++ { // nobody wrote there yet
			for h := range s.KVHeads {
				for part := range 2 {
					for i := range s.Dim {
						a.kv[a.kvAt(row, p, part, h)+i] = float32(math.NaN())
					}
				}
			}
		}
		// New tokens: exact keeps fp32 between the steps, plain rounds after each.
		kPlain, q, qPlain := append([]float32{}, k...), make([]float32, n*s.qDim()), make([]float32, n*s.qDim())
		for i := range n {
			p := c.pos[row] + i
			tokPos, tokSlot = append(tokPos, int32(p)), append(tokSlot, sl)
			x := a.normal(s.qkvDim(), 1)
			for j := range x {
				x[j] = toBF16(x[j])
			}
			qkv = append(qkv, x...)
			for h := range s.Heads + s.KVHeads {
				at, gamma, exact, plain := (i*s.Heads+h)*s.Dim, qn, q, qPlain
				if h >= s.Heads {
					at, gamma, exact, plain = (p*s.KVHeads+h-s.Heads)*s.Dim, kn, k, kPlain
				}
				rotated(s, exact[at:at+s.Dim], x[h*s.Dim:][:s.Dim], gamma, table[p*s.Dim:], false)
				rotated(s, plain[at:at+s.Dim], x[h*s.Dim:][:s.Dim], gamma, table[p*s.Dim:], true)
			}
			copy(v[p*s.kvDim():], x[(s.Heads+s.KVHeads)*s.Dim:])
		}
		a.q, a.qPlain = append(a.q, q), append(a.qPlain, qPlain)
		a.k, a.kPlain, a.v = append(a.k, k), append(a.kPlain, kPlain), append(a.v, v)
		a.tokens += n
		a.longest = max(a.longest, n)
	}
	a.shape.MaxTokens = a.tokens
	a.b = buffers{QKV: a.putBF16(append(qkv, make([]float32, (a.shape.tokenRows()-a.tokens)*s.qkvDim())...)), KV: a.putKV(a.kv), Att: a.room(2 * a.tokens * s.qDim()), Rope: put(a.rig, table), RowSlot: put(a.rig, slot), RowPos: put(a.rig, pos),
		RowLen: put(a.rig, length), RowStart: put(a.rig, start), RowCtx: put(a.rig, ctx), TokPos: put(a.rig, tokPos), TokSlot: put(a.rig, tokSlot),
		PageTable: put(a.rig, pageTable), AttnScratch: put(a.rig, make([]byte, attnScratchBytes(a.device, s)))}
	a.b.Widened, a.b.WidenedFirst = a.room(int(a.shape.widenedBytes(a.device))), a.room(4*a.rows)
	a.w.QNorm, a.w.KNorm = a.putBF16(qn), a.putBF16(kn)
	return a
}

// check holds what a step left: the new tokens in the cache and nothing else of it changed, and attention's output within what plain bf16
// arithmetic errs. With an e4m3 cache that is attention over the values that it holds.
func (a *attnRig) check(what string) {
	a.Helper()
	a.checkCache()
	s, kv := a.shape, a.getKV()
	var exact, plain []float32
	for row, n := range a.c.len {
		end := a.c.pos[row] + n
		if s.KVFP8 {
			for p := a.c.pos[row]; p < end; p++ {
				for i := range s.kvDim() {
					at := a.kvAt(row, p, 0, i/s.Dim) + i%s.Dim
					a.k[row][p*s.kvDim()+i] = kv[at] * a.w.KV.k()
					a.v[row][p*s.kvDim()+i] = kv[a.kvAt(row, p, 1, i/s.Dim)+i%s.Dim] * a.w.KV.v()
				}
			}
			a.kPlain[row] = a.k[row]
		}
		e, p := make([]float32, n*s.qDim()), make([]float32, n*s.qDim())
		cpu.Attend(e, a.q[row], a.k[row], a.v[row], n, end, s.Heads, s.KVHeads, s.Dim, s.Window)
		attendPlain(s, p, a.qPlain[row], a.kPlain[row], a.v[row], n, end)
		exact, plain = append(exact, e...), append(plain, p...)
	}
	requireClose(a, exact, plain, a.getBF16(a.b.Att, a.tokens*s.qDim()), what)
}

// rotated is a head normed and rotated. plain rounds after each operation as bf16 arithmetic does.
func rotated(s shape, dst, x, gamma, cosSin []float32, plain bool) {
	round := func(v float32) float32 {
		if plain {
			return toBF16(v)
		}
		return v
	}
	h := append([]float32{}, x...)
	if s.QKNorm {
		ones := make([]float32, s.Dim)
		for i := range ones {
			ones[i] = 1
		}
		cpu.RMSNorm(h, h, ones, s.Eps)
		for i := range h {
			h[i] = round(round(h[i]) * gamma[i])
		}
	}
	for i := range s.Dim / 2 {
		cos, sin := round(cosSin[2*i]), round(cosSin[2*i+1])
		lo, hi := h[i], h[i+s.Dim/2]
		dst[i] = round(round(lo*cos) - round(hi*sin))
		dst[i+s.Dim/2] = round(round(hi*cos) + round(lo*sin))
	}
}

// attendPlain is attention in plain bf16 arithmetic: scores and probabilities are rounded.
func attendPlain(s shape, out, q, k, v []float32, n, ctx int) {
	scale := 1 / math.Sqrt(float64(s.Dim))
	for t := range n {
		end := ctx - n + t + 1
		begin := 0
		if s.Window > 0 {
			begin = max(0, end-s.Window)
		}
		for h := range s.Heads {
			score := make([]float64, end)
			largest, sum := math.Inf(-1), 0.0
			for p := begin; p < end; p++ {
				dot := 0.0
				for i := range s.Dim {
					dot += float64(q[(t*s.Heads+h)*s.Dim+i]) * float64(k[(p*s.KVHeads+h/(s.Heads/s.KVHeads))*s.Dim+i])
				}
				score[p] = float64(toBF16(toBF16(float32(dot)) * float32(scale)))
				largest = max(largest, score[p])
			}
			for p := begin; p < end; p++ {
				score[p] = math.Exp(score[p] - largest)
				sum += score[p]
			}
			for i := range s.Dim {
				total := 0.0
				for p := begin; p < end; p++ {
					total += float64(toBF16(float32(score[p]/sum))) * float64(v[(p*s.KVHeads+h/(s.Heads/s.KVHeads))*s.Dim+i])
				}
				out[(t*s.Heads+h)*s.Dim+i] = toBF16(float32(total))
			}
		}
	}
}

// kTolerance is what rounding may move an element of K: two values of up to 5, rounded three times by 2^-9 of themselves before they are rotated.
const kTolerance = 2 * 5 * 3.0 / 512

// checkCache holds what the step left in the cache: the new tokens' K (within a rounding) and V, and all else as it was.
func (a *attnRig) checkCache() {
	a.Helper()
	s := a.shape
	want := append([]float32{}, a.kv...)
	isK := map[int]bool{}
	for row := range a.pages {
		for p := a.c.pos[row]; p < a.c.pos[row]+a.c.len[row]; p++ {
			for i := range s.kvDim() {
				k, v := a.kvAt(row, p, 0, i/s.Dim)+i%s.Dim, a.kvAt(row, p, 1, i/s.Dim)+i%s.Dim
				want[k], want[v] = a.k[row][p*s.kvDim()+i], a.v[row][p*s.kvDim()+i]
				isK[k] = true
				if s.KVFP8 {
					want[k] *= 1 / a.w.KV.k()
					want[v] = weights.F8E4M3ToFloat32(weights.F8E4M3FromFloat32(want[v] * (1 / a.w.KV.v())))
				}
			}
		}
	}
	for i, v := range a.getKV() {
		if isK[i] {
			tolerance := kTolerance
			if s.KVFP8 { // half the distance of neighbours: 2^-4 of the value, 2^-10 of the smallest
				tolerance = kTolerance/float64(a.w.KV.k()) + math.Abs(float64(want[i]))/16 + 1.0/1024
			}
			require.InDelta(a, want[i], v, tolerance, "K at %d", i)
		} else if want[i] != v && want[i] == want[i] {
			require.Equal(a, want[i], v, "cache at %d", i)
		}
	}
}

// TestAttnDecode: one token a row, contexts around every edge of tiles, pages, splits and windows.
func TestAttnDecode(t *testing.T) {
	for name, s := range attnShapes() {
		for _, ctx := range [][]int{{1}, {2, 15, 16, 17}, {63, 64, 65, 100, 128, 129}, {700}, {1023, 3, 2049}, {4096, 40, 41, 39, 301}} {
			t.Run(fmt.Sprintf("%s/ctx=%v", name, ctx), func(t *testing.T) {
				c := attnCase{}
				for _, n := range ctx {
					c.pos, c.len = append(c.pos, n-1), append(c.len, 1)
				}
				a := newAttnRig(t, s, c)
				a.run(attnDecodeOp(a.device, a.shape, &a.b, a.w, attnLayer, a.rows))
				a.check("attention")
				for _, v := range get[uint32](a.rig, a.b.AttnScratch, s.MaxRows*s.KVHeads) {
					require.Zero(t, v, "a counter is left")
				}
			})
		}
	}
}

// TestAttnDecodePadding: a padding row touches nothing, and its output is finite.
func TestAttnDecodePadding(t *testing.T) {
	s := attnShapes()["heads=8/kv=2/dim=128/page=64/window=0/norm=false/fp8=false"]
	c := attnCase{pos: []int{99}, len: []int{1}}
	a := newAttnRig(t, s, c)
	a.b.RowSlot, a.b.RowCtx = put(a.rig, []int32{1, -1}), put(a.rig, []int32{100, 0})
	a.b.QKV, a.b.Att = put(a.rig, append(get[uint16](a.rig, a.b.QKV, s.qkvDim()), make([]uint16, s.qkvDim())...)), a.room(4*s.qDim())
	a.run(attnDecodeOp(a.device, a.shape, &a.b, a.w, attnLayer, 2))
	for _, v := range a.getBF16(a.b.Att, 2*s.qDim())[s.qDim():] {
		require.False(t, math.IsNaN(float64(v)))
	}
	a.check("attention")
}

// TestAttnPrefill: chunks of several rows, with and without cached prefixes.
func TestAttnPrefill(t *testing.T) {
	for name, s := range attnShapes() {
		for _, c := range []attnCase{{"one", []int{0}, []int{1}}, {"short", []int{0, 0, 0}, []int{17, 64, 65}}, {"tile", []int{0}, []int{128}},
			{"long", []int{0}, []int{201}}, {"cached", []int{64, 100, 511}, []int{129, 5, 1}}, {"far", []int{900}, []int{40}}} {
			t.Run(name+"/"+c.name, func(t *testing.T) {
				a := newAttnRig(t, s, c)
				a.run(ropeKVOp(a.device, a.shape, &a.b, a.w, 1, 0, a.tokens))
				for _, n := range prefillAttention(a.device, a.shape, &a.b, a.w, 1, 0, a.rows, a.longest, false) {
					a.run(*n.op)
				}
				a.check("attention")
				if a.shape.widenedPages(a.device) > 0 { // the same values, multiplied in the same order
					want := get[uint16](a.rig, a.b.Att, a.tokens*s.qDim())
					a.b.Att = a.room(2 * a.tokens * s.qDim())
					for _, n := range prefillAttention(a.device, a.shape, &a.b, a.w, 1, 0, a.rows, a.longest, true) {
						a.run(*n.op)
					}
					require.Equal(t, want, get[uint16](a.rig, a.b.Att, a.tokens*s.qDim()), "attention over widened pages")
				}
				// The kernel that every architecture has, too.
				a.b.Att = a.room(2 * a.tokens * s.qDim())
				a.run(attnPrefillOp(a.shape, &a.b, a.w, 1, 0, a.rows, a.longest))
				a.check("portable attention")
			})
		}
	}
}

// newDraftRig is a run of n tokens behind pos cached ones, as the kernels see drafts: each token is a decode row of one slot.
func newDraftRig(t testing.TB, s shape, pos, n int) *attnRig {
	s.MaxRows, s.MaxVerify = max(s.MaxRows, bucketFor(n)), n
	a := newAttnRig(t, s, attnCase{pos: []int{pos}, len: []int{n}})
	slots, ctx := make([]int32, n), make([]int32, n)
	for i := range slots {
		slots[i], ctx[i] = get[int32](a.rig, a.b.RowSlot, 1)[0], int32(pos+i+1)
	}
	a.b.RowSlot, a.b.RowCtx = put(a.rig, slots), put(a.rig, ctx)
	return a
}

// row is what a step of one token, the run's i-th, works on.
func (a *attnRig) row(i int) *buffers {
	b := a.b
	b.QKV += ptr(i * a.shape.qkvDim() * bf16Bytes)
	b.Att += ptr(i * a.shape.qDim() * bf16Bytes)
	b.RowSlot += ptr(4 * i)
	b.RowCtx += ptr(4 * i)
	return &b
}

// cacheBytes is the cache as it is stored: values that are NaN compare too.
func (a *attnRig) cacheBytes() []byte {
	return get[byte](a.rig, a.b.KV, len(a.kv)*int(a.shape.kvBytes()))
}

// TestDraftAttention: the tokens of a run get the bits, in the cache and of attention, that they get one step after another. Runs begin at
// every place in a tile, behind the window's edge and before it.
func TestDraftAttention(t *testing.T) {
	for name, s := range attnShapes() {
		for _, pos := range []int{1, 30, 47, 80, 333} {
			for _, n := range []int{2, 7, gemvRows} {
				t.Run(fmt.Sprintf("%s/pos=%d/run=%d", name, pos, n), func(t *testing.T) {
					a := newDraftRig(t, s, pos, n)
					for i := range n {
						a.run(attnDecodeOp(a.device, a.shape, a.row(i), a.w, attnLayer, 1))
					}
					want, wantCache := get[uint16](a.rig, a.b.Att, n*s.qDim()), a.cacheBytes()
					a.b.KV, a.b.Att = a.putKV(a.kv), a.room(2*n*s.qDim())
					attend := attnDecodeOp(a.device, a.shape, &a.b, a.w, attnLayer, n)
					attend.PDL = false // as in a step
					a.run(draftKVOp(a.device, a.shape, &a.b, a.w, attnLayer, n), attend)
					require.Equal(t, want, get[uint16](a.rig, a.b.Att, n*s.qDim()), "attention")
					require.Equal(t, wantCache, a.cacheBytes(), "cache")
				})
			}
		}
	}
}

// TestDraftKeys: what is put into the cache for drafts before attention reads it has the bits that attention puts there itself. Few elements
// tell two ways of rounding apart (one in 50,000 of those that a fused product changes), so there are many.
func TestDraftKeys(t *testing.T) {
	const n = 512
	for name, s := range attnShapes() {
		t.Run(name, func(t *testing.T) {
			a := newDraftRig(t, s, 70, n)
			a.run(draftKVOp(a.device, a.shape, &a.b, a.w, attnLayer, n))
			drafted := a.cacheBytes()
			a.checkCache()
			a.b.KV = a.putKV(a.kv)
			a.run(attnDecodeOp(a.device, a.shape, &a.b, a.w, attnLayer, n))
			attended, differ := a.cacheBytes(), 0
			for i := range attended {
				if attended[i] != drafted[i] {
					differ++
				}
			}
			require.Zero(t, differ, "bytes of %d", len(attended))
		})
	}
}
