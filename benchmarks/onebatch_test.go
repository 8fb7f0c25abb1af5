package benchmarks

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/tokamak-engine/tokamak/benchmarks/load"
	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
)

// BenchmarkOneBatch times one static batch, prefill and decode apart, with no scheduler and no server.
//
//	go test ./benchmarks -run '^$' -bench OneBatch --model-path DIR --batch 1,8,32 --input-len 256 --output-len 32
func BenchmarkOneBatch(b *testing.B) {
	defer allProcessors()()
	if set.correctnessTest {
		b.Run("correctness", func(b *testing.B) {
			defer allProcessors()()
			checkCorrectness(b)
			b.SkipNow() // nothing was timed: no row
		})
		return
	}
	e, err := model.open(openOptions(func(o *engine.Options) {
		if o.MaxRunningRequests == 0 {
			o.MaxRunningRequests = slices.Max(set.batchSize.values)
		}
	}))
	if err != nil {
		b.Fatal(err)
	}
	configLines.print(true, engineConfig(e))
	inputLens := set.inputLen.values
	var prompts [][]int32
	if set.promptFile != "" {
		if prompts, err = readPrompts(e, set.promptFile); err != nil {
			b.Fatal(err)
		}
		if !set.given["input-len"] {
			shortest := len(slices.MinFunc(prompts, func(x, y []int32) int { return len(x) - len(y) }))
			term.note("prompts are cut to the shortest one's %d tokens: --input-len sets another length", shortest)
			inputLens = []int{shortest}
		}
	}
	ran := false
	for _, batch := range set.batchSize.values {
		for _, in := range inputLens {
			for _, out := range set.outputLen.values {
				c := &oneBatch{engine: e, batch: batch, in: in, out: out, source: prompts}
				if err := e.StaticNeed(batch, in, out).Err(); err != nil {
					table.skip(fmt.Sprintf("batch=%d in=%d out=%d", batch, in, out), err.Error())
					continue
				}
				c.bench(b)
				ran = true
			}
		}
	}
	if !ran {
		b.SkipNow() // or package testing would print a row for the whole benchmark
	}
}

// oneBatch is a case of the sweep.
type oneBatch struct {
	engine         *engine.Engine
	batch, in, out int
	source         [][]int32 // prompts from a file; nil: random ids
	prompts        [][]int32
	warm           bool
	// runs and overlapped are what was measured. A run times prefill and decode both, and each phase's row takes it once: rows
	// of three phases cost one run.
	runs, overlapped []*engine.StaticRun
	card             *cardMeter
	cards            map[*engine.StaticRun]cardRun
	taken            map[string]int // by phase
	hash             uint64         // of the tokens, once known
}

func (c *oneBatch) bench(b *testing.B) {
	name := fmt.Sprintf("model=%s/dtype=%s/batch=%d/in=%d/out=%d", modelName(c.engine.Options().ModelPath), c.engine.Info().DType, c.batch, c.in, c.out)
	if set.given["chunked-prefill-size"] {
		name += fmt.Sprintf("/chunk=%d", set.engine.ChunkedPrefillSize)
	}
	c.prompts = makePrompts(c.source, c.batch, c.in, c.engine.Info().VocabSize, uint64(set.datasetSeed))
	if set.ownWords > 0 {
		name += fmt.Sprintf("/own=%d", set.ownWords)
		var err error
		if c.prompts, err = c.ownWords(set.ownWords); err != nil {
			b.Fatal(err)
		}
	}
	name += specName(c.engine.Options())
	c.taken, c.cards, c.card = map[string]int{}, map[*engine.StaticRun]cardRun{}, newCardMeter(c.engine.Info().Name == "cuda")
	c.leaf(b, name, "prefill", c.prefillFigures)
	if c.out > 1 {
		c.leaf(b, name, "decode", c.decodeFigures)
		if c.engine.Info().Name != "cpu" {
			// The host's work can hide behind the device's: the rate that a server reaches.
			c.leaf(b, name, "overlap", c.decodeFigures)
		}
	}
	c.leaf(b, name, "total", c.totalFigures)
	if c.out > 1 && c.engine.Options().SpeculativeAlgorithm != "" {
		c.speculate(b, name)
	}
	if set.profile.on {
		c.profile(b, name)
	}
}

func (c *oneBatch) leaf(b *testing.B, name, phase string, figures func([]*engine.StaticRun) []figure) {
	leaf(b, name+"/phase="+phase, func(b *testing.B) {
		var runs []*engine.StaticRun
		for b.Loop() {
			run, err := c.take(phase)
			if err != nil {
				b.Fatal(err)
			}
			runs = append(runs, run)
		}
		f := figures(runs)
		if phase == "total" {
			var cards []cardRun
			for _, r := range runs {
				cards = append(cards, c.cards[r])
			}
			f = append(f, cardFigures(b.Name(), cards)...)
		}
		table.report(b, f)
	})
}

// take gives a run that phase has not had yet.
func (c *oneBatch) take(phase string) (*engine.StaticRun, error) {
	runs, measure := &c.runs, c.engine.StaticBatch
	if phase == "overlap" {
		runs, measure = &c.overlapped, c.engine.StaticBatchOverlapped
	}
	n := c.taken[phase]
	if n == len(*runs) {
		run, err := c.measure(measure)
		if err != nil {
			return nil, err
		}
		*runs = append(*runs, run)
	}
	c.taken[phase]++
	return (*runs)[n], nil
}

type staticBatch func(prompts [][]int32, outputLen, chunk int) (*engine.StaticRun, error)

// warmOutputLen is the number of tokens that a warm-up generates: enough to have run every kernel of the shape.
const warmOutputLen = 4

func (c *oneBatch) measure(run staticBatch) (*engine.StaticRun, error) {
	bar := term.start(fmt.Sprintf("batch %d in %d out %d", c.batch, c.in, c.out), 2, "runs")
	defer bar.done()
	if !c.warm && !set.skipWarmup {
		other := makePrompts(nil, c.batch, c.in, c.engine.Info().VocabSize, ^uint64(set.datasetSeed))
		if _, err := run(other, min(c.out, warmOutputLen), 0); err != nil {
			return nil, fmt.Errorf("warm-up: %w", err)
		}
	}
	c.warm = true
	bar.add(1)
	c.card.start()
	r, err := run(c.prompts, c.out, 0)
	card := c.card.stop(c.batch * c.out)
	if err != nil {
		return nil, err
	}
	c.cards[r] = card
	if err := c.check(r); err != nil {
		return nil, err
	}
	if n := set.logDecodeStep; n > 0 {
		for i := n - 1; i < len(r.Decode); i += n {
			term.note("decode step %d of batch %d: %.3f ms, %.1f tok/s", i+1, c.batch, ms(r.Decode[i]), float64(c.batch)/r.Decode[i].Seconds())
		}
	}
	return r, c.write(r)
}

// check refuses a run that did not do what was asked.
func (c *oneBatch) check(r *engine.StaticRun) error {
	if r.NonFinite > 0 {
		return fmt.Errorf("%d rows had logits that are not finite", r.NonFinite)
	}
	if len(r.Tokens) != c.batch || len(r.Decode) != c.out-1 {
		return fmt.Errorf("%d rows and %d decode steps, want %d and %d", len(r.Tokens), len(r.Decode), c.batch, c.out-1)
	}
	hash := fnv.New64a()
	for row, tokens := range r.Tokens {
		if len(tokens) != c.out {
			return fmt.Errorf("row %d has %d tokens, want %d", row, len(tokens), c.out)
		}
		for _, t := range tokens {
			if t < 0 || int(t) >= c.engine.Info().VocabSize {
				return fmt.Errorf("row %d: token %d is outside the vocabulary", row, t)
			}
			hash.Write([]byte{byte(t), byte(t >> 8), byte(t >> 16), byte(t >> 24)})
		}
	}
	// The same batch twice is the same work in the same order: greedy tokens cannot differ unless something is broken.
	if sum := hash.Sum64(); c.hash == 0 {
		c.hash = sum
	} else if c.hash != sum {
		return errors.New("greedy tokens differ between two runs of the same batch")
	}
	return nil
}

func (c *oneBatch) prefillFigures(runs []*engine.StaticRun) []figure {
	prefill := medianDuration(runs, func(r *engine.StaticRun) []time.Duration { return []time.Duration{r.Prefill} })
	return []figure{{"prefill-ms", ms(prefill.P50)}, {"prefill-tok/s", float64(c.batch*c.in) / prefill.P50.Seconds()}}
}

func (c *oneBatch) decodeFigures(runs []*engine.StaticRun) []figure {
	steps := medianDuration(runs, func(r *engine.StaticRun) []time.Duration { return r.Decode })
	figures := []figure{
		{"decode-ms", ms(steps.P50)}, {"decode-p99-ms", ms(steps.P99)}, {"decode-tok/s", float64(c.batch) / steps.P50.Seconds()},
	}
	if floor, ok := c.floor(); ok {
		figures = append(figures, figure{"floor-ms", ms(floor)}, figure{"pct-of-floor", 100 * float64(floor) / float64(steps.P50)})
	}
	return figures
}

func (c *oneBatch) totalFigures(runs []*engine.StaticRun) []figure {
	total := medianDuration(runs, func(r *engine.StaticRun) []time.Duration { return []time.Duration{r.Total} })
	return []figure{{"total-ms", ms(total.P50)}, {"total-tok/s", float64(c.batch*(c.in+c.out)) / total.P50.Seconds()}}
}

// floor is the least time of a decode step that memory allows: all streamed weights (of a mixture, the experts that the rows are expected to need), and each row's keys and values at the mean
// context of the run, read once. It is not known where the device's bandwidth was not measured.
func (c *oneBatch) floor() (time.Duration, bool) {
	info := c.engine.Info()
	if info.ReadBandwidth == nil {
		return 0, false
	}
	meanContext := float64(c.in) + float64(c.out)/2
	bytes := info.StepWeightBytes(c.batch) + float64(c.batch)*meanContext*float64(info.KVBytesPerToken)
	return time.Duration(bytes / *info.ReadBandwidth * float64(time.Second)), true
}

func medianDuration(runs []*engine.StaticRun, values func(*engine.StaticRun) []time.Duration) load.Dist {
	var all []time.Duration
	for _, r := range runs {
		all = append(all, values(r)...)
	}
	return load.NewDist(all)
}

// write appends a run to the result file: SGLang's fields, then ours.
func (c *oneBatch) write(r *engine.StaticRun) error {
	if set.resultFile == "" {
		return nil
	}
	info, o := c.engine.Info(), c.engine.Options()
	line := map[string]any{
		"run_name": set.runName, "batch_size": c.batch, "input_len": c.in, "output_len": c.out,
		"prefill_latency": r.Prefill.Seconds(), "prefill_throughput": float64(c.batch*c.in) / r.Prefill.Seconds(),
		"total_latency": r.Total.Seconds(), "overall_throughput": float64(c.batch*(c.in+c.out)) / r.Total.Seconds(),
		"benchmark": "OneBatch", "backend": info.Name, "device": info.Device, "model": modelName(o.ModelPath), "dtype": info.DType,
		"commit": commit(), "flags": set.flagsText(), "time": time.Now().UTC().Format(time.RFC3339), "prefill_steps": r.PrefillSteps,
	}
	if len(r.Decode) > 0 {
		steps := load.NewDist(slices.Clone(r.Decode))
		seconds := make([]float64, len(r.Decode))
		for i, d := range r.Decode {
			seconds[i] = d.Seconds()
		}
		line["median_decode_latency"], line["median_decode_throughput"] = steps.P50.Seconds(), float64(c.batch)/steps.P50.Seconds()
		line["p99_decode_latency"], line["decode_latencies"] = steps.P99.Seconds(), seconds
		if floor, ok := c.floor(); ok {
			line["decode_floor"] = floor.Seconds()
		}
	}
	return load.AppendJSON(set.resultFile, line)
}

// makePrompts gives batch prompts of exactly n tokens: random ids, or those of source in turn, repeated or cut to the length.
func makePrompts(source [][]int32, batch, n, vocab int, seed uint64) [][]int32 {
	prompts := make([][]int32, batch)
	if source == nil {
		for i, s := range datasets.Warmup(datasets.Options{Seed: seed, VocabSize: vocab}, batch, n, 1) {
			prompts[i] = s.IDs
		}
		return prompts
	}
	for i := range prompts {
		from := source[i%len(source)]
		prompts[i] = make([]int32, n)
		for j := range prompts[i] {
			prompts[i][j] = from[j%len(from)]
		}
	}
	return prompts
}

// readPrompts reads a file of prompts, one a line, as token ids.
func readPrompts(e *engine.Engine, path string) ([][]int32, error) {
	if e.Tokenizer() == nil {
		return nil, errors.New("--prompt-filename needs the model's tokenizer: leave --skip-tokenizer-init out, or set --tokenizer-path")
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var prompts [][]int32
	for _, line := range strings.Split(string(bytes.TrimRight(data, "\r\n")), "\n") {
		if line = strings.TrimRight(line, "\r"); line == "" {
			continue
		}
		prompts = append(prompts, e.Tokenizer().Encode(line, true))
	}
	if len(prompts) == 0 {
		return nil, fmt.Errorf("%s holds no prompt", path)
	}
	return prompts, nil
}
