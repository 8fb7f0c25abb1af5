//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// TestGEMMSwiGLU holds gemm_swiglu_sm90 against exact arithmetic: every width; numbers of tokens at the edges of warps, warpgroups, CTAs, clusters and
// bands; one tile for a few clusters and several for each; rows of W that do not fill a tile, columns that do not fill a stage, and K of less
// than the ring of stages.
func TestGEMMSwiGLU(t *testing.T) {
	s := testShapes()["llama-1b"]
	d := newRig(t, s).device
	if d.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", d.Name)
	}
	cases := []struct{ m, n, k, rows int }{
		{1, 512, 576, 256}, {64, 2048, 1024, 224}, {129, 1008, 1000, 256}, {200, 48, 8, 192}, {257, 1024, 512, 256}, {300, 272, 72, 256}, {511, 10240, 136, 192}, {600, 3072, 264, 224}, {1500, 2064, 640, 256},
		{2560, 2064, 392, 256}, {4097, 272, 72, 256}, {8191, 272, 64, 224},
	}
	l := func(m, n, k int) linear { return linear{name: "swiglu", m: m, n: n, k: k, end: epilogueSwiGLU} }
	var ops []op
	for _, c := range cases {
		ops = append(ops, l(c.m, c.n, c.k).swigluOp(d, c.rows, 0, 0, 0))
	}
	newRig(t, s).prepare(ops...)
	for _, c := range cases {
		t.Run(fmt.Sprintf("m=%d/n=%d/k=%d/rows=%d", c.m, c.n, c.k, c.rows), func(t *testing.T) {
			l := l(c.m, c.n, c.k)
			holdProduct(t, newRig(t, s), l, func(w, x, _, y ptr) op { return l.swigluOp(d, c.rows, w, x, y) })
		})
	}
}

// TestGEMMSwiGLUAgreesWithCPU compares logits after prompts whose gate_up is gemm_swiglu_sm90's with the CPU backend's.
func TestGEMMSwiGLUAgreesWithCPU(t *testing.T) {
	needGPU(t)
	o := backend.Options{MaxRows: 8, MaxTokens: 512, MaxContext: 512, NumPages: 64}
	for name, cfg := range backendtest.Models() {
		t.Run(name, func(t *testing.T) {
			w := weights.NewDummy(cfg)
			gpu := openTest(t, cfg, w, o, settings{})
			ref := onCPU(t, cfg, w, o)
			greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1}
			for _, c := range []struct{ n, chunk int }{{swigluPays, 512}, {300, 512}, {450, 225}} {
				prompt := randomPrompt(uint64(c.n), c.n, cfg.VocabSize)
				want := play(t, ref, 0, prompt, 512, 1, greedy, true)
				got := play(t, gpu, 0, prompt, c.chunk, 1, greedy, true)
				compareLogits(t, fmt.Sprintf("prompt of %d in chunks of %d", c.n, c.chunk), want[0].Logits, got[0].Logits)
			}
			if gpu.device.SM == 90 {
				ran := false
				for u := range gpu.functions {
					ran = ran || u.Symbol == "gemm_swiglu_sm90"
				}
				require.True(t, ran, "no step used the kernel")
			}
		})
	}
}

// TestGEMMSwiGLUTakesPrompts holds which steps have the kernel, and that it replaces silu_mul.
func TestGEMMSwiGLUTakesPrompts(t *testing.T) {
	for _, c := range []struct {
		tokens  int
		sm      string
		kernels int // of one layer
	}{{swigluPays, "sm_90", 1}, {8192, "sm_90", 1}, {192, "sm_90", 0}, {8192, "sm_80", 0}} {
		p := plannerOf(testDevices[c.sm], testShapes()["llama-8b"], layerWeights{})
		counts := map[string]int{}
		for _, n := range p.step(stepShape{rows: 1, tokens: c.tokens, samples: 1, longest: c.tokens}.padded(), hooks{}) {
			if n.op != nil {
				counts[n.op.Unit.Symbol]++
			}
		}
		require.Equal(t, c.kernels, counts["gemm_swiglu_sm90"], "%+v", c)
		require.Equal(t, 1-c.kernels, counts["silu_mul"], "%+v", c)
	}
}

// TestGEMMSwiGLUCompiles holds that no width uses local memory.
func TestGEMMSwiGLUCompiles(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	d, s := testDevices["sm_90"], testShapes()["llama-8b"]
	var units []unit
	for _, rows := range swigluRows {
		units = append(units, s.gateUp(512).swigluOp(d, rows, 0, 0, 0).Unit)
	}
	compileUnits(t, nvrtc, d, s, units, true)
}
