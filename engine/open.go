package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// source is a model's files, opened as far as it takes to know its config.
type source struct {
	dir  string        // "" for a GGUF file
	gguf *weights.GGUF // nil for a directory
}

// openSource finds out what path is. Nothing stays open on an error.
func openSource(path, format string) (*source, error) {
	if path == "" {
		return nil, &OptionError{"model-path", path, "a model directory or a GGUF file"}
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &OptionError{"model-path", path, "a model directory or a GGUF file: there is none of this name"}
	}
	if err != nil {
		return nil, fmt.Errorf("model path: %w", err)
	}
	if info.IsDir() {
		file, err := onlyGGUF(path)
		if err != nil {
			return nil, err
		}
		if file == "" || format == "safetensors" {
			if format == "gguf" {
				return nil, &OptionError{"load-format", format, "a GGUF file as model path; " + path + " is a directory without one"}
			}
			return &source{dir: path}, nil
		}
		path = file
	}
	if format == "safetensors" {
		return nil, &OptionError{"load-format", format, "a directory as model path; " + path + " is a file"}
	}
	g, err := weights.OpenGGUF(path)
	if err != nil {
		return nil, err
	}
	return &source{gguf: g}, nil
}

// onlyGGUF returns the GGUF file of a directory that holds one and no config.json.
func onlyGGUF(dir string) (string, error) {
	if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
		return "", nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("model path: %w", err)
	}
	found := ""
	for _, e := range entries {
		if !strings.EqualFold(filepath.Ext(e.Name()), ".gguf") || e.IsDir() {
			continue
		}
		if found != "" {
			return "", &OptionError{"model-path", dir, fmt.Sprintf("one file: it holds %s and %s", found, e.Name())}
		}
		found = e.Name()
	}
	if found == "" {
		return "", nil
	}
	return filepath.Join(dir, found), nil
}

func (s *source) close() {
	if s.gguf != nil {
		_ = s.gguf.Close() // a mapping that was only read
	}
}

func (s *source) config(overrides string) (*model.Config, error) {
	if s.gguf != nil {
		return model.FromGGUF(s.gguf.Meta, overrides)
	}
	return model.Load(s.dir, overrides)
}

func (s *source) weights(cfg *model.Config, format string) (*weights.Store, error) {
	switch {
	case format == "dummy":
		return weights.NewDummy(cfg), nil
	case s.gguf != nil:
		return s.gguf.Store(cfg)
	}
	return weights.Open(s.dir, cfg)
}

// tokenizer loads the tokenizer that o asks for. Dummy weights do without one if there is none.
func (s *source) tokenizer(o *Options, cfg *model.Config) (*tokenizer.Tokenizer, error) {
	if o.SkipTokenizerInit {
		return nil, nil
	}
	var t *tokenizer.Tokenizer
	var err error
	switch {
	case o.TokenizerPath != "":
		t, err = tokenizer.Load(o.TokenizerPath)
	case s.gguf != nil:
		t, err = tokenizer.FromGGUF(s.gguf.Meta)
	default:
		if _, statErr := os.Stat(filepath.Join(s.dir, "tokenizer.json")); statErr != nil && o.LoadFormat == "dummy" {
			return nil, nil
		}
		t, err = tokenizer.Load(s.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("%w (or --skip-tokenizer-init to work with token ids alone)", err)
	}
	return t, t.CheckVocab(cfg.VocabSize)
}

const quantizeFP8 = "fp8"

// checkQuantization holds the form of weights that is asked for to the one that the checkpoint is stored in. fp8 may be made at load; the
// others are stored or they are not. Kernels of several names elsewhere are one here.
func checkQuantization(asked string, cfg *model.Config) error {
	stored, scheme := "", ""
	if q := cfg.Quantization; q != nil {
		stored, scheme = q.Method, q.Scheme
	}
	switch {
	case asked == "" || strings.TrimSuffix(asked, "_marlin") == stored:
		return nil
	case asked == quantizeFP8 && (stored == "" || scheme == quantizeFP8):
		return nil
	case stored == "":
		return &OptionError{"quantization", asked, "fp8 or nothing: the checkpoint's weights are not quantised"}
	}
	return &OptionError{"quantization", asked, fmt.Sprintf("%s or nothing: so the checkpoint is stored", stored)}
}

// headsOnGPU lets draft heads run on a GPU. Only a test sets it.
var headsOnGPU = false

// openBackend opens the device that o asks for. It must be called by the goroutine that will use the backend.
func openBackend(o *Options, cfg *model.Config, w *weights.Store, b backend.Options) (backend.Backend, error) {
	device := o.Device
	if device == "auto" {
		device = "cpu"
		if cudaAvailable() == nil {
			device = "cuda"
		}
	}
	if device == "cuda" && cfg.DraftHead != nil && !headsOnGPU {
		return nil, &OptionError{"speculative-algorithm", eagle3, "NGRAM, or --device cpu: draft heads have not been seen right on a GPU yet"}
	}
	var opened backend.Backend
	var err error
	if device == "cuda" {
		opened, err = openCUDA(cfg, w, b)
	} else {
		opened, err = cpu.Open(cfg, w, b)
	}
	if err != nil {
		return nil, &DeviceError{device, err}
	}
	return opened, nil
}

// pageSizeForTokens is the page size if MaxTotalTokens is to be counted in pages and none was chosen.
const pageSizeForTokens = 16

// backendOptions translates o. What stays 0 the backend chooses.
func backendOptions(o *Options, cfg *model.Config, progress func(string, float64, float64, string)) backend.Options {
	b := backend.Options{
		MaxRows: o.MaxRunningRequests, MaxTokens: o.MaxPrefillTokens, MixedTokens: o.MaxMixedTokens, MaxContext: o.ContextLength, PageSize: o.PageSize,
		MemFraction: o.MemFractionStatic, KVDType: o.KVCacheDType, DType: o.DType,
		Threads: o.Threads, DisableGraph: o.DisableCUDAGraph, Deterministic: o.Deterministic, Progress: progress,
		SimulateUniformExperts: o.SimulateUniformExperts,
	}
	switch q := cfg.Quantization; {
	case o.Quantization == quantizeFP8:
		b.Quantization = quantizeFP8
	case o.Quantization != "" && q != nil && q.Scheme == "int4": // asked for by its own name
		b.Quantization = "int4"
	}
	if o.speculates() {
		b.MaxVerify = verifyTokens
	}
	if o.MaxTotalTokens > 0 {
		if b.PageSize == 0 {
			b.PageSize = pageSizeForTokens
		}
		b.NumPages = (o.MaxTotalTokens + b.PageSize - 1) / b.PageSize
	}
	if b.MaxTokens == 0 {
		b.MaxTokens = stepTokens(o, cfg)
	}
	return b
}

// verifyTokens is the most rows and drafts together of a step with drafts: three rows with all their drafts. It bounds the device's arrays; how
// many of them pay is measured.
const verifyTokens = 48

// speculates tells that requests guess tokens.
func (o *Options) speculates() bool { return o.SpeculativeAlgorithm != "" }

const eagle3 = "EAGLE3"

// rowDrafts is the most guesses of a request that a step verifies.
func (o *Options) rowDrafts() int {
	switch o.SpeculativeAlgorithm {
	case "":
		return 0
	case eagle3:
		return min(o.SpeculativeNumSteps, o.SpeculativeNumTokens)
	}
	return o.SpeculativeNumTokens
}

// addDraftHead gives cfg and w the draft head that o asks for.
func addDraftHead(o *Options, cfg *model.Config, w *weights.Store) (err error) {
	if o.SpeculativeAlgorithm != eagle3 {
		return nil
	}
	if cfg.DraftHead, err = model.LoadDraftHead(o.SpeculativeDraftModel, cfg); err != nil {
		return err
	}
	if o.LoadFormat == "dummy" {
		w.AddDummyDraftHead(cfg.DraftHead)
		return nil
	}
	return w.AddDraftHead(o.SpeculativeDraftModel, cfg.DraftHead)
}

// mostRows is at least what any backend takes where the options leave rows to it.
const mostRows = 256

// stepTokens is what a step must take so that the chunks asked for fit beside a decode row for everyone else; 0 where the
// backend's own choice does.
func stepTokens(o *Options, cfg *model.Config) int {
	rows := o.MaxRunningRequests
	if rows == 0 {
		rows = mostRows
	}
	switch {
	case o.ChunkedPrefillSize < 0 && o.ContextLength > 0:
		return o.ContextLength + rows
	case o.ChunkedPrefillSize < 0:
		return cfg.MaxPositions + rows
	case o.ChunkedPrefillSize >= rows: // every backend takes as many tokens as rows, and more
		return o.ChunkedPrefillSize + rows
	}
	return 0
}

// checkpoint is asked between the phases of Open, each of which may take long.
func checkpoint(ctx context.Context) error {
	if ctx.Err() != nil {
		return fmt.Errorf("open engine: %w", context.Cause(ctx))
	}
	return nil
}
