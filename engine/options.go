package engine

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"strings"
)

// Options configures an engine. The table in optionTable gives every field its flag, environment variable, default and help;
// benchmarks and the server read the same table.
type Options struct {
	ModelPath              string
	TokenizerPath          string
	SkipTokenizerInit      bool
	LoadFormat             string
	JSONModelOverrides     string
	Device                 string
	DType                  string
	Quantization           string
	KVCacheDType           string
	ContextLength          int
	MemFractionStatic      float64
	MaxRunningRequests     int
	MaxQueuedRequests      int
	MaxTotalTokens         int
	ChunkedPrefillSize     int
	MaxMixedTokens         int
	MaxPrefillTokens       int
	SchedulePolicy         string
	PageSize               int
	DisableRadixCache      bool
	DisableOverlap         bool
	DisableCUDAGraph       bool
	RandomSeed             int64
	Threads                int
	Deterministic          bool
	SimulateUniformExperts bool
	SpeculativeAlgorithm   string
	SpeculativeNumTokens   int
	SpeculativeNgramMin    int
	SpeculativeEager       bool
	SpeculativeNgramMax    int
	SpeculativeDraftModel  string
	SpeculativeNumSteps    int
	SpeculativeEagleTopK   int
}

// Option is one row of a table of options: everything there is to know of a flag. Benchmarks and the server add rows of their
// own in the same form.
type Option struct {
	Name    string   // "max-running-requests"; the variable is TOKAMAK_MAX_RUNNING_REQUESTS
	Aliases []string // other spellings that people know
	Help    string
	Value   any // pointer to the field: *string, *bool, *int, *int64, *float64 or a flag.Value; it holds the default
	Choices []string
}

// Env is the environment variable that sets the option where no flag does.
func (o *Option) Env() string {
	return "TOKAMAK_" + strings.ToUpper(strings.ReplaceAll(o.Name, "-", "_"))
}

// DefaultOptions returns the options an engine has when nothing is set.
func DefaultOptions() Options {
	return Options{
		LoadFormat: "auto", JSONModelOverrides: "{}", Device: "auto", DType: "auto", KVCacheDType: "auto",
		MemFractionStatic: 0.88, MaxQueuedRequests: 4096, SchedulePolicy: "fcfs", RandomSeed: 42,
		SpeculativeNumTokens: 15, SpeculativeNgramMin: 2, SpeculativeNgramMax: 16, SpeculativeNumSteps: 3, SpeculativeEagleTopK: 1,
	}
}

// Table lists o's options in the order --help shows them.
func (o *Options) Table() []Option {
	return []Option{
		{Name: "model-path", Aliases: []string{"model"}, Value: &o.ModelPath, Help: "Hugging Face model directory, GGUF file, or directory with a config.json (dummy)"},
		{Name: "tokenizer-path", Value: &o.TokenizerPath, Help: "directory or tokenizer.json, if not the model's own"},
		{Name: "skip-tokenizer-init", Value: &o.SkipTokenizerInit, Help: "load no tokenizer: token ids in, token ids out"},
		{Name: "load-format", Value: &o.LoadFormat, Choices: []string{"auto", "safetensors", "gguf", "dummy"}, Help: "where weights come from; dummy makes them from a seed and needs only config.json"},
		{Name: "json-model-override-args", Value: &o.JSONModelOverrides, Help: "JSON object merged into config.json before shapes are derived"},
		{Name: "device", Value: &o.Device, Choices: []string{"auto", "cuda", "cpu"}, Help: "where to run; auto takes the GPU if this build and machine have one"},
		{Name: "dtype", Value: &o.DType, Choices: []string{"auto", "bfloat16", "float16", "float32"}, Help: "type that weights are computed with"},
		{Name: "quantization", Value: &o.Quantization, Choices: []string{"", "fp8", "awq", "gptq", "awq_marlin", "gptq_marlin", "compressed-tensors"}, Help: "fp8 quantises plain weights at load; the others confirm what the checkpoint is stored as, and have the GPU multiply by weights of four bits as they are, where it would make bfloat16 of them"},
		{Name: "kv-cache-dtype", Value: &o.KVCacheDType, Choices: []string{"auto", "float32", "bfloat16", "fp8_e4m3"}, Help: "element type of the KV cache"},
		{Name: "context-length", Value: &o.ContextLength, Help: "tokens of one sequence; 0 takes the model's"},
		{Name: "mem-fraction-static", Value: &o.MemFractionStatic, Help: "part of the device's memory for weights and KV cache"},
		{Name: "max-running-requests", Value: &o.MaxRunningRequests, Help: "rows of a step; 0 lets the backend choose"},
		{Name: "max-queued-requests", Value: &o.MaxQueuedRequests, Help: "waiting requests before new ones are refused"},
		{Name: "max-total-tokens", Value: &o.MaxTotalTokens, Help: "tokens in the KV cache; 0 takes what memory allows"},
		{Name: "chunked-prefill-size", Value: &o.ChunkedPrefillSize, Help: "tokens of one prefill chunk; 0 lets the engine choose, -1 does not chunk"},
		{Name: "max-mixed-prefill-tokens", Value: &o.MaxMixedTokens, Help: "prompt tokens of a step in which others decode, more where a long queue waits; 0: as many as fit"},
		{Name: "max-prefill-tokens", Value: &o.MaxPrefillTokens, Help: "tokens of one step; 0 lets the engine choose"},
		{Name: "schedule-policy", Value: &o.SchedulePolicy, Choices: []string{"fcfs", "lpm"}, Help: "order of the waiting queue: first come, or longest cached prefix first"},
		{Name: "page-size", Value: &o.PageSize, Help: "tokens of a KV page; 0 takes the backend's"},
		{Name: "disable-radix-cache", Value: &o.DisableRadixCache, Help: "keep no prefix cache"},
		{Name: "disable-overlap-schedule", Value: &o.DisableOverlap, Help: "await each step before the next is scheduled"},
		{Name: "disable-cuda-graph", Value: &o.DisableCUDAGraph, Help: "launch kernels one by one"},
		{Name: "random-seed", Value: &o.RandomSeed, Help: "seed of requests that bring none"},
		{Name: "threads", Value: &o.Threads, Help: "worker threads of the CPU backend; 0: one a processor"},
		{Name: "deterministic", Aliases: []string{"enable-deterministic-inference"}, Value: &o.Deterministic, Help: "results do not depend on batch mates, chunks or preemption, bit for bit; on a GPU steps take about twice as long"},
		{Name: "simulate-uniform-experts", Value: &o.SimulateUniformExperts, Help: "choose a mixture's experts evenly instead of by its router: for speed with dummy weights, whose routers are uneven; the output means nothing"},
		{Name: "speculative-algorithm", Value: &o.SpeculativeAlgorithm, Choices: []string{"", "NGRAM", "EAGLE3"}, Help: "guess tokens and verify them together: NGRAM guesses what followed the last tokens earlier in the request, EAGLE3 what a draft head expects; lossless, and off where it does not pay"},
		{Name: "speculative-draft-model-path", Aliases: []string{"speculative-draft-model"}, Value: &o.SpeculativeDraftModel, Help: "EAGLE3: directory of the draft head, in safetensors; with --load-format dummy its config.json is enough"},
		{Name: "speculative-num-steps", Value: &o.SpeculativeNumSteps, Help: "EAGLE3: guesses that the head makes of a request in a step, one after the other, 1 to 15"},
		{Name: "speculative-eagle-topk", Value: &o.SpeculativeEagleTopK, Help: "EAGLE3: guesses for one place; 1: a chain, and nothing else yet"},
		{Name: "speculative-num-draft-tokens", Aliases: []string{"num-speculative-tokens"}, Value: &o.SpeculativeNumTokens, Help: "most guesses of a request in a step, 1 to 15"},
		{Name: "speculative-disable-adaptive", Value: &o.SpeculativeEager, Help: "verify every guess, also where it does not pay"},
		{Name: "speculative-ngram-min-match-window-size", Aliases: []string{"prompt-lookup-min"}, Value: &o.SpeculativeNgramMin, Help: "fewest last tokens that must have occurred before"},
		{Name: "speculative-ngram-max-match-window-size", Aliases: []string{"prompt-lookup-max"}, Value: &o.SpeculativeNgramMax, Help: "most last tokens that are compared: longer matches are preferred up to here"},
	}
}

// Register defines every option of table, under its name and aliases, on fs, with a value found in the environment as the
// default. A value in the environment that cannot be parsed is an *OptionError.
func Register(fs *flag.FlagSet, table []Option) error {
	for i := range table {
		o := &table[i]
		help := o.Help
		if len(o.Choices) > 0 {
			help += " {" + strings.Join(o.Choices, ", ") + "}"
		}
		define(fs, o, o.Name, help+" [$"+o.Env()+"]")
		for _, alias := range o.Aliases {
			define(fs, o, alias, "same as --"+o.Name)
		}
		if v, ok := os.LookupEnv(o.Env()); ok {
			if err := fs.Set(o.Name, v); err != nil {
				return fmt.Errorf("environment variable %s: %w", o.Env(), &OptionError{o.Name, v, err.Error()})
			}
			fs.Lookup(o.Name).DefValue = v
		}
	}
	return nil
}

func define(fs *flag.FlagSet, o *Option, name, help string) {
	switch v := o.Value.(type) {
	case *string:
		if len(o.Choices) > 0 {
			fs.Var(&choice{v, o.Choices}, name, help)
			return
		}
		fs.StringVar(v, name, *v, help)
	case *bool:
		fs.BoolVar(v, name, *v, help)
	case *int:
		fs.IntVar(v, name, *v, help)
	case *int64:
		fs.Int64Var(v, name, *v, help)
	case *float64:
		fs.Float64Var(v, name, *v, help)
	case flag.Value:
		fs.Var(v, name, help)
	default:
		panic(fmt.Sprintf("option %s: no flag for %T", o.Name, o.Value))
	}
}

// choice is a string that must be one of a few.
type choice struct {
	value   *string
	choices []string
}

func (c *choice) String() string {
	if c.value == nil {
		return ""
	}
	return *c.value
}

func (c *choice) Set(s string) error {
	for _, ok := range c.choices {
		if s == ok {
			*c.value = s
			return nil
		}
	}
	return fmt.Errorf("want one of %s", strings.Join(c.choices, ", "))
}

// ExpandPrefixes rewrites flags in args that are an unambiguous beginning of one of fs's flags to the whole name, as Python's
// argparse does: --num-prompt becomes --num-prompts. Names that fs knows, and what follows a bare --, stay as they are.
func ExpandPrefixes(fs *flag.FlagSet, args []string) []string {
	out := append([]string(nil), args...)
	for i, arg := range out {
		if arg == "--" {
			break
		}
		name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !strings.HasPrefix(arg, "-") || name == "" || fs.Lookup(name) != nil {
			continue
		}
		found := map[flag.Value]string{}
		fs.VisitAll(func(f *flag.Flag) {
			if strings.HasPrefix(f.Name, name) {
				found[f.Value] = f.Name
			}
		})
		if len(found) == 1 {
			for _, full := range found {
				out[i] = "--" + full
				if hasValue {
					out[i] += "=" + value
				}
			}
		}
	}
	return out
}

// MarkdownTable shows a table of options for documentation; defaults are what the rows' values hold.
func MarkdownTable(table []Option) string {
	var b strings.Builder
	b.WriteString("| Option | Default | What it does |\n|--|--|--|\n")
	for _, o := range table {
		name := "`--" + o.Name + "`"
		for _, alias := range o.Aliases {
			name += ", `--" + alias + "`"
		}
		help := o.Help
		if len(o.Choices) > 0 {
			help += ": `" + strings.Join(quoted(o.Choices), "`, `") + "`"
		}
		fmt.Fprintf(&b, "| %s<br>`%s` | %s | %s |\n", name, o.Env(), defaultOf(o.Value), strings.ReplaceAll(help, "|", `\|`))
	}
	return b.String()
}

func defaultOf(value any) string {
	text := ""
	switch v := value.(type) {
	case *string:
		text = *v
	case *bool:
		text = map[bool]string{false: "off", true: "on"}[*v]
	case fmt.Stringer:
		text = v.String()
	default: // the other kinds that a row may hold are pointers to numbers
		text = fmt.Sprint(reflect.ValueOf(v).Elem())
	}
	if text == "" {
		return ""
	}
	return "`" + text + "`"
}
