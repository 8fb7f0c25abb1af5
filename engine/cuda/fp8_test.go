//go:build cuda

package cuda

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"

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
	for _, c := range []struct{ n, k int }{{1024, 4096}, {576, 1536}, {960, 576}, {768, 896}, {512, 14336}, {4256, 4096}, {48, 64}, {1040, 2048}, {80, 16}, {176, 1008}} {
		for _, m := range []int{1, 2, 5, 8, 9, 16} {
			t.Run(fmt.Sprintf("n=%d/k=%d/m=%d", c.n, c.k, m), func(t *testing.T) {
				r := newRig(t, testShapes()["llama-8b"])
				for _, norm := range []bool{false, true} {
					p, w := fp8Product(r, m, c.n, c.k, norm)
					x, gamma := r.putBF16(p.x), r.putBF16(p.gamma)
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
			for _, c := range []struct{ n, chunk int }{{1, 128}, {5, 128}, {16, 128}, {40, 7}, {17, 128}, {100, 128}} {
				prompt := randomPrompt(uint64(c.n), c.n, cfg.VocabSize)
				want := play(t, ref, 0, prompt, 128, 3, greedy, true)
				got := play(t, gpu, 0, prompt, c.chunk, 3, greedy, true)
				for i := range want {
					what := fmt.Sprintf("prompt of %d in chunks of %d, token %d", c.n, c.chunk, i)
					if min(c.n, c.chunk) <= gemvRows {
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
