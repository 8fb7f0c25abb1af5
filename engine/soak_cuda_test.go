//go:build cuda

package engine

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// TestSoakOnTheGPU holds Llama-3.2-1B at full load, more clients than its 128 rows and too few pages, with random cancels, for the time in
// TOKAMAK_SOAK (5 s if it is not set).
//
//	TOKAMAK_SOAK=5m go test -tags cuda ./engine -run TestSoakOnTheGPU -v -timeout 0
func TestSoakOnTheGPU(t *testing.T) {
	requireGPU(t)
	length := 5 * time.Second
	if text := os.Getenv("TOKAMAK_SOAK"); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		require.NoError(t, err, "TOKAMAK_SOAK")
	}
	o := DefaultOptions()
	o.LoadFormat, o.Device, o.SkipTokenizerInit = "dummy", "cuda", true
	o.MaxRunningRequests, o.MaxTotalTokens, o.ContextLength, o.MaxQueuedRequests = 128, 128*256, 2048, 40
	dir, err := configs.Dir("llama-3.2-1b")
	require.NoError(t, err)
	e, err := Open(context.Background(), dir, WithOptions(o))
	require.NoError(t, err)
	defer e.Close()
	l := &fullLoad{T: t, e: e, clients: 176, longPrompt: 600, longText: 300}
	if length < 30*time.Second { // or the ends of rounds would take longer than the rounds
		l.longText = 60
	}
	l.run(length)
}
