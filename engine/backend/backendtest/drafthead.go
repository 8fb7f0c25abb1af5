package backendtest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// WithDraftHead reads a model's directory and that of a draft head for it. The weights are closed when the test ends.
func WithDraftHead(t testing.TB, dir, head string) (*model.Config, *weights.Store) {
	t.Helper()
	cfg, err := model.Load(dir, "")
	require.NoError(t, err)
	w, err := weights.Open(dir, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, w.Close()) })
	cfg.DraftHead, err = model.LoadDraftHead(head, cfg)
	require.NoError(t, err)
	require.NoError(t, w.AddDraftHead(head, cfg.DraftHead))
	return cfg, w
}
