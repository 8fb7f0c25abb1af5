//go:build cuda

package cuda

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// BenchmarkMixed times a step of decode rows and a piece of a prompt together, over the piece's length: what a piece costs those who wait
// for their next token. The launch is timed apart: it is the host's.
func BenchmarkMixed(b *testing.B) {
	be := openBench(b, "llama-8b")
	const ctx = 1100
	decode, _ := staticBatch(b, be, 48, ctx, 64)
	room := 2048 / be.Info().PageSize
	pages := make([]int32, room)
	for i := range pages {
		pages[i] = int32(be.Info().NumPages - 1 - i)
	}
	for _, rows := range []int{0, 48} {
		for _, n := range []int{0, 64, 128, 208, 256, 336, 464, 512, 592, 720, 976, 1024} {
			if rows+n == 0 {
				continue
			}
			var steps, launches []time.Duration
			for range 7 {
				batch := backend.Batch{Rows: append([]backend.Row(nil), decode.Rows[:rows]...)}
				if n > 0 {
					batch.Rows = append(batch.Rows, backend.Row{Slot: 63, Start: &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}},
						Tokens: randomPrompt(uint64(n), n, be.Info().VocabSize), Pages: pages, Sample: true})
				}
				began := time.Now()
				id, err := be.Launch(&batch)
				launches = append(launches, time.Since(began))
				require.NoError(b, err)
				var out backend.Result
				require.NoError(b, be.Wait(id, &out))
				steps = append(steps, time.Since(began))
			}
			fmt.Printf("mixed decode=%d prompt=%d: step %v, launch %v (all %v)\n", rows, n, median(steps[1:]), median(launches[1:]), launches)
		}
	}
}
