//go:build !invariants

package scheduler_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler"
	"github.com/tokamak-engine/tokamak/engine/speculate"
)

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	sched := scheduler.New(scheduler.Config{
		MaxRows: 8, MaxTokens: 64, MaxContext: 4096, PageSize: 16, NumPages: 2048, ChunkSize: 32, PrefixCache: true,
	})
	for i := range int32(8) {
		sched.Add(&scheduler.Request{Prompt: slices.Repeat([]int32{i}, 100), MaxNewTokens: 3000})
	}
	var batch backend.Batch
	result := backend.Result{Rows: make([]backend.RowResult, 8)}
	step := func() {
		sched.Next(&batch)
		sched.Commit(&result)
	}
	for range 300 {
		step()
	}
	require.Len(t, batch.Rows, 8)
	require.Zero(t, testing.AllocsPerRun(1000, step))
}

// TestDraftsDoNotAllocate: but for the index of each request, which doubles now and then.
func TestDraftsDoNotAllocate(t *testing.T) {
	sched := scheduler.New(scheduler.Config{
		MaxRows: 4, MaxTokens: 64, MaxContext: 4096, PageSize: 16, NumPages: 2048, ChunkSize: 32, PrefixCache: true, RowDrafts: 7, MaxVerify: 32, EagerDrafts: true,
	})
	for i := range int32(4) {
		prompt := slices.Repeat([]int32{i}, 100)
		sched.Add(&scheduler.Request{Prompt: prompt, MaxNewTokens: 3900, Guesses: speculate.NewSequence(speculate.Match{Min: 2, Max: 8}, prompt)})
	}
	var batch backend.Batch
	result := backend.Result{Rows: make([]backend.RowResult, 4)}
	step := func() {
		sched.Next(&batch)
		for i := range batch.Rows { // every draft is accepted
			r := &result.Rows[i]
			r.More = r.More[:0]
			for range batch.Rows[i].Drafts {
				r.More = append(r.More, backend.Sampled{})
			}
		}
		sched.Commit(&result)
	}
	for range 100 {
		step()
	}
	require.Len(t, batch.Rows, 4)
	require.Len(t, batch.Rows[0].Drafts, 7)
	require.Zero(t, testing.AllocsPerRun(300, step))
}
