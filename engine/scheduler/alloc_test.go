//go:build !invariants

package scheduler_test

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler"
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
