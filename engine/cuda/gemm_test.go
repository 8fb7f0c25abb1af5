//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// TestGEMM holds gemm_sm90 against exact arithmetic: every epilogue, numbers of tokens at edges, tiles that many CTAs share and CTAs that have
// many tiles, rows of W that do not fill a tile and columns that do not fill a stage.
func TestGEMM(t *testing.T) {
	s := testShapes()["llama-1b"]
	if r := newRig(t, s); r.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
	}
	ends := map[string]epilogue{"store": epilogueStore, "bias": epilogueBias, "residual": epilogueResidual, "swiglu": epilogueSwiGLU, "logits": epilogueHeadLogits}
	for _, c := range []struct {
		end     string
		m, n, k int
	}{
		{"store", 17, 3072, 576}, {"store", 50, 1000, 1000}, {"store", 32, 192, 1024}, {"bias", 33, 1152, 896}, {"bias", 100, 640, 2048}, {"residual", 64, 2048, 512}, {"residual", 65, 576, 1536},
		{"residual", 128, 384, 4096}, {"residual", 200, 512, 512}, {"residual", 256, 256, 2048}, {"swiglu", 20, 3072, 576}, {"swiglu", 96, 1024, 512},
		{"swiglu", 129, 2048, 256}, {"swiglu", 250, 512, 576}, {"logits", 31, 20480, 128}, {"logits", 192, 832, 320}, {"logits", 256, 17408, 64},
	} {
		t.Run(fmt.Sprintf("%s/m=%d/n=%d/k=%d", c.end, c.m, c.n, c.k), func(t *testing.T) {
			r := newRig(t, s)
			scratch := put(r, make([]byte, attnScratchBytes(r.device, r.shape)))
			end := ends[c.end]
			p := newProduct(r, c.m, c.n, c.k, false)
			l := linear{name: "gemm", m: c.m, n: c.n, k: c.k, end: end}
			guard := 8 // tokens past the last one: nothing may be written there
			before := []float32(nil)
			params := gemmParams{}
			out := c.m * l.outputs()
			switch end {
			case epilogueHeadLogits:
				params.Logits = r.room((out + guard*c.n) * 4)
			case epilogueResidual:
				before = r.normal(out, 1)
				params.Y = r.putBF16(before)
			default:
				params.Y = r.room((out + guard*l.outputs()) * bf16Bytes)
				if end == epilogueBias {
					before = r.normal(c.n, 1)
					params.Bias = r.putBF16(before)
				}
			}
			b := &buffers{AttnScratch: scratch}
			o := l.op90(r.device, r.shape, b, r.putBF16(p.w), r.putBF16(p.x), params)
			r.run(o)
			exact, plain := p.finish(end, before)
			var got []float32
			if end == epilogueHeadLogits {
				got = get[float32](r, params.Logits, out)
				exact, plain = p.exact, p.plain
			} else {
				got = r.getBF16(params.Y, out)
			}
			requireClose(t, exact, plain, got, "gemm")
			for _, count := range get[uint32](r, scratch+ptr(attnCounterBytes(r.shape)), gemmMaxTiles) {
				require.Zero(t, count, "a counter is left")
			}
			if end != epilogueResidual { // once more: the same bits, and the guard is untouched
				r.run(o)
				if end == epilogueHeadLogits {
					require.Equal(t, got, get[float32](r, params.Logits, out))
					for _, bits := range get[uint32](r, params.Logits+ptr(out*4), guard*c.n) {
						require.Equal(t, ^uint32(0), bits)
					}
				} else {
					require.Equal(t, got, r.getBF16(params.Y, out))
					for _, bits := range get[uint16](r, params.Y+ptr(out*bf16Bytes), guard*l.outputs()) {
						require.Equal(t, uint16(0xFFFF), bits)
					}
				}
			}
		})
	}
}

// TestGEMMHead holds the tokens that the head chooses in its epilogue, greedy and drawn, against its own logits.
func TestGEMMHead(t *testing.T) {
	s := testShapes()["llama-8b"]
	s.Vocab, s.Hidden = 3003*8, 576
	r := newRig(t, s)
	if r.device.SM != 90 {
		t.Skipf("%s has no warpgroup matrix units of sm_90a", r.device.Name)
	}
	for _, m := range []int{17, 40, 128} {
		p := newProduct(r, m, s.Vocab, s.Hidden, false)
		slots, positions, params := make([]int32, m), make([]int32, m), make([]slotParams, s.MaxRows)
		for i := range m {
			slots[i], positions[i] = int32(s.MaxRows-1-i), int32(100+7*i)
			if i%3 > 0 {
				params[slots[i]] = slotParams{Temperature: 0.05 * float32(i), Seed: uint64(i)<<33 + 5}
			}
		}
		b := &buffers{Head: weight{Data: r.putBF16(p.w)}, XS: r.putBF16(p.x), SampleSlot: put(r, slots), SamplePos: put(r, positions), SlotParam: put(r, params), Logits: r.room(4 * m * s.Vocab),
			HeadScratch: r.room(int(headScratchBytes(r.device, s))), SlotToken: r.room(4 * s.MaxRows), Step: put(r, []uint64{6}), Ring: r.room(ringEntries * newRingLayout(s).size),
			AttnScratch: put(r, make([]byte, attnScratchBytes(r.device, s)))}
		r.run(gemmHeadOp(r.device, s, b, m, true), gemmHeadOp(r.device, s, b, m, false), sampleFastOp(r.device, s, b, m))
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

// BenchmarkDecodeBatches times decode steps of the batches that gemm_sm90 takes, with it and with cuBLASLt, in turn on the same card.
func BenchmarkDecodeBatches(b *testing.B) {
	for _, name := range []string{"llama-8b"} {
		cfg := benchModels()[name]
		for _, blas := range []bool{false, true} {
			be, err := openWith(cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 256, MaxTokens: 2048, MaxContext: 4096, MemFraction: 0.85}, settings{blasOnly: blas})
			require.NoError(b, err)
			for _, c := range []struct{ rows, in int }{{24, 512}, {32, 512}, {48, 512}} {
				fmt.Printf("cuBLASLt=%v ", blas)
				decodeCase(b, be, name, c.rows, c.in)
			}
			require.NoError(b, be.Close())
		}
	}
}
