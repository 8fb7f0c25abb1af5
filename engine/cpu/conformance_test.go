package cpu

import (
	"testing"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func TestConformance(t *testing.T) {
	backendtest.Run(t, backendtest.Suite{
		Open: func(cfg *model.Config, w *weights.Store, o backend.Options) (backend.Backend, error) {
			return Open(cfg, w, o)
		},
		Options:   backend.Options{Threads: 2},
		PageSizes: []int{16, 5},
	})
}
