//go:build cuda

package cuda

import (
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

// TestFP8Upload reads fp8 weights back from the device: dummies made there, plain files quantised at load.
func TestFP8Upload(t *testing.T) {
	needGPU(t)
	check := func(t *testing.T, cfg *model.Config, w *weights.Store) {
		o := testOptions
		o.MaxContext, o.Quantization = min(o.MaxContext, cfg.MaxPositions), "fp8"
		b := openTest(t, cfg, w, o, settings{})
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
			ref := onCPU(t, cfg, w, o)
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
