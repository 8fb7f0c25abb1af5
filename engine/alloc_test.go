//go:build !invariants && !race

package engine

import (
	"context"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// TestATokenCostsNoAllocation: what grows with the output (its tokens and times) grows by doubling.
func TestATokenCostsNoAllocation(t *testing.T) {
	info := backend.Info{Name: "idle", VocabSize: 32, MaxContext: 1 << 14, MaxRows: 4, MaxTokens: 64, PageSize: 16, NumPages: 1 << 10}
	e := &Engine{live: map[string]*stream{}}
	require.NoError(t, e.start(DefaultOptions(), func() (backend.Backend, error) { return &idleDevice{info: info}, nil }))
	defer e.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const tokens = 8000
	for _, err := range e.Stream(context.Background(), Request{InputIDs: []int32{1}, Sampling: DefaultSampling(tokens)}) {
		require.NoError(t, err)
	}
	runtime.ReadMemStats(&after)
	require.Less(t, float64(after.Mallocs-before.Mallocs)/tokens, 0.25)
}
