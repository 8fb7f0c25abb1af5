package cpu

import (
	"runtime"
	"testing"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

func suite() backendtest.Suite {
	return backendtest.Suite{
		Open: func(cfg *model.Config, w *weights.Store, o backend.Options) (backend.Backend, error) {
			return Open(cfg, w, o)
		},
		Options:   backend.Options{Threads: 2},
		PageSizes: []int{16, 5},
	}
}

func TestConformance(t *testing.T) {
	s := suite()
	s.Models = backendtest.Models()
	if fastest() == &portable {
		s.Models = smallModels()
	}
	mixture := *s.Models["qwen3"]
	mixture.NumExperts, mixture.NumExpertsPerToken, mixture.MoEIntermediateSize, mixture.NormTopKProb = 6, 2, 64, true
	s.Models["qwen3-moe"] = &mixture
	backendtest.Run(t, s)
}

// smallModels are the suite's models with sizes that plain Go runs in seconds.
func smallModels() map[string]*model.Config {
	models := backendtest.Models()
	for _, cfg := range models {
		cfg.HiddenSize, cfg.IntermediateSize, cfg.HeadDim = 32, 48, 16
	}
	return models
}

// TestConformanceOfLevels runs the suite on the levels below the fastest, and with more threads than processors.
func TestConformanceOfLevels(t *testing.T) {
	names := []string{}
	for _, ks := range levels {
		names = append(names, ks.name)
	}
	for i, name := range names[1:] {
		t.Run("level="+name, func(t *testing.T) {
			defer disableLevel(names[i])()
			s := suite()
			s.Models = map[string]*model.Config{"llama": smallModels()["llama"]}
			s.PageSizes, s.Options.Threads = nil, runtime.GOMAXPROCS(0)+1
			backendtest.Run(t, s)
		})
	}
}

func TestConformanceOfCaches(t *testing.T) {
	for _, dtype := range []string{"bfloat16", "fp8_e4m3"} {
		t.Run(dtype, func(t *testing.T) {
			s := suite()
			s.Models = map[string]*model.Config{"llama": backendtest.Models()["llama"]}
			s.Options.KVDType = dtype
			backendtest.Run(t, s)
		})
	}
}
