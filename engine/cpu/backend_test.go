package cpu

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func TestOpenRefusesOptions(t *testing.T) {
	cfg := smallModels()["llama"]
	for name, c := range map[string]struct {
		o    backend.Options
		want string
	}{
		"context":      {backend.Options{MaxContext: cfg.MaxPositions + 1}, "the model allows 512"},
		"rows":         {backend.Options{MaxRows: -1}, "rows -1"},
		"page size":    {backend.Options{PageSize: -16}, "page size -16"},
		"threads":      {backend.Options{Threads: -2}, "threads -2"},
		"tokens":       {backend.Options{MaxRows: 8, MaxTokens: 7}, "7 tokens of a step"},
		"fraction":     {backend.Options{MemFraction: 1.5}, "memory fraction 1.5"},
		"kv type":      {backend.Options{KVDType: "fp8_e5m2"}, "KV cache type"},
		"dtype":        {backend.Options{DType: "float16"}, "stored (bfloat16)"},
		"bad dtype":    {backend.Options{DType: "int3"}, `dtype "int3"`},
		"quantization": {backend.Options{Quantization: "int3"}, "quantization"},
	} {
		_, err := Open(cfg, weights.NewDummy(cfg), c.o)
		require.ErrorContains(t, err, c.want, name)
		require.NotContains(t, err.Error(), "\n")
	}
	for _, dtype := range []string{"", "auto", "float32", "bfloat16"} {
		b, err := Open(cfg, weights.NewDummy(cfg), backend.Options{DType: dtype, MaxRows: 1})
		require.NoError(t, err)
		require.Equal(t, "bfloat16", b.Info().DType)
		require.NoError(t, b.Close())
	}
}

func TestSizePages(t *testing.T) {
	const page = 1 << 20
	n, err := sizePages(0, 100, page, 50*page, 1000*page, 0)
	require.NoError(t, err)
	require.Equal(t, 100, n, "no more than the slots can fill")
	n, err = sizePages(0, 10000, page, 50*page, 1000*page, 0.5)
	require.NoError(t, err)
	require.Equal(t, 450, n, "half of the memory, less the weights")
	n, err = sizePages(900, 1, page, 50*page, 1000*page, 0.5)
	require.NoError(t, err)
	require.Equal(t, 900, n, "as asked")

	var short *MemoryError
	_, err = sizePages(960, 1, page, 50*page, 1000*page, 0.5)
	require.ErrorAs(t, err, &short)
	require.Equal(t, MemoryError{1010 * page, 1000 * page}, *short)
	_, err = sizePages(0, 1, page, 50*page, 1000*page, 0.05)
	require.ErrorContains(t, err, "weights and KV pages need 51 MiB, 50 MiB of memory may be used")
	require.Positive(t, freeMemory())
}

// TestIdleCacheCostsNothing: pages are allocated when they are written.
func TestIdleCacheCostsNothing(t *testing.T) {
	cfg := smallModels()["llama"]
	b, err := Open(cfg, weights.NewDummy(cfg), backend.Options{NumPages: 1000, PageSize: 4})
	require.NoError(t, err)
	defer func() { require.NoError(t, b.Close()) }()
	var out backend.Result
	id, err := b.Launch(&backend.Batch{Rows: []backend.Row{{Start: &backend.Start{}, Tokens: []int32{1, 2, 3, 4, 5}, Pages: []int32{700, 3, 5}, Sample: true}}})
	require.NoError(t, err)
	require.NoError(t, b.Wait(id, &out))
	var written []int
	for i, p := range b.stepper.cache.pages {
		if p.f32 != nil {
			written = append(written, i)
		}
	}
	require.Equal(t, []int{3, 700}, written)
}

// TestFailureIsFinal: after a step that failed every call returns its error, and Close still works.
func TestFailureIsFinal(t *testing.T) {
	cfg := smallModels()["llama"]
	b, err := Open(cfg, weights.NewDummy(cfg), backend.Options{Threads: 2, MaxRows: 2})
	require.NoError(t, err)
	b.stepper.net.layers[1].o.tensor.Data = nil // as good as a file cut short
	row := backend.Row{Start: &backend.Start{}, Tokens: []int32{1, 2, 3}, Pages: []int32{0}, Sample: true}
	first, err := b.Launch(&backend.Batch{Rows: []backend.Row{row}})
	require.NoError(t, err)
	_, err = b.Launch(&backend.Batch{Rows: []backend.Row{{Position: 3, Pages: []int32{0}, Sample: true}}})
	require.NoError(t, err)
	var out backend.Result
	failure := b.Wait(first, &out)
	require.ErrorContains(t, failure, "step 1 failed")
	require.Equal(t, failure, b.Wait(first+1, &out))
	_, err = b.Launch(&backend.Batch{Rows: []backend.Row{row}})
	require.True(t, errors.Is(err, failure))
	require.NoError(t, b.Close())
	_, err = b.Launch(&backend.Batch{Rows: []backend.Row{row}})
	require.ErrorIs(t, err, backend.ErrClosed)
}

func TestProgress(t *testing.T) {
	cfg := backendtest.Models()["qwen2"]
	var done, total float64
	b, err := Open(cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 1, Progress: func(phase string, d, all float64, unit string) {
		require.Equal(t, "dummy weights", phase)
		require.Equal(t, "GiB", unit)
		require.GreaterOrEqual(t, d, done)
		done, total = d, all
	}})
	require.NoError(t, err)
	require.InEpsilon(t, total, done, 0.02) // all but the norms and biases
	require.NoError(t, b.Close())
}

// TestThreadsDoNotMatter: the same bits from one thread and from five.
func TestThreadsDoNotMatter(t *testing.T) {
	cfg := backendtest.Models()["qwen3"]
	var want []float32
	for _, threads := range []int{1, 2, 5} {
		b, err := Open(cfg, weights.NewDummy(cfg), backend.Options{Threads: threads, MaxRows: 1})
		require.NoError(t, err)
		pages := []int32{0, 1, 2, 3, 4, 5, 6, 7}
		var out backend.Result
		id, err := b.Launch(&backend.Batch{Rows: []backend.Row{{Start: &backend.Start{}, Tokens: randomTokensOf(cfg.VocabSize, 100), Pages: pages, Sample: true}}})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		id, err = b.Launch(&backend.Batch{Rows: []backend.Row{{Position: 100, Pages: pages, Sample: true, Logits: true}}})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		if want == nil {
			want = append(want, out.Rows[0].Logits...)
		}
		require.Equal(t, want, out.Rows[0].Logits)
		require.NoError(t, b.Close())
	}
}

// TestLongContext: contexts of several attention blocks give the same bits from one chunk, from small ones, and from a last
// token whose blocks are shared between workers.
func TestLongContext(t *testing.T) {
	for _, window := range []int{0, 700} {
		cfg := smallModels()["llama"]
		cfg.MaxPositions, cfg.SlidingWindow = 2048, window
		b, err := Open(cfg, weights.NewDummy(cfg), backend.Options{Threads: 2, MaxRows: 1, MaxTokens: 1200})
		require.NoError(t, err)
		tokens := randomTokensOf(cfg.VocabSize, 1200)
		pages := make([]int32, 128)
		for i := range pages {
			pages[i] = int32(len(pages) - 1 - i)
		}
		last := func(chunks ...int) []float32 {
			var out backend.Result
			position := 0
			for _, n := range chunks {
				row := backend.Row{Tokens: tokens[position : position+n], Position: position, Pages: pages, Sample: true, Logits: true}
				if position == 0 {
					row.Start = &backend.Start{}
				}
				id, err := b.Launch(&backend.Batch{Rows: []backend.Row{row}})
				require.NoError(t, err)
				require.NoError(t, b.Wait(id, &out))
				position += n
			}
			require.Equal(t, len(tokens), position)
			return append([]float32(nil), out.Rows[0].Logits...)
		}
		want := last(1200)
		require.Equal(t, want, last(511, 3, 685, 1))
		require.Equal(t, want, last(1, 1030, 169))
		require.NoError(t, b.Close())
	}
}
