//go:build cuda

package cuda

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// BenchmarkSample times the full sampler on rows of a vocabulary of 128,256: peaked logits, a few far above the rest as language models
// make them, and flat ones.
func BenchmarkSample(b *testing.B) {
	s := testShapes()["llama-8b"]
	for name, sampling := range map[string]backend.Sampling{
		"greedy, log probs": {LogProbs: true, TopP: 1, RepetitionPenalty: 1}, "top-k 50, top-p 0.9": {Temperature: 0.8, TopK: 50, TopP: 0.9, RepetitionPenalty: 1},
		"top-p 0.9": {Temperature: 0.8, TopP: 0.9, RepetitionPenalty: 1}, "plain": {Temperature: 0.8, TopP: 1, RepetitionPenalty: 1},
	} {
		for _, flat := range []bool{false, true} {
			for _, n := range []int{1, 32, 256} {
				r := newRig(b, s)
				row := r.normal(s.Vocab, 1.5)
				for i := range 60 {
					if !flat {
						row[(i*7919+5)%s.Vocab] += 12 - float32(i)/8
					}
				}
				logits := r.room(4 * n * s.Vocab)
				index, p := make([]int32, n), make([]slotParams, s.MaxRows)
				for i := range n {
					require.NoError(b, driver.Write(logits+ptr(4*i*s.Vocab), bytesOf(row)))
					index[i], p[i] = int32(i), params(&sampling, s.Vocab)
				}
				none := make([]int32, n)
				for i := range none {
					none[i] = -1
				}
				at := put(r, index)
				buf := &buffers{Logits: logits, SampleSlot: at, SamplePos: at, MaskRow: put(r, none), SlotParam: put(r, p), Bias: r.room(16), Counts: r.room(16),
					Sampled: r.room(16 * n), Top: r.room(8 * maxTop * n)}
				for _, ctas := range []int{1, sampleCluster(r.device, n)} {
					o := sampleOpOn(s, buf, n, ctas)
					fmt.Printf("sample %-20s flat=%-5v rows=%-3d ctas=%d %.1f us\n", name, flat, n, ctas, r.time(b, o)*1e3)
				}
			}
		}
	}
}
