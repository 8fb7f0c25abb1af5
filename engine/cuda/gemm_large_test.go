//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// largeEnds are the epilogues that gemm_large_sm90 has.
var largeEnds = map[string]epilogue{"store": epilogueStore, "bias": epilogueBias, "residual": epilogueResidual, "swiglu": epilogueSwiGLU, "logits": epilogueHeadLogits}

// TestLarge holds gemm_large_sm90 against exact arithmetic: every epilogue and width; numbers of tokens at the edges of warps, warpgroups, CTAs,
// clusters and bands; one tile for a few clusters and several for each; rows of W that do not fill a tile, columns that do not fill a stage,
// and K of less than the ring of stages.
func TestLarge(t *testing.T) {
	s := testShapes()["llama-1b"]
	d := newRig(t, s).device
	if d.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", d.Name)
	}
	type product struct {
		end     string
		m, n, k int
		tile    largeTile
	}
	cases := []product{
		{"store", 1, 3072, 576, largeTile{256, 1, 1, 3}}, {"store", 129, 1000, 1000, largeTile{256, 1, 1, 3}}, {"store", 256, 512, 4096, largeTile{128, 1, 1, 3}}, {"store", 300, 264, 72, largeTile{256, 1, 1, 3}}, {"store", 2049, 520, 136, largeTile{192, 1, 1, 3}},
		{"store", 8191, 272, 64, largeTile{224, 1, 1, 3}}, {"store", 2304, 2056, 328, largeTile{256, 1, 1, 3}}, {"store", 500, 8, 8, largeTile{128, 1, 1, 3}},
		{"bias", 200, 1152, 896, largeTile{224, 1, 1, 3}}, {"bias", 1000, 648, 200, largeTile{256, 1, 1, 3}}, {"bias", 17, 4608, 328, largeTile{128, 1, 1, 0}},
		{"residual", 128, 384, 4096, largeTile{128, 1, 1, 3}}, {"residual", 385, 1000, 648, largeTile{256, 1, 1, 3}}, {"residual", 2111, 576, 328, largeTile{192, 1, 1, 3}}, {"residual", 1024, 2048, 264, largeTile{256, 1, 1, 0}}, {"residual", 777, 2104, 384, largeTile{224, 1, 1, 3}},
		{"swiglu", 257, 1024, 512, largeTile{256, 1, 1, 3}}, {"swiglu", 600, 3072, 264, largeTile{224, 1, 1, 3}}, {"swiglu", 4097, 272, 72, largeTile{256, 1, 1, 3}}, {"swiglu", 511, 10240, 136, largeTile{192, 1, 1, 3}}, {"swiglu", 64, 2048, 1024, largeTile{128, 1, 1, 3}},
		{"swiglu", 2560, 2064, 392, largeTile{256, 1, 1, 2}}, {"swiglu", 1500, 2064, 640, largeTile{256, 1, 1, 0}},
		{"store", 256, 1024, 1000, largeTile{144, 2, 1, 0}}, {"store", 129, 3072, 136, largeTile{112, 2, 1, 0}}, {"bias", 200, 1152, 4096, largeTile{208, 2, 1, 0}}, {"residual", 192, 4096, 1032, largeTile{144, 2, 1, 0}}, {"residual", 500, 1000, 520, largeTile{96, 2, 1, 0}},
		{"residual", 255, 264, 8192, largeTile{208, 2, 1, 0}}, {"swiglu", 193, 1040, 648, largeTile{160, 2, 1, 0}}, {"swiglu", 256, 3072, 2048, largeTile{192, 2, 1, 0}},
		{"store", 300, 1000, 328, largeTile{256, 1, 2, 3}}, {"bias", 1000, 648, 392, largeTile{128, 1, 2, 0}}, {"residual", 2111, 4360, 136, largeTile{192, 1, 2, 3}}, {"swiglu", 4097, 1040, 200, largeTile{256, 1, 2, 3}},
		{"logits", 200, 4104, 328, largeTile{256, 1, 1, 3}}, {"logits", 320, 1000, 136, largeTile{224, 1, 1, 3}}, {"logits", 129, 2056, 520, largeTile{160, 2, 1, 0}},
	}
	launch := func(d device, c product, w, x, bias, y ptr) op {
		l := linear{name: "large", m: c.m, n: c.n, k: c.k, end: largeEnds[c.end]}
		params := largeParams{Bias: bias, Y: y}
		if l.end == epilogueHeadLogits {
			params = largeParams{Logits: y}
		}
		return l.callLarge(d, c.tile, w, x, params).op()
	}
	var ops []op
	for _, c := range cases {
		ops = append(ops, launch(d, c, 0, 0, 0, 0))
	}
	newRig(t, s).prepare(ops...)
	for _, c := range cases {
		t.Run(fmt.Sprintf("%s/m=%d/n=%d/k=%d/%+v", c.end, c.m, c.n, c.k, c.tile), func(t *testing.T) {
			l := linear{m: c.m, n: c.n, k: c.k, end: largeEnds[c.end]}
			holdProduct(t, newRig(t, s), l, func(w, x, bias, y ptr) op { return launch(d, c, w, x, bias, y) })
		})
	}
}

// TestLargeNorm holds the RMSNorm that two products split between them.
func TestLargeNorm(t *testing.T) {
	s := testShapes()["llama-1b"]
	d := newRig(t, s).device
	if d.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", d.Name)
	}
	for _, c := range []struct {
		m, n, k, out int
		tile         largeTile
		end          epilogue
	}{
		{129, 576, 1536, 1152, largeTile{128, 1, 1, 3}, epilogueStore}, {520, 1032, 264, 320, largeTile{256, 1, 1, 3}, epilogueBias}, {2100, 648, 328, 640, largeTile{192, 1, 1, 3}, epilogueSwiGLU},
		{256, 4096, 128, 512, largeTile{256, 1, 1, 0}, epilogueSwiGLU}, {192, 2056, 1000, 1024, largeTile{160, 2, 1, 0}, epilogueSwiGLU}, {250, 1032, 520, 1528, largeTile{96, 2, 1, 0}, epilogueStore},
	} {
		t.Run(fmt.Sprintf("m=%d/n=%d", c.m, c.n), func(t *testing.T) {
			r := newRig(t, s)
			first, second := linear{name: "o", m: c.m, n: c.n, k: c.k, end: epilogueResidual}, linear{name: "gate_up", m: c.m, n: c.out, k: c.n, norm: true, end: c.end}
			holdNorm(t, r, first, second, ceilDiv(c.n, c.tile.rows)*c.tile.split*c.m*4, func(a normOperands) []op {
				one := first.callLarge(d, c.tile, a.w1, a.x1, largeParams{Y: a.stream})
				two := second.callLarge(d, c.tile, a.w2, a.scaled, largeParams{Y: a.y, Bias: a.bias})
				two.gamma = a.gamma
				require.True(t, one.norms(two, a.scaled, a.squares))
				return []op{one.op(), two.op()}
			})
		})
	}
}

// largeAll takes every product that gemm_large_sm90 can.
func largeAll(linear) bool { return true }

// TestLargeAgreesWithCPU compares logits after prompts whose products gemm_large_sm90 makes with the CPU backend's.
func TestLargeAgreesWithCPU(t *testing.T) {
	needGPU(t)
	o := backend.Options{MaxRows: 8, MaxTokens: 512, MaxContext: 512, NumPages: 64}
	for name, cfg := range backendtest.Models() {
		t.Run(name, func(t *testing.T) {
			w := weights.NewDummy(cfg)
			gpu := openTest(t, cfg, w, o, settings{large: largeAll})
			cpuOptions := o
			cpuOptions.KVDType = "float32"
			ref, err := cpu.Open(cfg, w, cpuOptions)
			require.NoError(t, err)
			defer ref.Close()
			greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1}
			for _, c := range []struct{ n, chunk int }{{129, 512}, {300, 512}, {400, 200}} {
				prompt := randomPrompt(uint64(c.n), c.n, cfg.VocabSize)
				want := play(t, ref, 0, prompt, 512, 1, greedy, true)
				got := play(t, gpu, 0, prompt, c.chunk, 1, greedy, true)
				compareLogits(t, fmt.Sprintf("prompt of %d in chunks of %d", c.n, c.chunk), want[0].Logits, got[0].Logits)
			}
			ran := 0
			for u := range gpu.functions {
				if u.Symbol == "gemm_large_sm90" {
					ran++
				}
			}
			require.Positive(t, ran, "no step used the kernel")
		})
	}
}

// TestLargeDelayed looks for races of gemm_large_sm90 with its neighbours, as TestDelayedKernels does.
func TestLargeDelayed(t *testing.T) {
	needGPU(t)
	for _, name := range []string{"llama", "qwen2", "qwen3"} {
		t.Run(name, func(t *testing.T) {
			c := exerciseCases()[name]
			run := func(set settings, poison bool) []uint32 {
				set.large = largeAll
				return newExercise(t, openTest(t, c.model, weights.NewDummy(c.model), c.options, set), poison).all()
			}
			want := run(settings{}, false)
			require.NotContains(t, want, uint32(0xDEAD), "logits that are not finite")
			requireSameBits(t, want, run(settings{}, true), "poisoned buffers")
			requireSameBits(t, want, run(settings{delays: delays}, true), "delayed kernels")
			requireSameBits(t, want, run(settings{noPDL: true}, true), "no kernel begins early")
		})
	}
}

// TestLargeKeepsUnits holds that no step needs a tile of gemm_large_sm90 that Open did not compile, and that it takes the products it is given.
func TestLargeKeepsUnits(t *testing.T) {
	for _, name := range []string{"llama-8b", "qwen2.5-7b", "smollm2-135m", "tiny-window", "qwen3-30b-a3b"} {
		s := testShapes()[name]
		p := plannerOf(testDevices["sm_90"], s, layerWeights{})
		p.large = largeAll
		keepsUnits(t, name, p, 256)
		counts := map[string]int{}
		for _, n := range p.step(stepShape{rows: 1, tokens: 1000, samples: 1, longest: 1000}.padded(), hooks{}) {
			if n.op != nil {
				counts[n.op.Unit.Symbol]++
			}
		}
		if s.MoE.Experts > 0 {
			require.Equal(t, 2, counts["gemm_large_sm90"], name)
			continue
		}
		require.Equal(t, 4, counts["gemm_large_sm90"], name)
		require.Equal(t, 1, counts["rmsnorm"], "%s: the first layer's; o and gate_up have one between them", name)
		require.Zero(t, counts["silu_mul"], name)
	}
}

// TestLargeCompiles holds that gemm_large_sm90 uses no local memory with any epilogue and width.
func TestLargeCompiles(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	d, s := testDevices["sm_90"], testShapes()["llama-8b"]
	var units []unit
	for _, tile := range []largeTile{{192, 1, 1, 3}, {256, 1, 1, 3}, {256, 1, 2, 3}, {160, 2, 1, 0}, {208, 2, 1, 0}} {
		for _, end := range largeEnds {
			if end == epilogueSwiGLU && tile.rows/tile.split%16 != 0 {
				continue // no tile for it
			}
			l := linear{m: 512, n: 6144, k: 4096, end: end}
			units = append(units, l.callLarge(d, tile, 0, 0, largeParams{}).op().Unit)
		}
	}
	compileUnits(t, nvrtc, d, s, units, true)
}
