//go:build cuda

package cuda

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// int4Tensor draws a matrix [n, k] of four bits: scales as f16 stores them, some of them subnormal there, zero points of 0..16 or none.
func int4Tensor(random interface{ Uint32() uint32 }, n, k, group int, zeros bool) *weights.Tensor {
	t := &weights.Tensor{Name: "w", DType: weights.I4, Shape: []int{n, k}, Data: make([]byte, n*k/2), Quant: &weights.Quant{GroupSize: group}}
	for i := range t.Data {
		t.Data[i] = byte(random.Uint32())
	}
	for range n * k / group {
		u := random.Uint32()
		scale := weights.F16ToFloat32(uint16(u & 0x3FF)) // subnormal
		if u>>10%16 > 0 {
			scale = float32(math.Ldexp(1+float64(u&0x3FF)/1024, -2-bits.Len(uint(k))/2))
		}
		t.Quant.Scales = append(t.Quant.Scales, scale)
		if zeros {
			t.Quant.Zeros = append(t.Quant.Zeros, uint8(u>>20%17))
		}
	}
	return t
}

// decoded gives all elements.
func decoded(t *weights.Tensor) []float32 {
	out := make([]float32, 0, t.Rows()*t.RowLen())
	row := make([]float32, t.RowLen())
	for i := range t.Rows() {
		t.Row(i, row)
		out = append(out, row...)
	}
	return out
}

// int4Shapes leave ragged ends everywhere: half a block of 16 rows, steps and groups that end inside 128 columns, idle warps.
var int4Shapes = []struct{ n, k, group int }{
	{272, 4096, 128}, {512, 2048, 128}, {144, 14336, 128}, {80, 8192, 64}, {48, 64, 32}, {72, 96, 32}, {176, 2048, 32}, {176, 1000, 1000}, {40, 3584, 3584}, {136, 5120, 256},
}

// encodeAll lays out a tensor as an upload does, in two pieces.
func encodeAll(t *weights.Tensor) (data, scales []byte) {
	w := weight{Group: t.Quant.GroupSize}
	out := make([][]byte, 2)
	for i, a := range w.int4Arrays(t.RowLen()) {
		out[i] = make([]byte, t.Rows()*a.rowBytes)
		half := t.Rows() / 16 * 8
		a.encode(out[i], t, 0, half, nil)
		a.encode(out[i][half*a.rowBytes:], t, half, t.Rows()-half, nil)
	}
	return out[0], out[1]
}

// TestInt4Layout reads the layout as w4.cuh describes it: lane 4g+t, word j, nibbles i and i+4.
func TestInt4Layout(t *testing.T) {
	r := &rig{TB: t}
	r.random = newRandom()
	for _, c := range int4Shapes {
		for _, zeros := range []bool{false, true} {
			tensor := int4Tensor(r.random, c.n, c.k, c.group, zeros)
			data, scales := encodeAll(tensor)
			kb, groups := ceilDiv(c.k, 128), c.k/c.group
			row := make([]float32, c.k)
			for n := range c.n {
				tensor.Row(n, row)
				for k := range c.k {
					g, step, j, lane, e := n%8, k/128, k%128/32, k%32/8, k%8
					word := binary.LittleEndian.Uint32(data[4*(((n/8*kb+step)*32+4*g+lane)*4+j):])
					q := word >> (4 * (e/2 + e%2*4)) & 15
					s := binary.LittleEndian.Uint32(scales[4*((n/8*groups+k/c.group)*8+g):])
					got := float32(int(q)-int(s&31)) * math.Float32frombits(s&^31)
					if got != row[k] {
						t.Fatalf("%v row %d column %d: got %v, want %v", c, n, k, got, row[k])
					}
				}
			}
		}
	}
}

func TestInt4Group(t *testing.T) {
	tensor := func(n, k, group int) *weights.Tensor {
		return &weights.Tensor{DType: weights.I4, Shape: []int{n, k}, Quant: &weights.Quant{GroupSize: group}}
	}
	for name, c := range map[string]struct {
		tensors []*weights.Tensor
		group   int
		ok      bool
	}{
		"all alike":           {[]*weights.Tensor{tensor(64, 256, 128), tensor(8, 256, 128)}, 128, true},
		"one group a row":     {[]*weights.Tensor{tensor(64, 200, 200)}, 200, true},
		"other groups":        {[]*weights.Tensor{tensor(64, 256, 128), tensor(8, 256, 64)}, 0, false},
		"groups of 16":        {[]*weights.Tensor{tensor(64, 256, 16)}, 0, false},
		"one of them is bf16": {[]*weights.Tensor{tensor(64, 256, 64), {DType: weights.BF16, Shape: []int{8, 256}}}, 0, false},
		"none":                {nil, 0, false},
	} {
		group, ok := int4Group(c.tensors)
		assert.Equal(t, c.ok, ok, name)
		if ok {
			assert.Equal(t, c.group, group, name)
		}
	}
}

// TestW4Kernels holds w4_gemv against exact products for every epilogue, and w4_dequant against the rounded weights, bit for bit.
func TestW4Kernels(t *testing.T) {
	r := newRig(t, testShapes()["llama-8b"])
	rows := []int{1, 2, 7, 8, 9, 16}
	ends := map[bool][]epilogue{true: {epilogueSwiGLU, epilogueBias}, false: {epilogueResidual}} // by norm
	for _, c := range int4Shapes {
		t.Run(fmt.Sprintf("n=%d/k=%d/group=%d", c.n, c.k, c.group), func(t *testing.T) {
			r := r.in(t)
			var ops []op
			for _, m := range rows {
				for norm, ends := range ends {
					for _, end := range ends {
						l := linear{m: m, n: c.n, k: c.k, norm: norm, end: end}
						if tile, ok := l.w4GemvTile(r.device, c.group); ok && (end != epilogueSwiGLU || c.n%16 == 0) {
							ops = append(ops, product{linear: l, w: weight{Group: c.group}}.w4GemvOp(r.device, tile))
						}
					}
				}
			}
			r.prepare(ops...)
			tensor := int4Tensor(r.random, c.n, c.k, c.group, c.n%32 == 0)
			w := decoded(tensor)
			data, scales := encodeAll(tensor)
			on := weight{Format: formatInt4, Data: put(r, data), Scales: put(r, scales), Group: c.group}
			bf16 := r.room(c.n * c.k * 2)
			r.run(dequantOp(r.device, on, c.n, c.k, bf16))
			for i, got := range r.getBF16(bf16, c.n*c.k) {
				if want := toBF16(w[i]); got != want {
					t.Fatalf("element %d of the bf16 copy: got %v, want %v", i, got, want)
				}
			}
			for _, m := range rows {
				for _, norm := range []bool{false, true} {
					p := productWith(r, m, c.n, c.k, w, norm)
					x, gamma := r.putBF16(p.x), r.putBF16(p.gamma)
					for _, end := range ends[norm] {
						if end == epilogueSwiGLU && c.n%16 != 0 {
							continue
						}
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
						tile, ok := l.w4GemvTile(r.device, c.group)
						if !ok {
							continue
						}
						o := product{linear: l, w: on, x: x, gamma: gamma, bias: bias, y: y}.w4GemvOp(r.device, tile)
						r.run(o)
						exact, plain := p.finish(end, before)
						requireClose(t, exact, plain, r.getBF16(y, m*l.outputs()), fmt.Sprintf("%s m=%d norm=%v", o.Unit, m, norm))
					}
				}
			}
		})
	}
}

// TestW4GEMM holds w4_gemm and, in every tile, w4_gemm_sm90 against exact products; w4_gemm one launch behind another, so that its counters must be left
// at zero.
func TestW4GEMM(t *testing.T) {
	r := newRig(t, testShapes()["llama-8b"])
	rows, ends := []int{6, 17, 32, 33, 64, 100, 256}, []epilogue{epilogueStore, epilogueBias, epilogueResidual, epilogueSwiGLU}
	b := &buffers{W4Part: r.room(int(w4GEMMBytes(r.device))), W4Arrived: put(r, make([]uint32, w4Counters))}
	each := func(n, k, group int, f func(g product)) {
		for _, end := range ends {
			for _, m := range rows {
				if n*k > 1<<17 && (m > 100 || end == epilogueStore || end == epilogueBias) { // the small ones have them
					continue
				}
				if end != epilogueSwiGLU || n%16 == 0 {
					f(product{linear: linear{name: "test", m: m, n: n, k: k, end: end}, w: weight{Group: group}})
				}
			}
		}
	}
	ways := func(g product) []op {
		ops := []op{g.w4GEMMOp(r.device, b)}
		for _, t := range g.w4GEMM90Tiles(r.device, g.w.Group) {
			if best, _ := g.w4GEMM90Tile(r.device, g.w.Group); t == best || g.n == int4Shapes[0].n && g.m != 64 {
				ops = append(ops, g.w4GEMM90Call(r.device, t).op())
			}
		}
		return ops
	}
	for _, c := range int4Shapes {
		t.Run(fmt.Sprintf("n=%d/k=%d/group=%d", c.n, c.k, c.group), func(t *testing.T) {
			r := r.in(t)
			tensor := int4Tensor(r.random, c.n, c.k, c.group, c.n%32 == 0)
			data, scales := encodeAll(tensor)
			on := weight{Format: formatInt4, Data: put(r, data), Scales: put(r, scales), Group: c.group}
			all := productWith(r, slices.Max(rows), c.n, c.k, decoded(tensor), false)
			var ops []op
			each(c.n, c.k, c.group, func(g product) { ops = append(ops, ways(g)...) })
			r.prepare(ops...)
			x := r.putBF16(all.x)
			each(c.n, c.k, c.group, func(g product) {
				p := *all
				p.m, p.exact, p.plain = g.m, all.exact[:g.m*c.n], all.plain[:g.m*c.n]
				var before []float32
				switch g.w, g.x = on, x; g.end {
				case epilogueBias:
					before = r.normal(c.n, 1)
					g.bias = r.putBF16(before)
				case epilogueResidual:
					before = r.normal(g.m*c.n, 1)
					r.putBF16(before) // rounds
				}
				exact, plain := p.finish(g.end, before)
				for i := range ways(g) {
					if g.y = r.room(g.m * c.n * 2); g.end == epilogueResidual {
						g.y = r.putBF16(before)
					}
					o := ways(g)[i]
					r.run(o)
					requireClose(t, exact, plain, r.getBF16(g.y, g.m*g.outputs()), fmt.Sprintf("%s m=%d", o.Unit, g.m))
				}
			})
		})
	}
}

// TestW4GEMMNorm holds two products of w4_gemm_sm90 with the norm between them against exact ones.
func TestW4GEMMNorm(t *testing.T) {
	r := newRig(t, testShapes()["llama-1b"])
	if r.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
	}
	const group = 128
	for _, c := range []struct{ l1, l2 linear }{
		{linear{m: 8, n: 640, k: 1536, end: epilogueResidual}, linear{m: 8, n: 1152, k: 640, norm: true, end: epilogueSwiGLU}},
		{linear{m: 17, n: 1024, k: 512, end: epilogueResidual}, linear{m: 17, n: 72, k: 1024, norm: true}},
		{linear{m: 64, n: 12416, k: 256, end: epilogueResidual}, linear{m: 64, n: 64, k: 12416, norm: true}},
	} {
		t.Run(fmt.Sprintf("m=%d/n=%d", c.l1.m, c.l1.n), func(t *testing.T) {
			r := r.in(t)
			matrix := func(l linear) (*exactProduct, weight) {
				tensor := int4Tensor(r.random, l.n, l.k, group, true)
				data, scales := encodeAll(tensor)
				return productWith(r, l.m, l.n, l.k, decoded(tensor), l.norm), weight{Format: formatInt4, Data: put(r, data), Scales: put(r, scales), Group: group}
			}
			p, w1 := matrix(c.l1)
			q, w2 := matrix(c.l2)
			before := r.normal(p.m*p.n, 1)
			x, gamma := r.putBF16(p.x), r.putBF16(q.gamma)
			var calls [][2]*w4GEMM90Call
			var ops []op
			for _, t := range c.l1.w4GEMM90Tiles(r.device, group) {
				last, _ := c.l2.w4GEMM90Tile(r.device, group)
				one := product{linear: c.l1, w: w1, x: x, y: r.putBF16(before)}.w4GEMM90Call(r.device, t)
				two := product{linear: c.l2, w: w2, x: r.room(p.m * p.n * bf16Bytes), gamma: gamma, y: r.room(c.l2.m * c.l2.outputs() * bf16Bytes)}.w4GEMM90Call(r.device, last)
				require.True(r, one.norms(two, two.x, r.room(int(gemmSquaresBytes(r.device)))))
				calls, ops = append(calls, [2]*w4GEMM90Call{one, two}), append(ops, one.op(), two.op())
			}
			r.prepare(ops...)
			for _, c := range calls {
				one, two := c[0], c[1]
				r.run(one.op(), two.op())
				q.x = r.getBF16(one.y, p.m*p.n)
				exact, plain := p.finish(epilogueResidual, before)
				requireClose(t, exact, plain, q.x, fmt.Sprintf("residual stream, %+v", one.tile))
				q.multiply(r, true)
				exact, plain = q.finish(two.end, nil)
				requireClose(t, exact, plain, r.getBF16(two.y, two.m*two.outputs()), fmt.Sprintf("product of the norm, %+v", one.tile))
			}
		})
	}
}

// int4Models are the models of backendtest in four bits, each with another size of groups.
func int4Models() map[string]*model.Config {
	models := map[string]*model.Config{}
	for name, cfg := range backendtest.Models() {
		for _, group := range map[string][]int{"llama": {128}, "mistral": {32}, "qwen2": {0}, "qwen3": {64}}[name] {
			c := *cfg
			c.Quantization = &model.Quantization{Method: "awq", Scheme: "int4", Granularity: "group", GroupSize: group}
			models[fmt.Sprintf("%s-g%d", name, group)] = &c
		}
	}
	return models
}

// What bf16 costs int4Models and the checkpoints beside them, as relative errors of logits: the CPU backend against itself with every activation rounded to
// bf16 where a GPU stores it (q, k, v, attention's output, norms, SwiGLU, the residual stream). The median of a model's tokens is at most 0.0074
// (llama-awq), the worst token 0.0261 (qwen3-g64, the third after a prompt of 5; the next worst anywhere is 0.0225): a random model multiplies a rounding by
// what its norms happen to. As for single kernels, twice as much is allowed.
const int4Median, int4Worst = 2 * 0.0074, 2 * 0.0261

// TestInt4AgreesWithCPU compares logits with the CPU backend's, which computes the same weights in fp32: dummies, and checkpoints of each
// form as others write them.
func TestInt4AgreesWithCPU(t *testing.T) {
	needGPU(t)
	check := func(t *testing.T, cfg *model.Config, w *weights.Store) {
		o := testOptions
		o.MaxContext = min(o.MaxContext, cfg.MaxPositions)
		o.Quantization = "int4"
		gpu := openTest(t, cfg, w, o, settings{})
		for i, l := range gpu.planner.layers {
			for name, w := range map[string]weight{"qkv": l.WQKV, "o": l.WO, "gate_up": l.WGU, "down": l.WDown} {
				require.Equal(t, formatInt4, w.Format, "layer %d, %s", i, name)
			}
		}
		ref := onCPU(t, cfg, w, o)
		var errors []float64
		for _, n := range []int{1, 5, 16, 17, 40, 65, 100} {
			for _, chunk := range []int{128, 7} {
				prompt := randomPrompt(uint64(n), n, cfg.VocabSize)
				greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1}
				want := play(t, ref, 0, prompt, 128, 4, greedy, true)
				got := play(t, gpu, 0, prompt, chunk, 4, greedy, true)
				for i := range want {
					e := relativeError(want[i].Logits, got[i].Logits)
					errors = append(errors, e)
					assert.Less(t, e, int4Worst, "prompt of %d in chunks of %d, token %d", n, chunk, i)
					if got[i].Token != want[i].Token {
						break // nearly tied, as the logits agree: another continuation from here
					}
				}
			}
		}
		slices.Sort(errors)
		t.Logf("relative error of the logits: median %.4f, worst %.4f", errors[len(errors)/2], errors[len(errors)-1])
		assert.Less(t, errors[len(errors)/2], int4Median)
	}
	for name, cfg := range int4Models() {
		t.Run("dummy/"+name, func(t *testing.T) { check(t, cfg, weights.NewDummy(cfg)) })
	}
	for _, name := range []string{"llama-awq", "llama-gptq", "llama-w4a16"} {
		t.Run("file/"+name, func(t *testing.T) {
			path, err := tinymodel.Dir(name)
			require.NoError(t, err)
			cfg, err := model.Load(path, "")
			require.NoError(t, err)
			w, err := weights.Open(path, cfg)
			require.NoError(t, err)
			defer w.Close()
			check(t, cfg, w)
		})
	}
}

// TestInt4Plans: steps of four-bit models need no kernel that Open did not compile, and all of them compile, without local memory to speak of.
func TestInt4Plans(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	d := testDevices["sm_90"]
	for name, groups := range map[string][4]int{"llama-8b": {128, 128, 128, 128}, "smollm2-135m": {64, 64, 64, 64}, "tiny-window": {64, 64, 32, 176}} {
		if name == "llama-8b" && os.Getenv("TOKAMAK_KERNELS") != "all" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			s := testShapes()[name]
			s.MaxRows = 8
			layer := layerWeights{}
			for i, w := range []*weight{&layer.WQKV, &layer.WO, &layer.WGU, &layer.WDown} {
				*w = weight{Format: formatInt4, Group: groups[i]}
			}
			s.Dequantised = s.dequantised([]layerWeights{layer})
			require.Equal(t, 2*s.Inter*s.Hidden, s.Dequantised)
			p := &planner{device: d, shape: s, buffers: &buffers{}, layers: []layerWeights{layer}}
			known := map[unit]bool{}
			var own []unit
			for _, u := range p.units() {
				known[u] = true
				if strings.HasPrefix(u.File, "w4") {
					own = append(own, u)
				}
			}
			for _, tokens := range []int{1, 3, 9, 16, 17, 64, 100, 1000} {
				st := stepShape{rows: 1, tokens: tokens, longest: tokens, samples: 1}.padded()
				for _, n := range p.step(st, hooks{}) {
					if n.op != nil {
						require.True(t, known[n.op.Unit], "%d tokens: %s", tokens, n.op.Unit)
					}
				}
			}
			compileUnits(t, nvrtc, d, s, own, true)
		})
	}
}
