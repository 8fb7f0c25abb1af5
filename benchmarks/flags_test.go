package benchmarks

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tokamak-engine/tokamak/benchmarks/load"
	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// settings are all flags' values: the engine's options and the benchmarks' own.
type settings struct {
	engine engine.Options

	// OneBatch
	runName         string
	batchSize       list[int]
	inputLen        list[int]
	outputLen       list[int]
	promptFile      string
	ownWords        int
	correctnessTest bool
	cutLen          int
	logDecodeStep   int

	// datasets
	datasetName      string
	datasetPath      string
	numPrompts       int
	data             datasets.Options
	datasetSeed      int64
	disableIgnoreEOS bool

	// all
	resultFile string
	skipWarmup bool
	profile    profileFlags

	serving servingFlags
	help    bool
	// given holds the names of flags that were set on the command line or by a variable, aliases resolved.
	given map[string]bool
}

type servingFlags struct {
	backend         string
	baseURL         string
	host            string
	port            int
	servedName      string
	header          list[string]
	extraBody       string
	apiKey          string
	requestRate     list[float64]
	burstiness      float64
	maxConcurrency  list[int]
	rampUp          string
	rampStart       float64
	rampEnd         float64
	traceTimes      bool
	duration        time.Duration
	warmupRequests  int
	flushCache      bool
	tokenizePrompt  bool
	disableStream   bool
	temperature     float64
	topP            float64
	requestTimeout  time.Duration
	readyTimeout    time.Duration
	goodput         list[string]
	goodputShare    float64
	allowFailures   int
	maxLag          time.Duration
	maxCPU          float64
	plot            string
	outputText      bool
	serverExtraArgs string
	serverBinary    string
}

func defaultSettings() *settings {
	return &settings{
		engine:  engine.DefaultOptions(),
		runName: "default", batchSize: list[int]{values: []int{1}}, inputLen: list[int]{values: []int{1024}}, outputLen: list[int]{values: []int{16}},
		cutLen: 4, datasetName: "random", numPrompts: 1000, datasetSeed: 42,
		data: datasets.Options{
			RandomInputLen: 1024, RandomOutputLen: 1024, NumTurns: 1, Groups: 64, PromptsPerGroup: 16, SystemPromptLen: 2048,
			QuestionLen: 128, GroupOutputLen: 256, GroupRangeRatio: 1, TraceSlowdown: 1,
		},
		profile: defaultProfileFlags(),
		serving: servingFlags{
			backend: "tokamak", host: "127.0.0.1", requestRate: list[float64]{values: []float64{math.Inf(1)}}, burstiness: 1, warmupRequests: 1,
			maxConcurrency: list[int]{values: []int{0}}, extraBody: "{}", topP: 1, requestTimeout: 10 * time.Minute, readyTimeout: 5 * time.Minute,
			goodputShare: 0.99, maxLag: 10 * time.Millisecond, maxCPU: 0.9,
		},
	}
}

// table lists the benchmarks' own options, in the order that help shows them.
func (s *settings) table() []engine.Option {
	d, v := &s.data, &s.serving
	return append([]engine.Option{
		{Name: "run-name", Value: &s.runName, Help: "copied into each line of the result file"},
		{Name: "batch-size", Value: &s.batchSize, Help: "OneBatch: sequences of a batch; several values sweep: 1,8,32"},
		{Name: "input-len", Value: &s.inputLen, Help: "OneBatch: prompt tokens; several values sweep"},
		{Name: "output-len", Value: &s.outputLen, Help: "OneBatch: tokens to generate; several values sweep"},
		{Name: "prompt-filename", Value: &s.promptFile, Help: "OneBatch: file of prompts, one a line, in place of random token ids"},
		{Name: "own-words", Value: &s.ownWords, Help: "OneBatch: prompts are the end of what the model says to its random ones in so many tokens: text that repeats itself, for speculation"},
		{Name: "correctness-test", Value: &s.correctnessTest, Help: "OneBatch: check that chunks, batch mates and the prefix cache change no token, and time nothing"},
		{Name: "cut-len", Value: &s.cutLen, Help: "correctness test: tokens of a prompt's first chunk"},
		{Name: "log-decode-step", Value: &s.logDecodeStep, Help: "OneBatch: tell the time of every n-th decode step; 0 tells none"},

		{Name: "dataset-name", Value: &s.datasetName, Choices: datasets.Names(), Help: "workload of OfflineThroughput and Serving"},
		{Name: "dataset-path", Value: &s.datasetPath, Help: "file of the dataset, for those that read one"},
		{Name: "num-prompts", Value: &s.numPrompts, Help: "requests"},
		{Name: "random-input-len", Value: &d.RandomInputLen, Help: "random: most prompt tokens"},
		{Name: "random-output-len", Value: &d.RandomOutputLen, Help: "random: most tokens to generate"},
		{Name: "random-range-ratio", Value: &d.RandomRangeRatio, Help: "random: lengths are uniform from ratio x length to length; 1 is exactly length"},
		{Name: "sharegpt-output-len", Value: &d.OutputLen, Help: "sharegpt, custom, openai, and where no dataset is named: tokens to generate in place of the answer's own length"},
		{Name: "sharegpt-context-len", Value: &d.ContextLen, Help: "leave out samples longer than this, prompt and output together; 0: the model's context"},
		{Name: "gsp-num-groups", Aliases: []string{"gen-num-groups"}, Value: &d.Groups, Help: "generated-shared-prefix: system prompts"},
		{Name: "gsp-prompts-per-group", Aliases: []string{"gen-prompts-per-group"}, Value: &d.PromptsPerGroup, Help: "generated-shared-prefix: questions behind each"},
		{Name: "gsp-system-prompt-len", Aliases: []string{"gen-system-prompt-len"}, Value: &d.SystemPromptLen, Help: "generated-shared-prefix: tokens of a system prompt"},
		{Name: "gsp-question-len", Aliases: []string{"gen-question-len"}, Value: &d.QuestionLen, Help: "generated-shared-prefix: tokens of a question"},
		{Name: "gsp-output-len", Aliases: []string{"gen-output-len"}, Value: &d.GroupOutputLen, Help: "generated-shared-prefix: tokens to generate"},
		{Name: "gsp-range-ratio", Value: &d.GroupRangeRatio, Help: "generated-shared-prefix: lengths are uniform from ratio x length to length"},
		{Name: "gsp-ordered", Value: &d.GroupOrdered, Help: "generated-shared-prefix: group after group, not shuffled"},
		{Name: "num-turns", Aliases: []string{"gsp-num-turns"}, Value: &d.NumTurns, Help: "Serving: user turns of a conversation, each sent when the one before is answered"},
		{Name: "mooncake-slowdown-factor", Value: &d.TraceSlowdown, Help: "mooncake: multiplies the trace's times"},
		{Name: "seed", Value: &s.datasetSeed, Help: "seed of the workload and of arrivals"},
		{Name: "disable-ignore-eos", Value: &s.disableIgnoreEOS, Help: "let requests end before all their tokens are generated"},
		{Name: "skip-warmup", Value: &s.skipWarmup, Help: "time the first run, cold"},
		{Name: "result-filename", Aliases: []string{"output-file"}, Value: &s.resultFile, Help: "append results to this file as JSON lines"},

		{Name: "backend", Value: &v.backend, Choices: load.KindNames(), Help: "Serving: kind of server, and so the form of requests"},
		{Name: "base-url", Value: &v.baseURL, Help: "Serving: http://host:port of a running server; without it our own is started, unless --backend is given and one of the model runs on the default port"},
		{Name: "host", Value: &v.host, Help: "Serving: host of a running server, with --port"},
		{Name: "port", Value: &v.port, Help: "Serving: port of a running server; 0 starts our own, for other kinds it is their usual port"},
		{Name: "served-model-name", Value: &v.servedName, Help: "Serving: model name to send; default: what the server lists first"},
		{Name: "header", Value: &v.header, Help: "Serving: KEY=VALUE sent with every request; several"},
		{Name: "api-key", Value: &secret{&v.apiKey}, Help: "Serving: sent as Authorization: Bearer; also read from $OPENAI_API_KEY"},
		{Name: "extra-request-body", Value: &v.extraBody, Help: "Serving: JSON object merged into every body"},
		{Name: "request-rate", Value: &v.requestRate, Help: "Serving: requests a second, or inf for all at once; several values sweep and find the highest good one"},
		{Name: "burstiness", Value: &v.burstiness, Help: "Serving: shape of the gamma-distributed gaps: 1 is Poisson, less is burstier, inf is constant"},
		{Name: "max-concurrency", Value: &v.maxConcurrency, Help: "Serving: most requests in progress; 0: no bound; several values sweep. With --request-rate inf: users in a closed loop"},
		{Name: "ramp-up-strategy", Value: &v.rampUp, Choices: []string{"", "linear", "exponential"}, Help: "Serving: change the rate from --ramp-up-start-rps to --ramp-up-end-rps over the run"},
		{Name: "ramp-up-start-rps", Value: &v.rampStart, Help: "Serving: first rate of a ramp"},
		{Name: "ramp-up-end-rps", Value: &v.rampEnd, Help: "Serving: last rate of a ramp"},
		{Name: "use-trace-timestamps", Value: &v.traceTimes, Help: "Serving: requests arrive when the trace's did (mooncake)"},
		{Name: "duration", Value: (*seconds)(&v.duration), Help: "Serving: stop to send after this time (60, 90s, 2m); 0: when all requests are sent"},
		{Name: "warmup-requests", Value: &v.warmupRequests, Help: "Serving: requests before the clock starts, of prompts that are not measured"},
		{Name: "flush-cache", Value: &v.flushCache, Help: "Serving: empty the server's prefix cache before each case; our own server's always is"},
		{Name: "tokenize-prompt", Value: &v.tokenizePrompt, Help: "Serving: send token ids in place of text where the server takes them"},
		{Name: "disable-stream", Value: &v.disableStream, Help: "Serving: ask for whole answers"},
		{Name: "temperature", Value: &v.temperature, Help: "Serving: sampling temperature; 0 is greedy"},
		{Name: "top-p", Value: &v.topP, Help: "Serving: nucleus sampling; 1 keeps all"},
		{Name: "request-timeout", Value: (*seconds)(&v.requestTimeout), Help: "Serving: longest a request may take"},
		{Name: "ready-check-timeout-sec", Value: (*seconds)(&v.readyTimeout), Help: "Serving: longest to wait for the server"},
		{Name: "goodput", Value: &v.goodput, Help: "Serving: objectives in ms, METRIC one of ttft, tpot, e2el: ttft:200 tpot:20"},
		{Name: "goodput-share", Value: &v.goodputShare, Help: "Serving: a rate is good if this part of its requests meets the objectives"},
		{Name: "allow-failures", Value: &v.allowFailures, Help: "Serving: failed requests that do not fail the benchmark"},
		{Name: "client-max-lag", Value: (*seconds)(&v.maxLag), Help: "Serving: a run is invalid if the client sends 1 % of requests later than this (or 5 % of the latency)"},
		{Name: "client-max-cpu", Value: &v.maxCPU, Help: "Serving: a run is invalid if the client takes more than this part of the processors"},
		{Name: "plot", Value: &v.plot, Help: "Serving: write a report with diagrams to this HTML file"},
		{Name: "output-details", Value: &v.outputText, Help: "Serving: keep every answer's text in the result file"},
		{Name: "server-args", Value: &v.serverExtraArgs, Help: "Serving: more arguments for the server that is started"},
		{Name: "server-binary", Value: &v.serverBinary, Help: "Serving: launch_server to start; default: it is built from this source"},
		{Name: "help-flags", Value: &s.help, Help: "list these flags"},
	}, s.profile.table()...)
}

// parse reads args (without the program's name) over the environment into s. fs holds the flags of package testing already.
func (s *settings) parse(fs *flag.FlagSet, args []string) error {
	engineTable := s.engine.Table()
	tables := append(engineTable[:len(engineTable):len(engineTable)], s.table()...)
	lists := map[string]bool{}
	replaceLists := func() {
		for i := range tables {
			if l, ok := tables[i].Value.(interface{ fresh() }); ok {
				l.fresh()
				for _, name := range append([]string{tables[i].Name}, tables[i].Aliases...) {
					lists[name] = true
				}
			}
		}
	}
	replaceLists() // the environment replaces defaults
	if err := engine.Register(fs, tables); err != nil {
		return err
	}
	replaceLists() // and the command line what the environment gave
	s.given = map[string]bool{}
	for i := range tables {
		if o := &tables[i]; envSet(o.Env()) {
			s.given[o.Name] = true
		}
	}
	fs.SetOutput(io.Discard)
	fs.Usage = func() {}
	if err := fs.Parse(joinLists(lists, goFlags(fs, engine.ExpandPrefixes(fs, args)))); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			s.help = true
			return nil
		}
		return fmt.Errorf("%w (--help-flags lists all flags)", err)
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q (--help-flags lists all flags)", fs.Arg(0))
	}
	canonical := map[string]string{}
	for _, o := range tables {
		canonical[o.Name] = o.Name
		for _, alias := range o.Aliases {
			canonical[alias] = o.Name
		}
	}
	fs.Visit(func(f *flag.Flag) {
		if name, ours := canonical[f.Name]; ours {
			s.given[name] = true
		}
	})
	if s.given["sharegpt-output-len"] && !s.given["dataset-name"] && !s.given["random-output-len"] { // the default workload is random
		s.data.RandomOutputLen = s.data.OutputLen
	}
	return s.check()
}

// pathsFrom takes relative paths from top. `go test` runs the benchmarks in their own folder, where a path that was typed at the
// checkout's top leads nowhere. A file to read that is not there is left as it was: it may lie where the benchmarks run.
func (s *settings) pathsFrom(top string) {
	for _, path := range []*string{&s.engine.ModelPath, &s.engine.TokenizerPath, &s.promptFile, &s.datasetPath, &s.serving.serverBinary} {
		if *path == "" || filepath.IsAbs(*path) {
			continue
		}
		if full := filepath.Join(top, *path); exists(full) {
			*path = full
		}
	}
	for _, path := range []*string{&s.resultFile, &s.serving.plot, &s.profile.dir} {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(top, *path)
		}
	}
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// check refuses values that no benchmark could run with.
func (s *settings) check() error {
	atLeast := func(name string, values []int, low int) error {
		for _, v := range values {
			if v < low {
				return &engine.OptionError{Name: name, Value: strconv.Itoa(v), Want: fmt.Sprintf("at least %d", low)}
			}
		}
		return nil
	}
	v := &s.serving
	err := errors.Join(
		atLeast("batch-size", s.batchSize.values, 1), atLeast("input-len", s.inputLen.values, 1), atLeast("output-len", s.outputLen.values, 1),
		atLeast("num-prompts", []int{s.numPrompts}, 1), atLeast("cut-len", []int{s.cutLen}, 1), atLeast("num-turns", []int{s.data.NumTurns}, 1),
		atLeast("max-concurrency", v.maxConcurrency.values, 0), atLeast("allow-failures", []int{v.allowFailures}, 0),
		atLeast("warmup-requests", []int{v.warmupRequests}, 0), atLeast("log-decode-step", []int{s.logDecodeStep}, 0), atLeast("own-words", []int{s.ownWords}, 0),
	)
	for _, rate := range v.requestRate.values {
		if !(rate > 0) {
			err = errors.Join(err, &engine.OptionError{Name: "request-rate", Value: fmt.Sprint(rate), Want: "more than 0, or inf"})
		}
	}
	if !(v.burstiness > 0) {
		err = errors.Join(err, &engine.OptionError{Name: "burstiness", Value: fmt.Sprint(v.burstiness), Want: "more than 0; 1 is Poisson, inf is constant"})
	}
	if !(v.goodputShare > 0 && v.goodputShare <= 1) {
		err = errors.Join(err, &engine.OptionError{Name: "goodput-share", Value: fmt.Sprint(v.goodputShare), Want: "more than 0, at most 1"})
	}
	if _, e := load.ParseObjectives(v.goodput.values); e != nil {
		err = errors.Join(err, e)
	}
	if _, e := v.extra(); e != nil {
		err = errors.Join(err, e)
	}
	if _, e := v.headers(); e != nil {
		err = errors.Join(err, e)
	}
	if v.baseURL != "" {
		err = errors.Join(err, load.CheckURL(v.baseURL))
	}
	err = errors.Join(err, s.profile.check())
	if err != nil {
		return errors.New(strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return nil
}

func (v *servingFlags) extra() (map[string]json.RawMessage, error) {
	var extra map[string]json.RawMessage
	if err := json.Unmarshal([]byte(v.extraBody), &extra); err != nil {
		return nil, &engine.OptionError{Name: "extra-request-body", Value: v.extraBody, Want: "a JSON object"}
	}
	return extra, nil
}

func (v *servingFlags) headers() (http.Header, error) {
	h := http.Header{}
	for _, pair := range v.header.values {
		key, value, ok := strings.Cut(pair, "=")
		if !ok || key == "" {
			return nil, &engine.OptionError{Name: "header", Value: pair, Want: "KEY=VALUE"}
		}
		h.Add(key, value)
	}
	if v.apiKey != "" {
		h.Set("Authorization", "Bearer "+v.apiKey)
	}
	return h, nil
}

// goFlags renames flags that are `go test`'s own to the names the test binary knows: what follows a bare value on the command
// line reaches the binary as it was typed.
func goFlags(fs *flag.FlagSet, args []string) []string {
	out := slices.Clone(args)
	for i, arg := range out {
		name, rest, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !strings.HasPrefix(arg, "-") || fs.Lookup(name) != nil || fs.Lookup("test."+name) == nil {
			continue
		}
		out[i] = "-test." + name
		if hasValue {
			out[i] += "=" + rest
		}
	}
	return out
}

// joinLists lets values of a list stand apart, as argparse does: --batch-size 1 8 32.
func joinLists(lists map[string]bool, args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		out = append(out, args[i])
		name := strings.TrimLeft(args[i], "-")
		if !strings.HasPrefix(args[i], "-") || !lists[name] || i+1 == len(args) {
			continue
		}
		i++
		value := args[i]
		for i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			i++
			value += "," + args[i]
		}
		out = append(out, value)
	}
	return out
}

// usage lists every flag with its variable, default and help.
func usage(w io.Writer, tables ...[]engine.Option) {
	for _, table := range tables {
		for _, o := range table {
			value := defaultText(o.Value)
			if value != "" {
				value = " (default " + value + ")"
			}
			help := o.Help
			if len(o.Choices) > 0 {
				help += " {" + strings.Trim(strings.Join(o.Choices, ", "), ", ") + "}"
			}
			for _, alias := range o.Aliases {
				help += ", also --" + alias
			}
			fmt.Fprintf(w, "  --%s%s\n        %s [$%s]\n", o.Name, value, help, o.Env())
		}
	}
}

func defaultText(value any) string {
	switch v := value.(type) {
	case *string:
		return *v
	case *bool:
		if *v {
			return "true"
		}
		return ""
	case *int:
		return strconv.Itoa(*v)
	case *int64:
		return strconv.FormatInt(*v, 10)
	case *float64:
		return strconv.FormatFloat(*v, 'g', -1, 64)
	case flag.Value:
		return v.String()
	}
	return ""
}
