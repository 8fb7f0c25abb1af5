//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/fetch"
	"github.com/tokamak-engine/tokamak/fixtures/goldens"
)

// needGPU skips a test on machines without a usable GPU; TOKAMAK_REQUIRE_GPU=1 makes that a failure.
func needGPU(t testing.TB) {
	t.Helper()
	if err := Available(); err != nil {
		if os.Getenv("TOKAMAK_REQUIRE_GPU") != "" {
			t.Fatalf("no GPU: %v", err)
		}
		t.Skipf("no GPU: %v", err)
	}
}

// openTest opens a backend whose context the test owns.
func openTest(t testing.TB, cfg *model.Config, w *weights.Store, o backend.Options, set settings) *Backend {
	t.Helper()
	needGPU(t)
	b, err := openWith(cfg, w, o, set)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	own(t, b.context)
	return b
}

// bf16Tolerance is what another order of sums may change of a log probability in these models. A logit (about 3 in size) carries
// the error of some ten bf16 roundings: 3 * 2^-9 * sqrt(10/3) = 0.011. Two computations differ by sqrt(2) of that, and the worst of
// the 10^6 log probabilities compared lies 5 standard deviations out, at 0.08.
const bf16Tolerance = 0.1

func TestConformance(t *testing.T) {
	needGPU(t)
	backendtest.Run(t, backendtest.Suite{
		Open: func(cfg *model.Config, w *weights.Store, o backend.Options) (backend.Backend, error) {
			return Open(cfg, w, o)
		},
		PageSizes: []int{64, 16}, Tolerance: bf16Tolerance,
	})
}

// play runs one sequence: the prompt in chunks, then n tokens, each step awaited before the next.
func play(t testing.TB, b backend.Backend, slot int, prompt []int32, chunk, n int, sampling backend.Sampling, logits bool) []backend.RowResult {
	t.Helper()
	info := b.Info()
	pages := make([]int32, (len(prompt)+n+info.PageSize-1)/info.PageSize)
	for i := range pages {
		pages[i] = int32(slot*len(pages) + i)
	}
	start := &backend.Start{Sampling: sampling, Prompt: prompt}
	var rows []backend.RowResult
	var out backend.Result
	for at := 0; len(rows) < n; {
		r := backend.Row{Slot: slot, Start: start, Position: at, Pages: pages, Sample: true, Logits: logits}
		if at < len(prompt) {
			r.Tokens = prompt[at:min(at+chunk, len(prompt))]
			r.Sample = at+len(r.Tokens) == len(prompt)
			r.Logits = logits && r.Sample
		}
		start = nil
		at += r.NumTokens()
		id, err := b.Launch(&backend.Batch{Rows: []backend.Row{r}})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		if r.Sample {
			row := out.Rows[0]
			row.Logits, row.Top = slices.Clone(row.Logits), slices.Clone(row.Top)
			rows = append(rows, row)
		}
	}
	return rows
}

func randomPrompt(seed uint64, n, vocabulary int) []int32 {
	r := rand.New(rand.NewPCG(seed, 1))
	ids := make([]int32, n)
	for i := range ids {
		ids[i] = int32(r.IntN(vocabulary))
	}
	return ids
}

var testOptions = backend.Options{MaxRows: 8, MaxTokens: 128, MaxContext: 256, NumPages: 128}

// onCPU opens the oracle of whole models: the CPU backend, which computes the same weights in fp32.
func onCPU(t testing.TB, cfg *model.Config, w *weights.Store, o backend.Options) *cpu.Backend {
	o.KVDType = "float32"
	b, err := cpu.Open(cfg, w, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	return b
}

// TestAgreesWithCPU compares logits with the CPU backend's, which computes the same dummy weights in fp32.
func TestAgreesWithCPU(t *testing.T) {
	needGPU(t)
	for name, cfg := range backendtest.Models() {
		t.Run(name, func(t *testing.T) {
			w := weights.NewDummy(cfg)
			gpu := openTest(t, cfg, w, testOptions, settings{})
			ref := onCPU(t, cfg, w, testOptions)
			for _, n := range []int{1, 5, 16, 17, 63, 64, 65, 100} {
				for _, chunk := range []int{128, 7} {
					prompt := randomPrompt(uint64(n), n, cfg.VocabSize)
					greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1}
					want := play(t, ref, 0, prompt, 128, 6, greedy, true)
					got := play(t, gpu, 0, prompt, chunk, 6, greedy, true)
					for i := range want {
						compareLogits(t, fmt.Sprintf("prompt of %d in chunks of %d, token %d", n, chunk, i), want[i].Logits, got[i].Logits)
						if got[i].Token != want[i].Token {
							gap := want[i].Logits[want[i].Token] - want[i].Logits[got[i].Token]
							require.Less(t, gap, float32(0.1), "prompt of %d, token %d: %d is not near the best %d", n, i, got[i].Token, want[i].Token)
							break // another continuation from here
						}
					}
				}
			}
		})
	}
}

// compareLogits allows the error of bf16 arithmetic: relative to the logits' size, since they come from whole sums.
func compareLogits(t testing.TB, what string, want, got []float32) {
	t.Helper()
	require.Len(t, got, len(want), what)
	var sum, diff, worst float64
	for i := range want {
		d := float64(got[i] - want[i])
		sum += float64(want[i]) * float64(want[i])
		diff += d * d
		worst = max(worst, math.Abs(d))
	}
	rms := math.Sqrt(sum / float64(len(want)))
	relative := math.Sqrt(diff / sum)
	assert.Less(t, relative, 0.02, "%s: relative error of the logits (rms %.3g, worst difference %.3g)", what, rms, worst)
}

// tokensAndLogProbs is what two runs are compared by, bit for bit.
func tokensAndLogProbs(rows []backend.RowResult) (ids []int32, bits []uint32) {
	for _, r := range rows {
		ids = append(ids, r.Token)
		bits = append(bits, math.Float32bits(r.LogProb))
		for _, l := range r.Logits {
			bits = append(bits, math.Float32bits(l))
		}
	}
	return ids, bits
}

// TestGraphEqualsEager holds that graphs, eager launches, and launches without programmatic edges give the same bits.
func TestGraphEqualsEager(t *testing.T) {
	needGPU(t)
	cfg := backendtest.Models()["llama"]
	w := weights.NewDummy(cfg)
	run := func(o backend.Options, set settings, sampling backend.Sampling) ([]int32, []uint32) {
		return tokensAndLogProbs(play(t, openTest(t, cfg, w, o, set), 3, randomPrompt(3, 33, cfg.VocabSize), 128, 64, sampling, false))
	}
	eager := testOptions
	eager.DisableGraph = true
	for name, sampling := range map[string]backend.Sampling{
		"greedy": {TopP: 1, RepetitionPenalty: 1}, "log probs": {TopP: 1, RepetitionPenalty: 1, LogProbs: true, TopLogProbs: 3},
		"temperature": {Temperature: 1, TopP: 1, RepetitionPenalty: 1, Seed: 7}, "top-p": {Temperature: 0.8, TopP: 0.9, TopK: 50, RepetitionPenalty: 1.1, Seed: 9, LogProbs: true},
	} {
		ids, bits := run(testOptions, settings{}, sampling)
		for variant, f := range map[string]func() ([]int32, []uint32){
			"eager":            func() ([]int32, []uint32) { return run(eager, settings{}, sampling) },
			"no PDL":           func() ([]int32, []uint32) { return run(testOptions, settings{noPDL: true}, sampling) },
			"eager and no PDL": func() ([]int32, []uint32) { return run(eager, settings{noPDL: true}, sampling) },
		} {
			gotIDs, gotBits := f()
			assert.Equal(t, ids, gotIDs, "%s, %s", name, variant)
			assert.Equal(t, bits, gotBits, "%s, %s", name, variant)
		}
	}
}

// TestPromptGraphs prefills several prompts of a length, the first eagerly and later ones from a graph: each has the bits of a backend
// without graphs.
func TestPromptGraphs(t *testing.T) {
	needGPU(t)
	cfg := backendtest.Models()["mistral"]
	w := weights.NewDummy(cfg)
	o := testOptions
	o.DisableGraph = true
	graphs, eager := openTest(t, cfg, w, testOptions, settings{}), openTest(t, cfg, w, o, settings{})
	sampling := backend.Sampling{TopP: 1, RepetitionPenalty: 1, LogProbs: true}
	for _, n := range []int{3, 16, 40, 100} {
		for i := range 4 {
			prompt := randomPrompt(uint64(i), n-i%3, cfg.VocabSize) // of one padded length
			wantIDs, want := tokensAndLogProbs(play(t, eager, i, prompt, 64, 4, sampling, false))
			gotIDs, got := tokensAndLogProbs(play(t, graphs, i, prompt, 64, 4, sampling, false))
			require.Equal(t, wantIDs, gotIDs, "prompt %d of %d tokens", i, len(prompt))
			require.Equal(t, want, got, "prompt %d of %d tokens", i, len(prompt))
		}
	}
	assert.Positive(t, graphs.promptGraphs)
	assert.Zero(t, eager.promptGraphs)
}

// TestReplays decodes the same token at the same place 1,000 times: a race between kernels would show as another bit.
func TestReplays(t *testing.T) {
	needGPU(t)
	cfg := backendtest.Models()["qwen3"]
	b := openTest(t, cfg, weights.NewDummy(cfg), testOptions, settings{})
	prompt := randomPrompt(5, 70, cfg.VocabSize)
	pages := []int32{0, 1, 2}
	var out backend.Result
	step := func(rows ...backend.Row) []backend.RowResult {
		id, err := b.Launch(&backend.Batch{Rows: rows})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		return out.Rows
	}
	greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1, LogProbs: true}
	for _, rows := range []int{1, 3, 8} {
		var first []backend.RowResult
		var batch, decode []backend.Row
		for slot := range rows {
			p := []int32{pages[0] + int32(3*slot), pages[1] + int32(3*slot), pages[2] + int32(3*slot)}
			batch = append(batch, backend.Row{Slot: slot, Start: &backend.Start{Sampling: greedy}, Tokens: prompt[:12], Pages: p, Sample: true})
			decode = append(decode, backend.Row{Slot: slot, Position: 12, Pages: p, Sample: true})
		}
		for i := range 1000 / rows {
			step(batch...)
			got := step(decode...)
			if i == 0 {
				first = slices.Clone(got)
				continue
			}
			for r := range got {
				require.Equal(t, first[r].Token, got[r].Token, "%d rows, replay %d", rows, i)
				require.Equal(t, math.Float32bits(first[r].LogProb), math.Float32bits(got[r].LogProb), "%d rows, replay %d", rows, i)
			}
		}
	}
}

// TestSecondStartCompilesNothing opens the same model twice with one cache.
func TestSecondStartCompilesNothing(t *testing.T) {
	needGPU(t)
	cfg := backendtest.Models()["llama"]
	set := settings{cacheDir: t.TempDir()}
	first := openTest(t, cfg, weights.NewDummy(cfg), testOptions, set).Stats()
	assert.Positive(t, first.CompiledKernels)
	second := openTest(t, cfg, weights.NewDummy(cfg), testOptions, set).Stats()
	assert.Zero(t, second.CompiledKernels)
	assert.Equal(t, first.CompiledKernels, second.CachedKernels)
	t.Logf("first start %v, second start %v", first.OpenTime, second.OpenTime)
}

// TestLargeBatches crosses from the streaming kernels to cuBLASLt: 40 rows decode as each does alone.
func TestLargeBatches(t *testing.T) {
	cfg := backendtest.Models()["qwen2"]
	o := backend.Options{MaxRows: 40, MaxTokens: 1024, MaxContext: 256, NumPages: 256}
	b := openTest(t, cfg, weights.NewDummy(cfg), o, settings{})
	const rows, n, steps = 40, 20, 8
	greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1, LogProbs: true}
	var alone [rows][]backend.RowResult
	for i := range rows {
		alone[i] = play(t, b, 0, randomPrompt(uint64(i), n, cfg.VocabSize), 128, steps, greedy, false)
	}
	var out backend.Result
	diverged := [rows]bool{}
	for s := range steps {
		var batch backend.Batch
		for i := range rows {
			r := backend.Row{Slot: i, Position: n + s - 1, Pages: []int32{int32(2 * i), int32(2*i + 1)}, Sample: true}
			if s == 0 {
				r.Start, r.Tokens, r.Position = &backend.Start{Sampling: greedy}, randomPrompt(uint64(i), n, cfg.VocabSize), 0
			}
			batch.Rows = append(batch.Rows, r)
		}
		id, err := b.Launch(&batch)
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		for i, got := range out.Rows {
			if want := alone[i][s]; !diverged[i] {
				assert.InDelta(t, want.LogProb, got.LogProb, bf16Tolerance, "row %d, step %d", i, s)
				diverged[i] = got.Token != want.Token
			}
		}
	}
}

// TestDeterministic holds that a sequence's bits do not depend on the company it keeps: alone, and among 20 others of all lengths
// that join and leave.
func TestDeterministic(t *testing.T) {
	needGPU(t)
	cfg := backendtest.Models()["qwen3"]
	b := openTest(t, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 24, MaxTokens: 1024, MaxContext: 256, NumPages: 256, Deterministic: true}, settings{})
	const steps = 24
	sampling := backend.Sampling{Temperature: 0.7, TopP: 0.95, RepetitionPenalty: 1, Seed: 3, LogProbs: true}
	prompt := randomPrompt(77, 45, cfg.VocabSize)
	wantIDs, want := tokensAndLogProbs(play(t, b, 0, prompt, 256, steps, sampling, false))

	var rows []backend.RowResult
	var out backend.Result
	for s := range steps {
		var batch backend.Batch
		for slot := range 21 {
			p, first := prompt, 0
			if slot != 10 {
				p, first = randomPrompt(uint64(slot), 1+3*slot, cfg.VocabSize), slot%5
			}
			if s < first || slot != 10 && s > first+2*slot { // has not joined yet, or has left
				continue
			}
			r := backend.Row{Slot: slot, Position: len(p) + s - first - 1, Pages: []int32{int32(4 * slot), int32(4*slot + 1), int32(4*slot + 2)}, Sample: true}
			if s == first {
				r.Start, r.Tokens, r.Position = &backend.Start{Sampling: sampling}, p, 0
			}
			if slot == 10 {
				rows = append(rows, backend.RowResult{Token: int32(len(batch.Rows))})
			}
			batch.Rows = append(batch.Rows, r)
		}
		id, err := b.Launch(&batch)
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		rows[s] = out.Rows[rows[s].Token]
	}
	gotIDs, got := tokensAndLogProbs(rows)
	assert.Equal(t, wantIDs, gotIDs)
	assert.Equal(t, want, got)
}

func TestErrors(t *testing.T) {
	cfg := backendtest.Models()["llama"]
	for name, c := range map[string]struct {
		change func(*model.Config, *backend.Options)
		want   string
	}{
		"heads":      {func(c *model.Config, _ *backend.Options) { c.HeadDim = 80 + 8 }, "heads of 88"},
		"page size":  {func(_ *model.Config, o *backend.Options) { o.PageSize = 48 }, "want 16, 32 or 64"},
		"dtype":      {func(_ *model.Config, o *backend.Options) { o.DType = "float16" }, "computes in bfloat16"},
		"KV dtype":   {func(_ *model.Config, o *backend.Options) { o.KVDType = "float32" }, "has auto, bfloat16 and fp8_e4m3"},
		"context":    {func(_ *model.Config, o *backend.Options) { o.MaxContext = 1 << 20 }, "the model allows 512"},
		"step":       {func(_ *model.Config, o *backend.Options) { o.MaxTokens = 4 }, "at least one for each of its 8 rows"},
		"rows":       {func(_ *model.Config, o *backend.Options) { o.MaxRows, o.MaxTokens = 4096, 8192 }, "up to 1024"},
		"quantized":  {func(_ *model.Config, o *backend.Options) { o.Quantization = "int3" }, "has fp8 and int4"},
		"negative":   {func(_ *model.Config, o *backend.Options) { o.NumPages = -1 }, "KV pages -1"},
		"memory use": {func(_ *model.Config, o *backend.Options) { o.MemFraction = 2 }, "want a number in 0..1"},
	} {
		changed, o := *cfg, testOptions
		c.change(&changed, &o)
		_, err := Open(&changed, weights.NewDummy(&changed), o)
		require.ErrorContains(t, err, c.want, name)
		assert.NotContains(t, err.Error(), "\n", "one line")
	}
}

func TestChooseDevice(t *testing.T) {
	old, ada := driver.Device{Name: "Tesla V100", Major: 7}, driver.Device{Ordinal: 1, Name: "L4", Major: 8, Minor: 9}
	compiler := &driver.Compiler{Path: "/usr/lib/libnvrtc.so.13", Major: 13}
	d, err := choose([]driver.Device{old, ada}, 13000, compiler)
	require.NoError(t, err)
	assert.Equal(t, ada, d)
	_, err = choose([]driver.Device{old}, 13000, compiler)
	assert.EqualError(t, err, "compute capability 8.0 is needed: Tesla V100 has 7.0")
	_, err = choose([]driver.Device{ada}, 12040, compiler)
	assert.EqualError(t, err, "the driver supports CUDA 12.4, but /usr/lib/libnvrtc.so.13 makes code for CUDA 13: update the NVIDIA driver, or set TOKAMAK_NVRTC to an older libnvrtc")
}

func TestTooLittleMemory(t *testing.T) {
	s := testShapes()["llama-8b"]
	s.Layers = 32
	const gib = 1 << 30
	_, err := sizePages(s, backend.Options{MemFraction: 0.88}, 16*gib, 1*gib, 10*gib, 80*gib)
	var e *MemoryError
	require.ErrorAs(t, err, &e)
	assert.Contains(t, err.Error(), "of 10240 MiB free")
	_, err = sizePages(s, backend.Options{NumPages: 10000}, 16*gib, 1*gib, 79*gib, 80*gib)
	require.ErrorAs(t, err, &e, "asked for more pages than fit")
	n, err := sizePages(s, backend.Options{MemFraction: 0.88}, 16*gib, 1*gib, 79*gib, 80*gib)
	require.NoError(t, err)
	assert.InDelta(t, (0.88*80-16)*gib/float64(64*131072), n, 1)

	needGPU(t)
	cfg := backendtest.Models()["llama"]
	o := testOptions
	o.NumPages = 1 << 26
	_, err = Open(cfg, weights.NewDummy(cfg), o)
	require.ErrorAs(t, err, &e, "before anything is allocated")
}

// TestSmolLM2 holds the real model to the CPU backend, which computes it in fp32: over whole prompts the logits agree within the error
// of bf16, and greedy tokens until two of them are nearly tied.
func TestSmolLM2(t *testing.T) {
	needGPU(t)
	path, err := fetch.Path()
	if err != nil {
		t.Skip(err)
	}
	file, err := weights.OpenGGUF(path)
	require.NoError(t, err)
	defer file.Close()
	cfg, err := model.FromGGUF(file.Meta, "")
	require.NoError(t, err)
	w, err := file.Store(cfg)
	require.NoError(t, err)
	cases, err := goldens.SmolLM2()
	require.NoError(t, err)
	o := backend.Options{MaxRows: 4, MaxTokens: 256, MaxContext: 512, NumPages: 64}
	gpu := openTest(t, cfg, w, o, settings{})
	ref, err := cpu.Open(cfg, w, o)
	require.NoError(t, err)
	defer ref.Close()
	greedy := backend.Sampling{TopP: 1, RepetitionPenalty: 1}
	for _, c := range cases {
		want, got := play(t, ref, 0, c.PromptIDs, 256, len(c.GreedyIDs), greedy, true), play(t, gpu, 0, c.PromptIDs, 256, len(c.GreedyIDs), greedy, true)
		agreed, kl := 0, 0.0
		for i := range want {
			kl += divergence(want[i].Logits, got[i].Logits)
			require.Equal(t, c.GreedyIDs[i], want[i].Token, "the CPU backend gives the golden")
			if got[i].Token != want[i].Token {
				gap := want[i].Logits[want[i].Token] - want[i].Logits[got[i].Token]
				require.Less(t, gap, float32(0.25), "%q, token %d: not nearly tied", c.Prompt, i)
				break
			}
			agreed++
		}
		kl /= float64(agreed)
		assert.Less(t, kl, 1e-2, "%q: mean divergence from the CPU's fp32: weights of 4 bits rounded to bf16, and bf16 arithmetic through 30 layers", c.Prompt)
		t.Logf("%q: KL %.2e, %d of %d greedy tokens are the golden's %q", c.Prompt, kl, agreed, len(want), c.GreedyText)
	}
}
