//go:build cuda

package cuda

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
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

// TestFP8GEMV holds gemv_mma with weights of e4m3 against exact products of their values, for every epilogue.
func TestFP8GEMV(t *testing.T) {
	shapes := []struct{ n, k int }{{576, 1536}, {960, 576}, {512, 14336}, {2064, 4096}, {48, 64}, {1040, 2048}, {80, 16}, {176, 1008}}
	ends := []epilogue{epilogueStore, epilogueBias, epilogueResidual, epilogueSwiGLU}
	first := newRig(t, testShapes()["llama-8b"])
	var units []unit
	for _, c := range shapes {
		for _, m := range []int{8, 16} {
			for _, end := range ends {
				for _, norm := range []bool{false, true} {
					units = append(units, linear{m: m, n: c.n, k: c.k, norm: norm, end: end, fp8: true}.op(first.device, linearParams{}).Unit)
				}
			}
		}
	}
	cache := first.compileAll(units)
	for _, c := range shapes {
		for _, m := range []int{1, 5, 9, 16} {
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

// TestFP8GEMM holds gemm_fp8_sm90 against exact products: every epilogue and tile, numbers of tokens at edges, rows of W that do not fill a tile and
// columns that do not fill a stage, CTAs that have many tiles.
func TestFP8GEMM(t *testing.T) {
	s := testShapes()["llama-1b"]
	first := newRig(t, s)
	if first.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", first.device.Name)
	}
	cases := []linear{
		{m: 17, n: 3072, k: 576}, {m: 50, n: 1008, k: 1008}, {m: 33, n: 1152, k: 896, end: epilogueBias}, {m: 64, n: 2048, k: 512, end: epilogueResidual},
		{m: 40, n: 576, k: 1536, end: epilogueResidual}, {m: 32, n: 512, k: 14336, end: epilogueResidual}, {m: 20, n: 3072, k: 576, end: epilogueSwiGLU},
		{m: 64, n: 18432, k: 256, end: epilogueSwiGLU}, {m: 31, n: 48, k: 16, end: epilogueBias},
	}
	var units []unit
	for _, l := range cases {
		for _, tile := range l.fp8Tiles(first.device) {
			units = append(units, l.fp8Op(first.device, tile, weight{}, 0, gemmFP8Params{}).Unit)
		}
	}
	cache := first.compileAll(units)
	for _, l := range cases {
		t.Run(fmt.Sprintf("end=%d/m=%d/n=%d/k=%d", l.end, l.m, l.n, l.k), func(t *testing.T) {
			r := newRig(t, s)
			r.compiler.cache = cache
			p, w := fp8Product(r, l.m, l.n, l.k, false)
			x, out, guard := r.putBF16(p.x), l.m*l.outputs(), 8*l.outputs() // tokens past the last one: nothing may be written there
			var before []float32
			params := gemmFP8Params{}
			switch l.end {
			case epilogueBias:
				before = r.normal(l.n, 1)
				params.Bias = r.putBF16(before)
			case epilogueResidual:
				before = r.normal(out, 1)
			}
			exact, plain := p.finish(l.end, before)
			for _, tile := range l.fp8Tiles(r.device) {
				params.Y = r.room((out + guard) * bf16Bytes)
				if l.end == epilogueResidual {
					bits := make([]uint16, out)
					for i, v := range before {
						bits[i] = weights.BF16FromFloat32(v)
					}
					require.NoError(t, driver.Write(params.Y, bytesOf(bits)))
				}
				r.run(l.fp8Op(r.device, tile, w, x, params))
				requireClose(t, exact, plain, r.getBF16(params.Y, out), fmt.Sprintf("%+v", tile))
				for _, bits := range get[uint16](r, params.Y+ptr(out*bf16Bytes), guard) {
					require.Equal(t, uint16(0xFFFF), bits, "%+v", tile)
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
	for _, c := range cases {
		for _, tile := range c.l1.fp8Tiles(first.device) {
			units = append(units, c.l1.fp8Op(first.device, tile, weight{}, 0, gemmFP8Params{}).Unit)
		}
		units = append(units, c.l2.fp8Op(first.device, c.l2.fp8Tile(first.device), weight{}, 0, gemmFP8Params{Parts: 1}).Unit)
	}
	cache := first.compileAll(units)
	for _, c := range cases {
		t.Run(fmt.Sprintf("m=%d/n=%d", c.l1.m, c.l1.n), func(t *testing.T) {
			r := newRig(t, s)
			r.compiler.cache = cache
			p, w1 := fp8Product(r, c.l1.m, c.l1.n, c.l1.k, false)
			q, w2 := fp8Product(r, c.l2.m, c.l2.n, c.l2.k, true)
			before := r.normal(p.m*p.n, 1)
			x, gamma := r.putBF16(p.x), r.putBF16(q.gamma)
			for _, tile := range c.l1.fp8Tiles(r.device) {
				y, out := r.putBF16(before), r.room(c.l2.m*c.l2.outputs()*bf16Bytes)
				one := &fp8Call{linear: c.l1, tile: tile, w: w1, x: x, params: gemmFP8Params{Y: y}}
				two := &fp8Call{linear: c.l2, tile: c.l2.fp8Tile(r.device), w: w2, x: r.room(p.m * p.n * bf16Bytes), gamma: gamma, params: gemmFP8Params{Y: out}}
				one.norms(r.device, two, two.x, r.room(int(gemmSquaresBytes(r.device))))
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

// TestFP8Blas holds cuBLASLt's products of e4m3 against exact ones of the same quantised values. Its sums are the matrix units' own, of
// fewer bits than fp32.
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
			p.x, _ = r.quantized(b, c.m, c.k)
			cpu.MatMul(p.exact, p.x, p.w, c.m, c.n, c.k)
			for i, v := range p.exact {
				p.plain[i] = toBF16(v)
			}
			for _, end := range []epilogue{epilogueStore, epilogueBias, epilogueResidual} {
				call := driver.GEMM{M: c.m, N: c.n, K: c.k, W: w.Data, X: b.QX, Y: r.room(c.m * c.n * bf16Bytes), FP8: true, WScale: w.Scales, XScale: b.QScale}
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

// TestFP8Upload reads fp8 weights back from the device: dummies made there, plain files quantised at load.
func TestFP8Upload(t *testing.T) {
	needGPU(t)
	check := func(t *testing.T, cfg *model.Config, w *weights.Store) {
		o := testOptions
		o.MaxContext, o.Quantization = min(o.MaxContext, cfg.MaxPositions), "fp8"
		b := openTest(t, cfg, w, o, settings{})
		require.NoError(t, b.context.Bind())
		places, parts, err := weightArena(cfg, b.shape, w, &b.buffers, b.planner.layers)
		require.NoError(t, err)
		places.bind(b.memory[0])
		matrices := 0
		for _, p := range parts {
			if p.tensor.Dummy != nil && p.tensor.Dummy.Bits != 8 || p.tensor.Dummy == nil && p.rowBytes == p.tensor.RowLen()*bf16Bytes {
				continue // bf16: TestUpload's
			}
			matrices++
			tensor := p.tensor
			if tensor.Dummy != nil { // the same values with bytes behind them
				tensor = &weights.Tensor{Name: tensor.Name, DType: weights.F8E4M3, Shape: tensor.Shape, Quant: tensor.Quant}
				row := make([]float32, tensor.RowLen())
				for i := range tensor.Rows() {
					p.tensor.Row(i, row)
					for _, v := range row {
						tensor.Data = append(tensor.Data, weights.F8E4M3FromFloat32(v/tensor.Quant.Scales[0]))
					}
				}
			}
			want, got, scratch := make([]byte, p.rowBytes), make([]byte, p.rowBytes), []float32(nil)
			for r := range tensor.Rows() {
				p.encode(want, tensor, r, 1, &scratch)
				at := r
				if p.order != rowsInOrder {
					at = r/8*16 + r%8 + 8*(p.order-1)
				}
				require.NoError(t, driver.Read(got, *p.to+ptr(p.shift)+ptr(at*p.rowBytes)))
				if !assert.Equal(t, want, got, "%s, row %d", tensor.Name, r) {
					return
				}
			}
		}
		assert.Equal(t, 7*2*cfg.NumLayers, matrices, "values and scales of seven matrices a layer")
	}
	cfg := backendtest.Models()["llama"]
	t.Run("dummy", func(t *testing.T) { check(t, cfg, weights.NewDummy(cfg)) })
	t.Run("file", func(t *testing.T) {
		path, err := tinymodel.Dir("llama")
		require.NoError(t, err)
		cfg, err := model.Load(path, "")
		require.NoError(t, err)
		w, err := weights.Open(path, cfg)
		require.NoError(t, err)
		defer w.Close()
		check(t, cfg, w)
	})
}

// TestFP8DummyAsBF16: a dummy of e4m3 whose matrix lies on the device as bf16 has the same values.
func TestFP8DummyAsBF16(t *testing.T) {
	r := newRig(t, testShapes()["llama-8b"])
	w := weights.NewDummy(backendtest.Models()["llama"])
	tensor, ok := w.Tensor("model.layers.1.mlp.down_proj.weight")
	require.True(t, ok)
	tensor = tensor.F8E4M3()
	n := tensor.RowLen()
	to := r.room(tensor.Rows() * n * bf16Bytes)
	r.run(fillOp(r.device, to, tensor, rowsInOrder))
	got, want := r.getBF16(to, tensor.Rows()*n), make([]float32, n)
	for i := range tensor.Rows() {
		tensor.Row(i, want)
		require.Equal(t, want, got[i*n:(i+1)*n], "row %d", i)
	}
}

// fp8Tolerance is what rounding activations to e4m3 may change of a logit beside bf16's error: each of some ten products a layer path adds a
// relative error of 2^-4/sqrt(12) an element, which averages out over a row to about 2 % of the result.
const fp8Tolerance = 0.15

// TestFP8AgreesWithCPU compares logits of weights quantised at load with the CPU backend's, which computes the same values in fp32: of few tokens
// within bf16's error, of more within that of activations of e4m3.
func TestFP8AgreesWithCPU(t *testing.T) {
	needGPU(t)
	for name, cfg := range backendtest.Models() {
		t.Run(name, func(t *testing.T) {
			w := weights.NewDummy(cfg)
			o := testOptions
			o.Quantization = "fp8"
			gpu := openTest(t, cfg, w, o, settings{})
			o.KVDType = "float32"
			ref, err := cpu.Open(cfg, w, o)
			require.NoError(t, err)
			defer ref.Close()
			greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1}
			for _, c := range []struct{ n, chunk int }{{1, 128}, {5, 128}, {16, 128}, {40, 7}, {17, 128}, {50, 128}, {100, 128}} {
				prompt := randomPrompt(uint64(c.n), c.n, cfg.VocabSize)
				want := play(t, ref, 0, prompt, 128, 3, greedy, true)
				got := play(t, gpu, 0, prompt, c.chunk, 3, greedy, true)
				for i := range want {
					what := fmt.Sprintf("prompt of %d in chunks of %d, token %d", c.n, c.chunk, i)
					if min(c.n, c.chunk) <= gemmFP8Pays {
						compareLogits(t, what, want[i].Logits, got[i].Logits)
					} else {
						var sum, diff float64
						for j, v := range want[i].Logits {
							sum += float64(v) * float64(v)
							diff += float64(v-got[i].Logits[j]) * float64(v-got[i].Logits[j])
						}
						assert.Less(t, math.Sqrt(diff/sum), fp8Tolerance, what)
					}
					if got[i].Token != want[i].Token {
						break // another continuation from here
					}
				}
			}
		})
	}
}

// TestFP8Accuracy compares weights quantised at load with plain ones by the mean divergence of what they predict from the CPU's fp32 with plain
// weights. With activations in bf16 (chunks of 64) the GPU is no further from there than the CPU's quantised weights, whose only rounding that is,
// and bf16's rounding on top. Activations of e4m3 (chunks of 128) are rounded as much as the weights are, so they add as much again.
func TestFP8Accuracy(t *testing.T) {
	needGPU(t)
	for name, cfg := range backendtest.Models() {
		t.Run(name, func(t *testing.T) {
			w := weights.NewDummy(cfg)
			prompt := randomPrompt(7, 200, cfg.VocabSize)
			logits := func(open func(o backend.Options) (backend.Backend, error), quantization string, chunk int) [][]float32 {
				o := testOptions
				o.Quantization = quantization
				b, err := open(o)
				require.NoError(t, err)
				defer func() { require.NoError(t, b.Close()) }()
				var all [][]float32
				for n := 80; n <= len(prompt); n += 10 {
					all = append(all, play(t, b, 0, prompt[:n], chunk, 1, backend.Sampling{TopP: 1, RepetitionPenalty: 1}, true)[0].Logits)
				}
				return all
			}
			onCPU := func(o backend.Options) (backend.Backend, error) {
				o.KVDType = "float32"
				return cpu.Open(cfg, w, o)
			}
			onGPU := func(o backend.Options) (backend.Backend, error) { return Open(cfg, w, o) }
			exact := logits(onCPU, "", 128)
			from := func(other [][]float32) (mean float64) {
				for i := range exact {
					mean += divergence(exact[i], other[i]) / float64(len(exact))
				}
				return mean
			}
			rounded, plain := from(logits(onCPU, "fp8", 128)), from(logits(onGPU, "", 128))
			a16, a8 := from(logits(onGPU, "fp8", 64)), from(logits(onGPU, "fp8", 128))
			t.Logf("KL from fp32, nats: CPU fp8 %.2e, GPU bf16 %.2e, GPU W8A16 %.2e, GPU W8A8 %.2e", rounded, plain, a16, a8)
			assert.Less(t, a16, 1.5*(rounded+plain), "divergence with activations of bf16")
			assert.Less(t, a8, 1.5*(2*rounded+plain), "divergence with activations of e4m3")
		})
	}
}

// BenchmarkFP8 times decode steps and prompts of the 8B shape with weights of e4m3, with gemm_fp8_sm90 and with cuBLASLt, and then the products of
// a layer in chains of all layers, so that weights are cold: each tile, and cuBLASLt.
func BenchmarkFP8(b *testing.B) {
	cfg := benchModels()["llama-8b"]
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 64, MaxTokens: 8192, MaxContext: 4096, MemFraction: 0.85, Quantization: "fp8"}, settings{})
	fmt.Printf("fp8 on %s, read %.3f TB/s\n", be.info.Device, *be.info.ReadBandwidth/1e12)
	decodeCase(b, be, "8b-fp8", 1, 512)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(b, be.context.Bind())
	blasOnly := func(only bool) {
		be.planner.blasOnly, be.copied.blasOnly = only, only
		for shape, g := range be.graphs {
			require.NoError(b, g.Destroy())
			delete(be.graphs, shape)
		}
		clear(be.seen)
		clear(be.eager)
	}
	both := func(rows int) { // in turn on the same card
		decodeCase(b, be, "8b-fp8 gemm_fp8", rows, 512)
		blasOnly(true)
		decodeCase(b, be, "8b-fp8 cuBLASLt", rows, 512)
		blasOnly(false)
	}
	both(32)
	for _, c := range []struct{ rows, in int }{{32, 512}, {1, 2048}} {
		var times []time.Duration
		for range 3 {
			times = append(times, prefill(b, be, c.rows, c.in))
		}
		fmt.Printf("prefill 8b-fp8 %d x %d: %v, %.0f tok/s\n", c.rows, c.in, median(times), float64(c.rows*c.in)/median(times).Seconds())
	}
	fp8Products(b, be)
	both(64)
	for _, rows := range []int{8, 16} {
		decodeCase(b, be, "8b-fp8", rows, 512)
	}
}

// prefill times rows prompts of n tokens, as many in a step as it has room for, each step launched before the last is awaited.
func prefill(b testing.TB, be *Backend, rows, n int) time.Duration {
	info := be.Info()
	per := (n + info.PageSize - 1) / info.PageSize
	var ids []backend.StepID
	var out backend.Result
	began := time.Now()
	for at := 0; at < rows; {
		var batch backend.Batch
		for ; at < rows && (len(batch.Rows)+1)*n <= info.MaxTokens; at++ {
			pages := make([]int32, per)
			for j := range pages {
				pages[j] = int32(at*per + j)
			}
			batch.Rows = append(batch.Rows, backend.Row{Slot: at, Start: &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}},
				Tokens: randomPrompt(uint64(at), n, info.VocabSize), Pages: pages, Sample: true})
		}
		id, err := be.Launch(&batch)
		require.NoError(b, err)
		if ids = append(ids, id); len(ids) > 1 {
			require.NoError(b, be.Wait(ids[len(ids)-2], &out))
		}
	}
	require.NoError(b, be.Wait(ids[len(ids)-1], &out))
	return time.Since(began)
}

// fp8Products prints a line for each product and number of tokens: microseconds, and in brackets the share of the read bandwidth.
func fp8Products(b *testing.B, be *Backend) {
	type way struct {
		what  string
		nodes []node
	}
	var ways []way
	var units []unit
	add := func(what string, make func(w layerWeights) node) {
		var nodes []node
		for _, w := range be.planner.layers {
			nodes = append(nodes, make(w))
		}
		if o := nodes[0].op; o != nil {
			units = append(units, o.Unit)
		}
		ways = append(ways, way{what, nodes})
	}
	buf := &be.buffers
	for i, product := range []func(m int) linear{be.shape.qkv, be.shape.o, be.shape.gateUp, be.shape.down} {
		of := func(l layerWeights) weight { return [...]weight{l.WQKV, l.WO, l.WGU, l.WDown}[i] }
		x, y := buf.X, buf.QKV
		if i > 0 {
			x, y = buf.Act, buf.GU
		}
		for _, m := range []int{1, 16} {
			l := product(m)
			l.fp8 = true
			for blocks := 1; blocks <= 2; blocks++ {
				t := l.mmaTileOf(be.device, blocks)
				add(fmt.Sprintf("%s m=%d gemv blocks=%d", l.name, m, blocks), func(w layerWeights) node {
					o := l.op(be.device, linearParams{W: of(w).Data, X: x, Gamma: w.Norm1, Y: y, RowScale: of(w).Scales})
					o.Unit.Defines = o.Unit.Defines[:strings.Index(o.Unit.Defines, "BLOCKS=")] + fmt.Sprintf("BLOCKS=%d", blocks)
					o.Grid[0], o.Smem = t.grid, t.smem
					return node{op: &o}
				})
			}
		}
		for _, m := range []int{32} {
			l := product(m)
			best := l.fp8Tile(be.device).cost(l, be.device)
			for _, t := range l.fp8Tiles(be.device) {
				if t.cost(l, be.device) > 1.5*best {
					continue
				}
				add(fmt.Sprintf("%s m=%d gemm g=%d s=%d", l.name, m, t.groups, t.split), func(w layerWeights) node {
					o := l.fp8Op(be.device, t, of(w), x, gemmFP8Params{Y: y})
					return node{op: &o}
				})
			}
		}
		for _, m := range []int{32, 8192} {
			l := product(m)
			add(fmt.Sprintf("%s m=%d cuBLASLt", l.name, m), func(w layerWeights) node {
				return node{gemm: &driver.GEMM{M: m, N: l.n, K: l.k, W: of(w).Data, X: buf.Act, Y: buf.GU, FP8: true, WScale: of(w).Scales, XScale: buf.QScale}}
			})
		}
	}
	code, err := be.compiler.all(units, nil)
	require.NoError(b, err)
	maps.Copy(be.code, code)
	line := ""
	for _, w := range ways {
		for i := range w.nodes {
			require.NoError(b, be.ready(&w.nodes[i]))
		}
		g, err := driver.Capture(be.stream, func() error { return be.enqueue(w.nodes) })
		require.NoError(b, err)
		us := timeGraph(b, be, g, 5) * 1e3 / float64(len(w.nodes))
		require.NoError(b, g.Destroy())
		words := strings.Fields(w.what)
		if head := strings.Join(words[:3], " "); line != head {
			fmt.Printf("\n%s:", head)
			line = head
		}
		var bytes float64
		if o := w.nodes[0].op; o != nil {
			bytes = float64(o.Bytes)
		} else {
			bytes = float64(w.nodes[0].gemm.N) * float64(w.nodes[0].gemm.K)
		}
		fmt.Printf(" %s %.1f (%.2f)", strings.Join(words[3:], ","), us, bytes/us*1e6 / *be.info.ReadBandwidth)
	}
	fmt.Println()
}
