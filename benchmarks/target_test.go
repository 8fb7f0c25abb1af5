package benchmarks

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/tidwall/gjson"

	"github.com/tokamak-engine/tokamak/benchmarks/load"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// target is the server that is measured.
type target struct {
	client  *load.Client
	own     bool    // started here
	onCard  bool    // started here, on this machine's card
	process *server // nil if it is not ours to end
	vocab   int
	context int // 0: the server does not tell
	info    gjson.Result
}

// theTarget is kept over -count and over the cases of a sweep.
var theTarget *target

// serve finds the server that the flags name, or starts our own.
func serve(ctx context.Context) (*target, error) {
	if theTarget != nil {
		return theTarget, nil
	}
	v := &set.serving
	header, err := v.headers()
	if err != nil {
		return nil, err
	}
	extra, err := v.extra()
	if err != nil {
		return nil, err
	}
	t := &target{client: &load.Client{
		Kind: load.FindKind(v.backend), BaseURL: strings.TrimRight(v.baseURL, "/"), Header: header, TokenizePrompts: v.tokenizePrompt, Timeout: v.requestTimeout,
		Sampling: load.Sampling{
			Model: v.servedName, Temperature: v.temperature, TopP: v.topP, IgnoreEOS: !set.disableIgnoreEOS, Stream: !v.disableStream, Extra: extra,
		},
	}}
	if t.client.BaseURL == "" {
		port := v.port
		t.own = t.client.Kind.Own() && port == 0 && !set.given["host"]
		if port == 0 {
			port = t.client.Kind.DefaultPort
		}
		t.client.BaseURL = fmt.Sprintf("http://%s:%d", v.host, port)
		if t.own && set.given["backend"] && t.runsAlready(ctx) {
			term.note("the server at %s runs this model and is measured; --base-url names another", t.client.BaseURL)
			t.own = false
		}
	}
	if t.own {
		if err := model.close(); err != nil { // its memory is the server's now
			return nil, err
		}
		if t.process, err = startServer(ctx); err != nil {
			return nil, err
		}
		table.finally(t.process.stop)
		t.client.BaseURL = t.process.url
	}
	ready, cancel := context.WithTimeout(ctx, v.readyTimeout)
	defer cancel()
	if err := t.client.WaitReady(ready); err != nil {
		return nil, t.explain(fmt.Errorf("%w: start one, or name it with --base-url", err))
	}
	if err := t.describe(ctx); err != nil {
		return nil, t.explain(err)
	}
	theTarget = t
	return t, nil
}

// runsAlready tells whether a server with the model asked for listens on the default port: somebody started it beforehand, and a second one
// would find no room on the card.
func (t *target) runsAlready(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	info, err := t.client.Get(ctx, "/get_model_info")
	path := gjson.GetBytes(info, "model_path").String()
	return err == nil && path != "" && filepath.Base(path) == filepath.Base(set.engine.ModelPath)
}

// unknownVocab is the number of token ids that are taken for random prompts where nobody tells the vocabulary: SGLang's own
// bench_one_batch draws below it.
const unknownVocab = 10000

// describe asks the server and the model's files what must be known of the model.
func (t *target) describe(ctx context.Context) error {
	if info, err := t.client.Get(ctx, "/get_model_info"); err == nil {
		t.info = gjson.ParseBytes(info)
		t.vocab, t.context = int(t.info.Get("vocab_size").Int()), int(t.info.Get("context_length").Int())
	}
	if t.client.Sampling.Model == "" {
		name, err := t.client.FindModel(ctx)
		if err != nil && t.client.Kind.NeedsModel() {
			return fmt.Errorf("%w (--served-model-name names it)", err)
		}
		t.client.Sampling.Model = name
	}
	if models, err := t.client.Get(ctx, "/v1/models"); err == nil && t.context == 0 {
		t.context = int(gjson.GetBytes(models, "data.0.max_model_len").Int())
	}
	if t.vocab == 0 {
		config, err := os.ReadFile(filepath.Join(set.engine.ModelPath, "config.json"))
		if err == nil {
			t.vocab = int(gjson.GetBytes(config, "vocab_size").Int())
		}
	}
	if t.vocab == 0 {
		t.vocab = unknownVocab
		term.note("the server does not tell its vocabulary: random prompts use the first %d token ids; --model-path with the model's config.json tells it", unknownVocab)
	}
	return nil
}

// samples makes the workload. Texts are tokenized and detokenized by the model's tokenizer, from its files or by the server.
func (t *target) samples(ctx context.Context) ([]datasets.Sample, error) {
	tok, err := localTokenizer()
	if err != nil {
		return nil, err
	}
	s := *set
	if d := s.serving.duration; d > 0 && !s.given["num-prompts"] {
		s.numPrompts = promptsFor(d.Seconds(), s.serving.requestRate.values, s.numPrompts)
	}
	var failed error
	if tok != nil {
		s.data.Encode = func(text string) []int32 { return tok.Encode(text, false) }
		t.client.Decode = func(ids []int32) string { return tok.Decode(ids, true) }
	} else {
		note := func(err error) {
			if failed == nil {
				failed = err
			}
		}
		s.data.Encode = func(text string) []int32 {
			ids, err := t.tokenize(ctx, text)
			note(err)
			return ids
		}
		if t.client.Kind.NeedsText() || s.data.NumTurns > 1 {
			t.client.Decode = func(ids []int32) string {
				text, err := t.detokenize(ctx, ids)
				note(err)
				return text
			}
			if _, err := t.detokenize(ctx, []int32{0}); err != nil {
				t.client.Decode = nil // the client says what is missing if it comes to that
			}
		}
	}
	samples, err := s.loadSamples(t.vocab, t.context, nil)
	if failed != nil {
		return nil, fmt.Errorf("text must be tokenized: %w (--tokenizer-path names the model's tokenizer)", failed)
	}
	return samples, err
}

// promptsFor is the number of prompts that a duration takes at the highest finite rate, with six standard deviations of a Poisson
// count to spare.
func promptsFor(seconds float64, rates []float64, otherwise int) int {
	n := 0
	for _, rate := range rates {
		if math.IsInf(rate, 1) {
			n = max(n, otherwise)
		} else {
			mean := rate * seconds
			n = max(n, int(mean+6*math.Sqrt(mean))+10)
		}
	}
	return n
}

// localTokenizer loads the tokenizer that the flags name, nil if they name none that can be read.
func localTokenizer() (*tokenizer.Tokenizer, error) {
	if path := set.engine.TokenizerPath; path != "" {
		return tokenizer.Load(path)
	}
	if _, err := os.Stat(filepath.Join(set.engine.ModelPath, "tokenizer.json")); set.engine.ModelPath == "" || err != nil {
		return nil, nil
	}
	return tokenizer.Load(set.engine.ModelPath)
}

func (t *target) tokenize(ctx context.Context, text string) ([]int32, error) {
	body, err := json.Marshal(map[string]any{"model": t.client.Sampling.Model, "prompt": text, "add_special_tokens": false})
	if err != nil {
		return nil, err
	}
	reply, err := t.client.Post(ctx, "/tokenize", body)
	if err != nil {
		return nil, err
	}
	var ids []int32
	for _, id := range gjson.GetBytes(reply, "tokens").Array() {
		ids = append(ids, int32(id.Int()))
	}
	return ids, nil
}

func (t *target) detokenize(ctx context.Context, ids []int32) (string, error) {
	body, err := json.Marshal(map[string]any{"model": t.client.Sampling.Model, "tokens": ids})
	if err != nil {
		return "", err
	}
	reply, err := t.client.Post(ctx, "/detokenize", body)
	if err != nil {
		return "", err
	}
	if text := gjson.GetBytes(reply, "text"); text.Exists() { // ours and SGLang's
		return text.String(), nil
	}
	return gjson.GetBytes(reply, "prompt").String(), nil // vLLM's
}

// Warm-up requests, as SGLang's bench_serving sends them, but with prompts that are not measured.
const servingWarmOutLength = 32

func (t *target) warmUp(ctx context.Context, samples []datasets.Sample) error {
	n := set.serving.warmupRequests
	if n == 0 {
		return nil
	}
	out := min(samples[0].OutputLen, servingWarmOutLength)
	o := datasets.Options{Seed: uint64(set.datasetSeed), VocabSize: t.vocab}
	warm := datasets.Warmup(o, n, min(max(samples[0].InputLen(), 1), warmInputLen), out)
	if t.client.Kind.NeedsText() && t.client.Decode == nil {
		for i := range warm {
			warm[i].IDs, warm[i].Text = nil, fmt.Sprintf("This is warm-up request %d of %d.", i+1, n)
		}
	}
	report, err := load.Run(ctx, load.Config{Client: t.client, Arrivals: load.Arrivals{Rate: math.Inf(1), Burstiness: 1}, MaxConcurrency: 8}, warm)
	if err != nil {
		return err
	}
	for i := range report.Results {
		if f := report.Results[i].Failure; f != nil {
			return f
		}
	}
	return nil
}

// modelName is what rows call the model: the last element of the name that the server gives it.
func (t *target) modelName() string {
	name := t.client.Sampling.Model
	if name == "" {
		name = "default"
	}
	return modelName(name)
}

// config describes the server. What runs on another machine is not known here and left out.
func (t *target) config() []keyText {
	lines := []keyText{{"backend", t.client.Kind.Name}, {"model", t.modelName()}, {"dtype", ""}, {"kv-dtype", ""}, {"load-format", ""}, {"device", ""}, {"driver", ""}}
	if info, err := t.client.Get(context.Background(), "/get_server_info"); err == nil {
		r := gjson.ParseBytes(info)
		lines[2].text, lines[3].text, lines[4].text = r.Get("dtype").String(), r.Get("kv_cache_dtype").String(), r.Get("load_format").String()
		lines[5].text = r.Get("device_name").String()
		t.onCard = t.own && r.Get("backend").String() == "cuda"
		if lines = append(lines, keyText{"server-version", r.Get("version").String()}); t.onCard {
			lines[6].text = driverVersion()
		}
	}
	return append(lines, keyText{"commit", commit()}, keyText{"flags", set.flagsText()})
}

// explain adds where the server's own words are to be read.
func (t *target) explain(err error) error {
	if err == nil || t.process == nil {
		return err
	}
	return t.process.explain(err)
}
