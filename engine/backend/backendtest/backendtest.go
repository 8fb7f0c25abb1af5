// Package backendtest is the conformance suite of [backend.Backend], as testing/fstest is that of fs.FS: every backend runs it
// from a test of its own.
//
//	func TestConformance(t *testing.T) {
//		backendtest.Run(t, backendtest.Suite{Open: func(cfg *model.Config, w *weights.Store, o backend.Options) (backend.Backend, error) {
//			return cpu.Open(cfg, w, o)
//		}})
//	}
//
// It needs no file: models are small, made of dummy weights. It holds a backend against itself (one way to schedule a sequence
// against another) and against what the contract says of sampling; whether the numbers are right is for tests against goldens
// or another backend.
package backendtest

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// Suite says what to test and how exact it has to be.
type Suite struct {
	// Open is the backend's own.
	Open func(cfg *model.Config, w *weights.Store, o backend.Options) (backend.Backend, error)
	// Options are passed to Open; the suite sets MaxRows, MaxTokens, MaxContext, PageSize and NumPages itself.
	Options backend.Options
	// PageSizes are the page sizes to try; nil tries the backend's default alone.
	PageSizes []int
	// Tolerance is the largest difference that another batch, chunk or page table may make to a log probability. 0 asks for
	// the same bits. Where tokens differ, the tolerance must explain it, and the rest of the sequence is not compared.
	Tolerance float64
	// Models are run by their names; nil takes [Models].
	Models map[string]*model.Config
}

// Models returns a small model for each thing that families differ in. Their sizes suit a GPU's tiles: heads of 64, rows of 256.
func Models() map[string]*model.Config {
	base := func() *model.Config {
		return &model.Config{
			Architecture: "LlamaForCausalLM", Family: "llama", DType: "bfloat16",
			HiddenSize: 256, IntermediateSize: 512, NumLayers: 2, NumHeads: 4, NumKVHeads: 2, HeadDim: 64, VocabSize: 1000,
			MaxPositions: 512, RMSNormEps: 1e-5, RoPE: model.RoPE{Theta: 10000, Factor: 1, AttentionFactor: 1},
			BOS: []int32{1}, EOS: []int32{2},
		}
	}
	tied := base()
	tied.TieEmbeddings = true
	tied.RoPE = model.RoPE{Theta: 500000, Factor: 8, AttentionFactor: 1, Scaling: "llama3", LowFreqFactor: 1, HighFreqFactor: 4, OriginalMaxPositions: 64}
	bias := base()
	bias.Architecture, bias.Family, bias.QKVBias = "Qwen2ForCausalLM", "qwen2", true
	norm := base()
	norm.Architecture, norm.Family, norm.QKNorm, norm.NumKVHeads = "Qwen3ForCausalLM", "qwen3", true, 1
	window := base()
	window.Architecture, window.Family, window.SlidingWindow = "MistralForCausalLM", "mistral", 24
	return map[string]*model.Config{"llama": tied, "mistral": window, "qwen2": bias, "qwen3": norm}
}

// Sizes of every backend the suite opens: small enough to meet the limits.
const (
	maxRows   = 8
	maxTokens = 96
	numPages  = 128
)

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	if s.Models == nil {
		s.Models = Models()
	}
	if s.PageSizes == nil {
		s.PageSizes = []int{0}
	}
	anyModel := func() *model.Config { // the tests that need no particular model
		if cfg, ok := s.Models["llama"]; ok {
			return cfg
		}
		for _, cfg := range s.Models {
			return cfg
		}
		return nil
	}()
	for name, cfg := range s.Models {
		t.Run("model="+name, func(t *testing.T) {
			for _, size := range s.PageSizes {
				h := s.open(t, cfg, weights.NewDummy(cfg), size)
				t.Run("info", h.testInfo)
				t.Run("decode equals prefill", h.testDecodeEqualsPrefill)
				t.Run("chunks", h.testChunks)
				t.Run("batches", h.testBatches)
				t.Run("pages", h.testPages)
				t.Run("shared pages", h.testSharedPages)
				t.Run("drafts", func(t *testing.T) { s.testDrafts(t, cfg, size) })
			}
		})
	}
	h := s.open(t, anyModel, weights.NewDummy(anyModel), 0)
	for _, c := range []struct {
		name string
		test func(*testing.T)
	}{
		{"malformed", h.testMalformed}, // first: it wants slots that no sequence has had
		{"launch ahead", h.testLaunchAhead},
		{"in flight", h.testInFlight},
		{"batch copied", h.testBatchIsCopied},
		{"result reused", h.testResultIsReused},
		{"slot reuse", h.testSlotReuse},
		{"resume", h.testResume},
		{"mask", h.testMask},
		{"bias", h.testBias},
		{"penalties", h.testPenalties},
		{"seeds", h.testSeeds},
		{"truncation", h.testTruncation},
		{"distribution", h.testDistribution},
		{"log probs", h.testLogProbs},
		{"targets", h.testTargets},
	} {
		t.Run(c.name, c.test)
	}
	t.Run("non-finite", s.testNonFinite)
	t.Run("close", s.testClose)
}

// harness drives one opened backend.
type harness struct {
	cfg       *model.Config
	b         backend.Backend
	info      backend.Info
	tolerance float64
}

func (s *Suite) open(t *testing.T, cfg *model.Config, w *weights.Store, pageSize int) *harness {
	o := s.Options
	o.MaxRows, o.MaxTokens, o.MaxContext, o.PageSize, o.NumPages = maxRows, maxTokens, 256, pageSize, numPages
	b, err := s.Open(cfg, w, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return &harness{cfg, b, b.Info(), s.Tolerance}
}

func (h *harness) testInfo(t *testing.T) {
	i := h.info
	require.NotEmpty(t, i.Name)
	require.NotEmpty(t, i.Device)
	require.NotEmpty(t, i.DType)
	require.Equal(t, h.cfg.VocabSize, i.VocabSize)
	require.Equal(t, 256, i.MaxContext)
	require.Equal(t, maxRows, i.MaxRows)
	require.Equal(t, maxTokens, i.MaxTokens)
	require.Equal(t, numPages, i.NumPages)
	require.Positive(t, i.PageSize)
	require.Positive(t, i.WeightBytes)
	require.Contains(t, []int64{h.cfg.KVBytesPerToken(1), h.cfg.KVBytesPerToken(2), h.cfg.KVBytesPerToken(4)}, i.KVBytesPerToken)
	if i.ReadBandwidth != nil {
		require.Positive(t, *i.ReadBandwidth)
	}
	require.Equal(t, i, h.b.Info(), "Info changed")
}
