package engine

import (
	"context"
	"errors"
	"flag"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
	"github.com/tokamak-engine/tokamak/fixtures/fetch"
	"github.com/tokamak-engine/tokamak/fixtures/goldens"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// TestTheRealModelSaysWhatItShould compares greedy tokens with a float32 reference.
func TestTheRealModelSaysWhatItShould(t *testing.T) {
	path, err := fetch.Path()
	if errors.Is(err, fetch.ErrNotReady) {
		t.Skip(err)
	}
	require.NoError(t, err)
	cases, err := goldens.SmolLM2()
	require.NoError(t, err)
	o := DefaultOptions()
	o.Device, o.MaxTotalTokens = "cpu", 4096
	e, err := Open(context.Background(), path, WithOptions(o), WithProgress(func(phase string, done, total float64, unit string) {
		require.LessOrEqual(t, done, total, phase+" "+unit)
	}))
	require.NoError(t, err)
	defer func() { require.NoError(t, e.Close()) }()
	for _, c := range cases {
		r := Request{Prompt: c.Prompt, Sampling: DefaultSampling(len(c.GreedyIDs))}
		r.Sampling.IgnoreEOS = true
		out, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		require.Equal(t, c.GreedyIDs, out.TokenIDs)
		require.Equal(t, c.GreedyText, out.Text)
		require.Equal(t, len(c.PromptIDs), out.PromptTokens)

		r.InputIDs, r.Prompt = c.PromptIDs, ""
		again, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		require.Equal(t, out.TokenIDs, again.TokenIDs, "with a cached prompt")
	}
}

func TestQuantizationConfirmsTheCheckpoint(t *testing.T) {
	stored := func(method, scheme string) *model.Config {
		return &model.Config{Quantization: &model.Quantization{Method: method, Scheme: scheme}}
	}
	plain, awq, gptq := &model.Config{}, stored("awq", "int4"), stored("gptq", "int4")
	for _, c := range []struct {
		asked  string
		config *model.Config
		want   string
	}{
		{"", plain, ""}, {"", awq, ""}, {"fp8", plain, ""}, {"awq", awq, ""}, {"awq_marlin", awq, ""}, {"gptq_marlin", gptq, ""},
		{"fp8", stored("modelopt", "fp8"), ""}, {"compressed-tensors", stored("compressed-tensors", "int4"), ""}, {"fp8", stored("compressed-tensors", "fp8"), ""},
		{"awq", plain, "fp8 or nothing: the checkpoint's weights are not quantised"}, {"awq", gptq, "gptq or nothing: so the checkpoint is stored"},
		{"fp8", awq, "awq or nothing: so the checkpoint is stored"}, {"gptq_marlin", awq, "awq or nothing: so the checkpoint is stored"},
	} {
		err := checkQuantization(c.asked, c.config)
		if c.want == "" {
			require.NoError(t, err, "%q", c.asked)
			continue
		}
		var e *OptionError
		require.ErrorAs(t, err, &e, "%q", c.asked)
		require.ErrorContains(t, err, c.want)
	}
}

func TestOpenTellsWhatIsWrong(t *testing.T) {
	tiny, err := configs.Dir("tiny")
	require.NoError(t, err)
	head, err := tinymodel.Dir(tinymodel.DraftHead)
	require.NoError(t, err)
	empty := t.TempDir()
	broken := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(broken, "config.json"), []byte(`{"architectures":`), 0o644))
	two := t.TempDir()
	for _, name := range []string{"a.gguf", "b.gguf"} {
		require.NoError(t, os.WriteFile(filepath.Join(two, name), []byte("GGUF"), 0o644))
	}
	as := func(target any) func(error) bool { return func(err error) bool { return errors.As(err, target) } }
	for name, c := range map[string]struct {
		path string
		set  func(*Options)
		is   func(error) bool
		says string
	}{
		"no path":           {"", nil, as(new(*OptionError)), "model-path"},
		"nothing there":     {filepath.Join(empty, "x"), nil, as(new(*OptionError)), "there is none"},
		"empty directory":   {empty, nil, as(new(*model.Error)), "config.json"},
		"broken config":     {broken, nil, as(new(*model.Error)), "config.json"},
		"not a model file":  {filepath.Join(broken, "config.json"), nil, as(new(*weights.Error)), ""},
		"two GGUF files":    {two, nil, as(new(*OptionError)), "a.gguf and b.gguf"},
		"GGUF asked for":    {tiny, func(o *Options) { o.LoadFormat = "gguf" }, as(new(*OptionError)), "load-format"},
		"no weights":        {tiny, func(o *Options) { o.LoadFormat, o.SkipTokenizerInit = "auto", true }, as(new(*weights.Error)), "dummy"},
		"no tokenizer":      {tiny, func(o *Options) { o.LoadFormat = "auto" }, func(error) bool { return true }, "skip-tokenizer-init"},
		"unknown override":  {tiny, func(o *Options) { o.JSONModelOverrides = `{"num_layers": 1}` }, as(new(*model.Error)), "num_layers"},
		"context too long":  {tiny, func(o *Options) { o.ContextLength = 1 << 20 }, as(new(*OptionError)), "context-length"},
		"no GPU":            {tiny, func(o *Options) { o.Device = "cuda" }, func(err error) bool { return errors.Is(err, ErrNoDevice) || err == nil }, ""},
		"unknown device":    {tiny, func(o *Options) { o.Device = "tpu" }, as(new(*OptionError)), "auto, cuda, cpu"},
		"fraction":          {tiny, func(o *Options) { o.MemFractionStatic = math.NaN() }, as(new(*OptionError)), "mem-fraction-static"},
		"negative rows":     {tiny, func(o *Options) { o.MaxRunningRequests = -1 }, as(new(*OptionError)), "max-running-requests"},
		"chunk":             {tiny, func(o *Options) { o.ChunkedPrefillSize = -2 }, as(new(*OptionError)), "chunked-prefill-size"},
		"mixed":             {tiny, func(o *Options) { o.MaxMixedTokens, o.ChunkedPrefillSize = 64, -1 }, as(new(*OptionError)), "max-mixed-prefill-tokens"},
		"queue":             {tiny, func(o *Options) { o.MaxQueuedRequests = 0 }, as(new(*OptionError)), "max-queued-requests"},
		"rows above tokens": {tiny, func(o *Options) { o.MaxRunningRequests, o.MaxPrefillTokens = 9, 8 }, as(new(*OptionError)), "max-prefill-tokens"},
		"speculative":       {tiny, func(o *Options) { o.SpeculativeNumTokens = 16 }, as(new(*OptionError)), "speculative"},
		"no steps":          {tiny, func(o *Options) { o.SpeculativeNumSteps = 0 }, as(new(*OptionError)), "speculative-num-steps"},
		"a tree":            {tiny, func(o *Options) { o.SpeculativeEagleTopK = 2 }, as(new(*OptionError)), "speculative-eagle-topk"},
		"no head":           {tiny, func(o *Options) { o.SpeculativeAlgorithm = eagle3 }, as(new(*OptionError)), "speculative-draft-model-path"},
		"head unused":       {tiny, func(o *Options) { o.SpeculativeDraftModel = tiny }, as(new(*OptionError)), "EAGLE3"},
		"not a head":        {tiny, func(o *Options) { o.SpeculativeAlgorithm, o.SpeculativeDraftModel = eagle3, tiny }, as(new(*model.Error)), "LlamaForCausalLMEagle3"},
		"another's head":    {tiny, func(o *Options) { o.SpeculativeAlgorithm, o.SpeculativeDraftModel = eagle3, head }, as(new(*model.Error)), "vocab_size"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			o := tinyOptions()
			if c.set != nil {
				c.set(&o)
			}
			e, err := Open(context.Background(), c.path, WithOptions(o))
			if err == nil && name == "no GPU" {
				require.NoError(t, e.Close()) // this machine has one
				return
			}
			require.Error(t, err)
			require.True(t, c.is(err), "%T: %v", err, err)
			require.Contains(t, err.Error(), c.says)
			require.NotContains(t, err.Error(), "\n")
			require.Nil(t, e)
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err = Open(ctx, tiny, WithOptions(tinyOptions()))
	require.ErrorIs(t, err, context.Canceled)
}

func TestOptionsComeFromFlagsAndEnvironment(t *testing.T) {
	parse := func(args ...string) (Options, error) {
		o := DefaultOptions()
		fs := flag.NewFlagSet("test", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		if err := Register(fs, o.Table()); err != nil {
			return o, err
		}
		err := fs.Parse(ExpandPrefixes(fs, args))
		return o, err
	}
	t.Setenv("TOKAMAK_PAGE_SIZE", "32")
	t.Setenv("TOKAMAK_SCHEDULE_POLICY", "lpm")
	o, err := parse("--mem-frac", "0.5", "-model=x", "--disable-radix", "--chunked-prefill-size", "-1", "--page-size=8", "--", "--mem-frac")
	require.NoError(t, err)
	require.Equal(t, 0.5, o.MemFractionStatic)
	require.Equal(t, "x", o.ModelPath)
	require.True(t, o.DisableRadixCache)
	require.Equal(t, -1, o.ChunkedPrefillSize)
	require.Equal(t, 8, o.PageSize, "a flag wins over the environment")
	require.Equal(t, "lpm", o.SchedulePolicy)
	require.NoError(t, o.Validate())

	_, err = parse("--device", "tpu")
	require.ErrorContains(t, err, "auto, cuda, cpu")
	_, err = parse("--max", "3")
	require.Error(t, err, "several flags begin so")
	t.Setenv("TOKAMAK_PAGE_SIZE", "many")
	_, err = parse()
	var bad *OptionError
	require.ErrorAs(t, err, &bad)
	require.ErrorContains(t, err, "TOKAMAK_PAGE_SIZE")
}

// TestEveryOptionIsInTheTable: a field that no flag sets would be a setting that nobody can reach.
func TestEveryOptionIsInTheTable(t *testing.T) {
	var o Options
	table := o.Table()
	names := map[string]bool{}
	for _, row := range table {
		require.NotEmpty(t, row.Help, row.Name)
		for _, name := range append([]string{row.Name}, row.Aliases...) {
			require.False(t, names[name], "%s is there twice", name)
			names[name] = true
		}
	}
	require.Len(t, table, reflect.TypeFor[Options]().NumField())
	d := DefaultOptions()
	d.ModelPath = "x"
	require.NoError(t, d.Validate())
}
