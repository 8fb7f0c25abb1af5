//go:build cuda

package cuda

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// fp8Layers are n layers whose weights are e4m3, without memory.
func fp8Layers(n int) []layerWeights {
	w := weight{Format: formatFP8}
	layers := make([]layerWeights, n)
	for i := range layers {
		layers[i] = layerWeights{WQKV: w, WO: w, WGU: w, WDown: w}
	}
	return layers
}

// fp8Shape is s with weights of e4m3, where the library multiplies them and where it does not.
func fp8Shape(s shape, blas bool) shape {
	s.BlasFP8 = blas
	return s
}

// TestFP8Plans compiles every kernel of plans with weights of e4m3, and holds that no step needs another.
func TestFP8Plans(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	for _, c := range []struct {
		device, model string
		blas          bool
	}{{"sm_90", "smollm2-135m", true}, {"sm_90", "llama-8b", true}, {"sm_90", "smollm2-135m", false}, {"sm_80", "smollm2-135m", false}, {"sm_89", "tiny-window", false}} {
		t.Run(fmt.Sprintf("%s/%s/blas=%v", c.device, c.model, c.blas), func(t *testing.T) {
			if c.model == "llama-8b" && os.Getenv("TOKAMAK_KERNELS") != "all" {
				t.Skip("TOKAMAK_KERNELS=all compiles large models")
			}
			d, s := testDevices[c.device], fp8Shape(testShapes()[c.model], c.blas)
			p := plannerOf(d, s, fp8Layers(1)[0])
			var units []unit
			for _, u := range p.units() {
				if u.File != "sample.cu" && u.File != "attn_decode.cu" { // as with other weights
					units = append(units, u)
				}
			}
			compileUnits(t, nvrtc, d, s, append(units, unit{File: "fp8_fill.cu", Symbol: "fp8_fill"}), c.device == "sm_90")
			keepsUnits(t, c.model, p, 32)
		})
	}
}

// TestFP8Links holds which products of a step gemm_fp8_sm90 hands to itself as f16: those behind a norm that it makes, and down.
func TestFP8Links(t *testing.T) {
	d, s := testDevices["sm_90"], testShapes()["llama-8b"]
	p := &planner{device: d, shape: fp8Shape(s, true), buffers: &buffers{}, layers: fp8Layers(2)}
	var got []string
	for _, n := range p.step(stepShape{rows: 32, decode: 32, tokens: 32, samples: 32}.padded(), hooks{}) {
		if n.fp8 != nil {
			got = append(got, fmt.Sprintf("%s %v %v", n.fp8.name, n.fp8.xF16, n.fp8.yF16))
		}
	}
	layer := []string{"gemm_fp8_o false false", "gemm_fp8_gate_up true true", "gemm_fp8_down true false"}
	require.Equal(t, slices.Concat([]string{"gemm_fp8_qkv false false"}, layer, []string{"gemm_fp8_qkv true false"}, layer), got)
}

// fp8Product is newProduct of a weight of e4m3.
func fp8Product(r *rig, m, n, k int, norm bool) (*exactProduct, weight) {
	r.Helper()
	w := r.normal(n*k, 1/math.Sqrt(float64(k)))
	data := make([]byte, 0, 4*len(w))
	for _, v := range w {
		data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
	}
	t := (&weights.Tensor{Name: "w", DType: weights.F32, Shape: []int{n, k}, Data: data}).F8E4M3()
	for i := range n {
		t.Row(i, w[i*k:(i+1)*k])
	}
	bytes, scales, scratch := make([]byte, n*k), make([]byte, 4*n), []float32(nil)
	encodeFP8(bytes, t, 0, n, &scratch)
	encodeFP8Scales(scales, t, 0, n, &scratch)
	return productWith(r, m, n, k, w, norm), weight{Format: formatFP8, Data: put(r, bytes), Scales: put(r, scales)}
}

// TestFP8GEMV holds gemv and gemv_mma with weights of e4m3 against exact products of their values, for every epilogue.
func TestFP8GEMV(t *testing.T) {
	shapes := []struct{ n, k int }{{576, 1536}, {960, 576}, {512, 14336}, {2064, 4096}, {48, 64}, {1040, 2048}, {80, 16}, {176, 1008}}
	ends := []epilogue{epilogueStore, epilogueBias, epilogueResidual, epilogueSwiGLU}
	first := newRig(t, testShapes()["llama-8b"])
	var units []unit
	for _, c := range shapes {
		for _, m := range []int{1, 2, 8, 16} {
			for _, end := range ends {
				for _, norm := range []bool{false, true} {
					units = append(units, linear{m: m, n: c.n, k: c.k, norm: norm, end: end, fp8: true}.op(first.device, linearParams{}).Unit)
				}
			}
		}
	}
	cache := first.compileAll(units)
	for _, c := range shapes {
		for _, m := range []int{1, 2, 5, 9, 16} {
			t.Run(fmt.Sprintf("n=%d/k=%d/m=%d", c.n, c.k, m), func(t *testing.T) {
				r := newRig(t, testShapes()["llama-8b"])
				r.compiler.cache = cache
				for _, norm := range []bool{false, true} {
					p, w := fp8Product(r, m, c.n, c.k, norm)
					x, gamma := r.putBF16(p.x), r.putBF16(p.gamma)
					for _, end := range ends {
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
						l := linear{name: "test", m: m, n: c.n, k: c.k, norm: norm, end: end, fp8: true}
						o := l.op(r.device, linearParams{W: w.Data, X: x, Gamma: gamma, Bias: bias, Y: y, RowScale: w.Scales})
						r.run(o)
						exact, plain := p.finish(end, before)
						requireClose(t, exact, plain, r.getBF16(y, m*l.outputs()), fmt.Sprintf("%s norm=%v", o.Unit, norm))
					}
				}
			})
		}
	}
}

// compileAll compiles units on every processor, and returns the cache that holds them.
func (r *rig) compileAll(units []unit) *cubinCache {
	r.Helper()
	r.compiler.cache = openCache(r.TempDir())
	_, err := r.compiler.all(units, nil)
	require.NoError(r, err)
	return r.compiler.cache
}

// f16Column is where column i of x lies in a row of what gemm_fp8_sm90 leaves to itself: of 16 columns 0, 8, 2, 10 .. 6, 14, 1, 9 .. 7, 15.
func f16Column(i int) int {
	i, j := i/fp8Group*fp8Group, i%fp8Group
	return i + j%8/2*2 + j%2*8 + j/8
}

// asF16 makes room with x, m rows of k, as X_F16 of gemm_fp8_sm90.cu has it, of x that putTokens put at p.
func (r *rig) asF16(p ptr, m, k int) ptr {
	r.Helper()
	to := r.room(pad(m, 8) * k * bf16Bytes)
	bits := make([]uint16, m*k)
	for i, b := range get[uint16](r, p, m*k) {
		at := i/k*k + f16Column(i%k)
		v := math.Float32bits(fromBF16(b) / 16)
		if e := v >> 23 & 0xFF; e > 127-15 && e < 127+16 { // else it is small enough to be 0 here
			bits[at] = uint16(v>>16&0x8000 | (e-127+15)<<10 | v>>13&0x3FF)
		}
	}
	require.NoError(r, driver.Write(to, bytesOf(bits)))
	return to
}

// getF16 reads what the kernel left to itself, m rows of k.
func (r *rig) getF16(p ptr, m, k int) []float32 {
	r.Helper()
	bits, out := get[uint16](r, p, m*k), make([]float32, m*k)
	for i := range out {
		out[i] = 16 * weights.F16ToFloat32(bits[i/k*k+f16Column(i%k)])
	}
	return out
}

// fp8GEMMCases are products at the edges: numbers of tokens, rows of W that do not fill a tile and columns that do not fill a stage, CTAs that have
// many tiles, each with one kind of x and of outputs.
var fp8GEMMCases = []fp8Call{
	{linear: linear{m: 17, n: 3072, k: 576}}, {linear: linear{m: 50, n: 1008, k: 1008}, xF16: true}, {linear: linear{m: 33, n: 1152, k: 896, end: epilogueBias}},
	{linear: linear{m: 64, n: 2048, k: 512, end: epilogueResidual}, xF16: true}, {linear: linear{m: 40, n: 576, k: 1536, end: epilogueResidual}},
	{linear: linear{m: 32, n: 512, k: 14336, end: epilogueResidual}, xF16: true}, {linear: linear{m: 20, n: 3072, k: 576, end: epilogueSwiGLU}, yF16: true},
	{linear: linear{m: 64, n: 18432, k: 256, end: epilogueSwiGLU}, xF16: true}, {linear: linear{m: 31, n: 48, k: 16, end: epilogueBias}, xF16: true},
	{linear: linear{m: 27, n: 18432, k: 256, end: epilogueSwiGLU}, xF16: true, yF16: true},
}

// TestFP8GEMM holds gemm_fp8_sm90 against exact products: every epilogue and tile.
func TestFP8GEMM(t *testing.T) {
	s := testShapes()["llama-1b"]
	first := newRig(t, s)
	if first.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", first.device.Name)
	}
	var units []unit
	for _, c := range fp8GEMMCases {
		for _, c.tile = range c.fp8Tiles(first.device) {
			units = append(units, c.op(first.device).Unit)
		}
	}
	cache := first.compileAll(units)
	for _, c := range fp8GEMMCases {
		t.Run(fmt.Sprintf("end=%d/m=%d/n=%d/k=%d", c.end, c.m, c.n, c.k), func(t *testing.T) {
			r := newRig(t, s)
			r.compiler.cache = cache
			var p *exactProduct
			p, c.w = fp8Product(r, c.m, c.n, c.k, false)
			c.x = r.putTokens(p.x, c.k)
			if c.xF16 {
				c.x = r.asF16(c.x, c.m, c.k)
			}
			out, guard := c.m*c.outputs(), 8*c.outputs() // tokens past the last one: nothing may be written there
			var before []float32
			switch c.end {
			case epilogueBias:
				before = r.normal(c.n, 1)
				c.params.Bias = r.putBF16(before)
			case epilogueResidual:
				before = r.normal(out, 1)
			}
			exact, plain := p.finish(c.end, before)
			for _, c.tile = range c.fp8Tiles(r.device) {
				c.params.Y = r.room((out + guard) * bf16Bytes)
				if c.end == epilogueResidual {
					bits := make([]uint16, out)
					for i, v := range before {
						bits[i] = weights.BF16FromFloat32(v)
					}
					require.NoError(t, driver.Write(c.params.Y, bytesOf(bits)))
				}
				r.run(c.op(r.device))
				got := r.getBF16(c.params.Y, out)
				if c.yF16 {
					got = r.getF16(c.params.Y, c.m, c.outputs())
				}
				requireClose(t, exact, plain, got, fmt.Sprintf("%+v", c.tile))
				for _, bits := range get[uint16](r, c.params.Y+ptr(out*bf16Bytes), guard) {
					require.Equal(t, uint16(0xFFFF), bits, "%+v", c.tile)
				}
			}
		})
	}
}

// TestFP8GEMMNorm holds a norm that two products of gemm_fp8_sm90 share, in every tile of the first, against the exact one of what the first left.
func TestFP8GEMMNorm(t *testing.T) {
	s := testShapes()["llama-1b"]
	first := newRig(t, s)
	if first.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", first.device.Name)
	}
	var units []unit
	cases := []struct{ l1, l2 linear }{
		{linear{m: 17, n: 576, k: 1536, end: epilogueResidual}, linear{m: 17, n: 1152, k: 576, norm: true, end: epilogueSwiGLU}},
		{linear{m: 64, n: 1008, k: 528, end: epilogueResidual}, linear{m: 64, n: 320, k: 1008, norm: true}},
		{linear{m: 40, n: 12304, k: 144, end: epilogueResidual}, linear{m: 40, n: 64, k: 12304, norm: true}},
	}
	// calls are the two products, linked: pointers may be 0.
	calls := func(l1, l2 linear, tile fp8Tile, scaled, squares ptr) (one, two *fp8Call) {
		one, two = &fp8Call{linear: l1, tile: tile}, &fp8Call{linear: l2, tile: l2.fp8Tile(first.device), x: scaled}
		one.norms(first.device, two, scaled, squares)
		return one, two
	}
	for _, c := range cases {
		for _, tile := range c.l1.fp8Tiles(first.device) {
			one, two := calls(c.l1, c.l2, tile, 0, 0)
			units = append(units, one.op(first.device).Unit, two.op(first.device).Unit)
		}
	}
	slices.SortFunc(units, func(a, b unit) int { return strings.Compare(a.Defines, b.Defines) })
	cache := first.compileAll(slices.Compact(units))
	for _, c := range cases {
		t.Run(fmt.Sprintf("m=%d/n=%d", c.l1.m, c.l1.n), func(t *testing.T) {
			r := newRig(t, s)
			r.compiler.cache = cache
			p, w1 := fp8Product(r, c.l1.m, c.l1.n, c.l1.k, false)
			q, w2 := fp8Product(r, c.l2.m, c.l2.n, c.l2.k, true)
			before := r.normal(p.m*p.n, 1)
			x, gamma := r.putTokens(p.x, c.l1.k), r.putBF16(q.gamma)
			for _, tile := range c.l1.fp8Tiles(r.device) {
				y, out := r.putBF16(before), r.room(c.l2.m*c.l2.outputs()*bf16Bytes)
				one, two := calls(c.l1, c.l2, tile, r.room(pad(p.m, 8)*p.n*bf16Bytes), r.room(int(gemmSquaresBytes(r.device))))
				one.w, one.x, one.params.Y, one.params.Gamma = w1, x, y, gamma
				two.w, two.params.Y = w2, out
				r.run(one.op(r.device), two.op(r.device))
				q.x = r.getBF16(y, p.m*p.n)
				exact, plain := p.finish(epilogueResidual, before)
				requireClose(t, exact, plain, q.x, fmt.Sprintf("residual stream, %+v", tile))
				q.multiply(r, true)
				exact, plain = q.finish(c.l2.end, nil)
				requireClose(t, exact, plain, r.getBF16(out, c.l2.m*c.l2.outputs()), fmt.Sprintf("product of the norm, %+v", tile))
			}
		})
	}
}

// quantized reads m rows of k values that fp8_quantize wrote, in the plain order of columns.
func (r *rig) quantized(b *buffers, m, k int) (values, scales []float32) {
	r.Helper()
	values, scales = make([]float32, m*k), get[float32](r, b.QScale, m)
	for i, q := range get[byte](r, b.QX, m*k) {
		j, group := i%fp8Group, i/fp8Group*fp8Group
		column := j/4*2 + j%2*8 + j%4/2
		values[group+column] = weights.F8E4M3ToFloat32(q) * scales[i/k]
	}
	return values, scales
}

// TestFP8Quantize: a quantised value is within half a step of E4M3 of the exact one (a sixteenth of it, or 2^-10 of the scale), and as far
// as bf16 arithmetic takes it besides.
func TestFP8Quantize(t *testing.T) {
	for _, k := range []int{16, 576, 4096, 14336} {
		for _, m := range []int{1, 17} {
			t.Run(fmt.Sprintf("k=%d/m=%d", k, m), func(t *testing.T) {
				s := testShapes()["llama-8b"]
				r := newRig(t, s)
				b := &buffers{QX: r.room(m * k), QScale: r.room(4 * m)}
				x, gamma, gu := r.normal(m*k, 1.5), r.normal(k, 0.3), r.normal(2*m*k, 1.5)
				for i := range gamma {
					gamma[i] += 1
				}
				clear(x[:k]) // a row of zeros
				px, pg, pgu := r.putBF16(x), r.putBF16(gamma), r.putBF16(gu)
				for source, from := range []ptr{px, px, pgu} {
					r.run(fp8QuantizeOp(b, source, from, pg, m, k))
					values, scales := r.quantized(b, m, k)
					want := make([]float32, k)
					for i := range m {
						switch source {
						case quantizePlain:
							copy(want, x[i*k:(i+1)*k])
						case quantizeNorm:
							cpu.RMSNorm(want, x[i*k:(i+1)*k], gamma, s.Eps)
						case quantizeSwiGLU:
							for j := range want {
								gate := i*2*k + j/8*16 + j%8
								cpu.SwiGLU(want[j:j+1], gu[gate:gate+1], gu[gate+8:gate+9])
							}
						}
						var most float64
						for j, v := range want {
							a := math.Abs(float64(v))
							most = max(most, a)
							require.InDelta(t, v, values[i*k+j], max(a/16, float64(scales[i])*0x1p-10)+a*0x1p-7, "source %d, row %d, column %d", source, i, j)
						}
						require.InEpsilon(t, most/448+1e-9, float64(scales[i])+1e-9, 0x1p-7, "source %d, scale of row %d", source, i)
					}
				}
			})
		}
	}
}

// TestFP8Dequant: the copy is bf16 of what the weights stand for.
func TestFP8Dequant(t *testing.T) {
	for _, c := range []struct{ n, k int }{{48, 64}, {576, 1536}, {1024, 4096}} {
		r := newRig(t, testShapes()["llama-8b"])
		p, w := fp8Product(r, 1, c.n, c.k, false)
		out := r.room(c.n * c.k * bf16Bytes)
		r.run(fp8DequantOp(r.device, w, c.n, c.k, out))
		for i, v := range r.getBF16(out, c.n*c.k) {
			require.Equal(t, toBF16(p.w[i]), v, "n=%d k=%d element %d", c.n, c.k, i)
		}
	}
}

// matrixUnits is what the matrix units of sm_90 make of the products of two rows of e4m3 if the sum stays in them: 32 columns at a time are added to
// what went before, each cut off 13 bits below the leading bit of the largest. Rounded to bf16 that errs by 3.20e-3 (rms) for 4,096 columns such as
// TestFP8Blas has and by 4.86e-3 for 14,336, where cuBLASLt's fast sums erred by 3.19e-3 and 4.98e-3 on an H200.
func matrixUnits(x, w []float32) (sum float64) {
	const step = 32
	var products [step]float64
	for at := 0; at < len(x); at += step {
		n := min(step, len(x)-at)
		largest := math.Abs(sum)
		for j := range n {
			products[j] = float64(x[at+j]) * float64(w[at+j])
			largest = max(largest, math.Abs(products[j]))
		}
		_, exponent := math.Frexp(largest)
		unit, inverse := math.Ldexp(1, exponent-14), math.Ldexp(1, 14-exponent)
		units := int64(sum * inverse)
		for _, v := range products[:n] {
			units += int64(v * inverse)
		}
		sum = float64(units) * unit
	}
	return sum
}

// sumFP8 makes plain of x and w, which are e4m3 times scales of their rows: sums of the matrix units, or else exact ones, rounded.
func (p *exactProduct) sumFP8(xScales, wScales []float32, fast bool) {
	unscaled := func(v, scales []float32) []float32 {
		out, n := make([]float32, len(v)), len(v)/len(scales)
		for i := range v {
			out[i] = weights.F8E4M3ToFloat32(weights.F8E4M3FromFloat32(v[i] / scales[i/n]))
		}
		return out
	}
	x, w := unscaled(p.x, xScales), unscaled(p.w, wScales)
	var wg sync.WaitGroup
	for i := range p.m {
		wg.Go(func() {
			for j := range p.n {
				at := i*p.n + j
				sum := float64(p.exact[at])
				if fast {
					sum = matrixUnits(x[i*p.k:][:p.k], w[j*p.k:][:p.k]) * float64(xScales[i]) * float64(wScales[j])
				}
				p.plain[at] = toBF16(float32(sum))
			}
		})
	}
	wg.Wait()
}

// TestFP8Blas holds cuBLASLt's products of e4m3, summed as a step has them summed, against exact ones of the same quantised values: they err by twice
// as much as sums of the matrix units do, rounded, at most.
func TestFP8Blas(t *testing.T) {
	for _, c := range []struct{ m, n, k int }{{17, 576, 576}, {64, 1024, 4096}, {100, 512, 14336}, {256, 960, 576}, {300, 1536, 1024}} {
		t.Run(fmt.Sprintf("m=%d/n=%d/k=%d", c.m, c.n, c.k), func(t *testing.T) {
			r := newRig(t, testShapes()["llama-8b"])
			if r.device.SM != 90 {
				t.Skipf("%s: the library does not scale rows", r.device.Name)
			}
			if v, err := driver.BlasLtVersion(); err != nil || v < driver.MinBlasLtFP8 {
				t.Skipf("cuBLASLt %d does not scale rows (%v)", v, err)
			}
			blas, err := driver.OpenBlasLt(r.room(blasWorkspaceBytes), blasWorkspaceBytes)
			require.NoError(t, err)
			defer blas.Close()
			p, w := fp8Product(r, c.m, c.n, c.k, false)
			b := &buffers{QX: r.room(c.m * c.k), QScale: r.room(4 * c.m)}
			r.run(fp8QuantizeOp(b, quantizePlain, r.putBF16(p.x), 0, c.m, c.k))
			var scales []float32
			p.x, scales = r.quantized(b, c.m, c.k)
			cpu.MatMul(p.exact, p.x, p.w, c.m, c.n, c.k)
			fast := c.k <= fastSumsColumns
			p.sumFP8(scales, get[float32](r, w.Scales, c.n), fast)
			for _, end := range []epilogue{epilogueStore, epilogueBias, epilogueResidual} {
				call := driver.GEMM{M: c.m, N: c.n, K: c.k, W: w.Data, X: b.QX, Y: r.room(c.m * c.n * bf16Bytes), FP8: true, WScale: w.Scales, XScale: b.QScale,
					FastSums: fast}
				var before []float32
				switch end {
				case epilogueBias:
					before = r.normal(c.n, 1)
					call.Bias = r.putBF16(before)
				case epilogueResidual:
					before = r.normal(c.m*c.n, 1)
					call.Y, call.Accumulate = r.putBF16(before), true
				}
				require.NoError(t, blas.Run(call, r.stream))
				require.NoError(t, r.stream.Synchronize())
				exact, plain := p.finish(end, before)
				requireClose(t, exact, plain, r.getBF16(call.Y, c.m*c.n), fmt.Sprintf("epilogue %d", end))
			}
		})
	}
}
