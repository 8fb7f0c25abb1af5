//go:build cuda

package cuda

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// TestUpload reads every weight back from the device: dummies made there and files of each type are, bit for bit, what
// [weights.Tensor.Row] decodes, rounded to bf16, in the places that the kernels expect.
func TestUpload(t *testing.T) {
	needGPU(t)
	check := func(t *testing.T, cfg *model.Config, w *weights.Store) {
		o := testOptions
		o.MaxContext = min(o.MaxContext, cfg.MaxPositions)
		b := openTest(t, cfg, w, o, settings{})
		places, parts, err := weightArena(cfg, b.shape, w, &b.buffers, b.planner.layers)
		require.NoError(t, err)
		places.bind(b.memory[0]) // the weights were allocated first
		for _, p := range parts {
			tensor := p.tensor
			n := tensor.RowLen()
			want, row := make([]uint16, n), make([]float32, n)
			got := make([]uint16, n)
			for r := range tensor.Rows() {
				tensor.Row(r, row)
				for i, v := range row {
					want[i] = weights.BF16FromFloat32(v)
				}
				at := r
				switch p.order {
				case rowsOfGate:
					at = r/8*16 + r%8
				case rowsOfUp:
					at = r/8*16 + 8 + r%8
				}
				require.NoError(t, driver.Read(bytesOf(got), *p.to+ptr(p.shift)+ptr(at*p.rowBytes)))
				if !assert.Equal(t, want, got, "%s, row %d", tensor.Name, r) {
					return
				}
			}
		}
	}
	for name, cfg := range backendtest.Models() {
		t.Run("dummy/"+name, func(t *testing.T) { check(t, cfg, weights.NewDummy(cfg)) })
	}
	for _, family := range []string{"llama", "llama-tied", "mistral-window", "qwen2", "qwen3", "llama-awq", "llama-gptq"} { // bfloat16, float16 and float32 files, and four bits
		t.Run("file/"+family, func(t *testing.T) {
			path, err := tinymodel.Dir(family)
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
