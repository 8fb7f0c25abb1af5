//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// exerciseOptions leave room for every way that a step can take: streaming kernels, tensor cores, the library.
var exerciseOptions = backend.Options{MaxRows: 64, MaxTokens: 512, MaxContext: 512, NumPages: 64 * 8}

// exerciseCase is a model and how it is opened.
type exerciseCase struct {
	model   *model.Config
	options backend.Options
}

// exerciseCases are two layers each: the families, heads that the wgmma kernels do not take, every format of weights and cache, and drafts.
func exerciseCases() map[string]exerciseCase {
	cases := map[string]exerciseCase{}
	for name, cfg := range backendtest.Models() {
		cases[name] = exerciseCase{cfg, exerciseOptions}
	}
	with := func(name, base string, change func(c *model.Config, o *backend.Options)) {
		cfg, o := *backendtest.Models()[base], exerciseOptions
		change(&cfg, &o)
		cases[name] = exerciseCase{&cfg, o}
	}
	with("heads of 32", "qwen2", func(c *model.Config, _ *backend.Options) { c.NumHeads, c.NumKVHeads, c.HeadDim = 8, 2, 32 })
	with("weights of e4m3", "llama", func(_ *model.Config, o *backend.Options) { o.Quantization = "fp8" })
	with("cache of e4m3", "llama", func(_ *model.Config, o *backend.Options) { o.KVDType = kvFP8 })
	with("weights of four bits", "llama", func(c *model.Config, o *backend.Options) {
		o.Quantization = "int4"
		c.Quantization = &model.Quantization{Method: "awq", Scheme: "int4", Granularity: "group", GroupSize: 128}
	})
	with("drafts", "mistral", func(_ *model.Config, o *backend.Options) { o.MaxVerify = 2 * backend.MaxRowDrafts })
	cases["mixture"] = exerciseCase{mixtureModel(16, 4), exerciseOptions}
	return cases
}

// exercise takes b through all kinds of steps, and returns what came out, bit for bit. With poison, all that a step must not take from
// the one before it is NaN, or -1, when it begins; so are the KV pages at first.
type exercise struct {
	testing.TB
	b      *Backend
	poison bool
	bits   []uint32
}

func newExercise(t testing.TB, b *Backend, poison bool) *exercise {
	x := &exercise{TB: t, b: b, poison: poison}
	// Rows of padding, and keys behind the last token of a tile, are computed of whatever is there, and nobody reads what comes of them: that
	// is what the poison tells. Without it they begin as zeros, or initcheck would name each of them.
	x.fill(0, x.activations()...)
	x.fill(0, x.followed()...)
	kv, value := room{b.buffers.KV, b.shape.layerKVBytes() * int64(b.shape.Layers)}, byte(0)
	if poison {
		value = 0xFF
	}
	x.fill(value, kv)
	return x
}

// room is memory on the device.
type room struct {
	p     ptr
	bytes int64
}

func (x *exercise) fill(value byte, rooms ...room) {
	x.Helper()
	for _, room := range rooms {
		if room.bytes > 0 {
			require.NoError(x, driver.Memset(room.p, value, room.bytes, x.b.stream))
		}
	}
}

// activations are the buffers that a step fills anew.
func (x *exercise) activations() []room {
	b, s := &x.b.buffers, x.b.shape
	t, l := int64(s.tokenRows()), int64(s.logitRows())
	rooms := []room{
		{b.X, t * int64(s.Hidden) * bf16Bytes}, {b.XN, t * int64(s.Hidden) * bf16Bytes}, {b.QKV, t * int64(s.qkvDim()) * bf16Bytes},
		{b.Att, t * int64(s.qDim()) * bf16Bytes}, {b.GU, s.guBytes()}, {b.Act, s.actBytes()},
		{b.XS, l * int64(s.Hidden) * bf16Bytes}, {b.Logits, l * int64(s.Vocab) * 4}, {b.Sampled, 16 * l}, {b.Top, 8 * maxTop * l},
		{b.TokID, 4 * t}, {b.TokPos, 4 * t}, {b.TokSlot, 4 * t}, {b.RowSlot, 4 * l}, {b.RowPos, 4 * l}, {b.RowLen, 4 * l}, {b.RowStart, 4 * l},
		{b.RowCtx, 4 * l}, {b.SampleTok, 4 * l}, {b.SampleSlot, 4 * l}, {b.SamplePos, 4 * l}, {b.MaskRow, 4 * l},
		{b.AttnScratch + ptr(attnCounterBytes(s)), attnScratchBytes(x.b.device, s) - attnCounterBytes(s)}, {b.HeadScratch, headScratchBytes(x.b.device, s)},
		{b.QX, t * int64(s.QuantizedCols)}, {b.QScale, 4 * t}, {b.Dequantised, int64(s.Dequantised) * bf16Bytes},
		{b.Widened, s.widenedBytes(x.b.device)},
	}
	if s.Dequantised > 0 {
		rooms = append(rooms, room{b.W4Part, w4GEMMBytes(x.b.device)})
	}
	if s.MoE.Experts > 0 {
		pairs := t * int64(s.MoE.TopK)
		rooms = append(rooms, room{b.MoE.Logits, 4 * t * int64(s.MoE.Experts)}, room{b.MoE.Expert, 2 * pairs}, room{b.MoE.Weight, 4 * pairs},
			room{b.MoE.X, pairs * int64(s.Hidden) * bf16Bytes})
	}
	return rooms
}

// followed are what a step fills anew as well, but a kernel that came too early would follow poison there to memory that is none: it
// finds what the last step left.
func (x *exercise) followed() []room {
	m, s := &x.b.buffers.MoE, x.b.shape.MoE
	if s.Experts == 0 {
		return nil
	}
	pairs := int64(x.b.shape.tokenRows() * s.TopK)
	return []room{{m.Pair, 4 * pairs}, {m.Count, 4 * int64(s.Experts)}, {m.First, 4 * int64(s.Experts)}}
}

// launch enqueues a step, behind the poison.
func (x *exercise) launch(rows []backend.Row) backend.StepID {
	x.Helper()
	if x.poison {
		x.fill(0xFF, x.activations()...)
	}
	id, err := x.b.Launch(&backend.Batch{Rows: rows})
	require.NoError(x, err)
	return id
}

// wait awaits a step, notes what its rows gave and returns it.
func (x *exercise) wait(id backend.StepID) []backend.RowResult {
	x.Helper()
	var out backend.Result
	require.NoError(x, x.b.Wait(id, &out))
	note := func(v float32) { x.bits = append(x.bits, math.Float32bits(v)) }
	for _, r := range out.Rows {
		for _, s := range append([]backend.Sampled{{Token: r.Token, LogProb: r.LogProb, Top: r.Top}}, r.More...) {
			x.bits = append(x.bits, uint32(s.Token))
			note(s.LogProb)
			for _, top := range s.Top {
				x.bits = append(x.bits, uint32(top.Token))
				note(top.LogProb)
			}
		}
		for _, v := range slices.Concat(r.TargetLogProbs, r.Logits) {
			note(v)
		}
		if r.NonFinite {
			x.bits = append(x.bits, 0xDEAD)
		}
	}
	return out.Rows
}

// sequences starts n sequences of a length, decodes steps tokens with two steps in flight, and ends with a step that shows its logits: in
// them is all that went into the KV pages. Prompts go in chunks, all of them twice.
func (x *exercise) sequences(n, length, chunk, steps int, sampling func(slot int) backend.Sampling) {
	x.Helper()
	vocabulary := x.b.info.VocabSize
	pages := x.b.shape.MaxPages
	rows := func(at int, change func(slot int, r *backend.Row)) []backend.Row {
		out := make([]backend.Row, n)
		for slot := range out {
			out[slot] = backend.Row{Slot: slot, Position: at, Sample: true}
			for page := range pages {
				out[slot].Pages = append(out[slot].Pages, int32(slot*pages+page))
			}
			if change != nil {
				change(slot, &out[slot])
			}
		}
		return out
	}
	prompt := func(at int) {
		x.Helper()
		x.wait(x.launch(rows(at, func(slot int, r *backend.Row) {
			tokens := randomPrompt(uint64(31*n+slot), length, vocabulary)
			r.Tokens = tokens[at:min(at+chunk, length)]
			r.Sample = at+len(r.Tokens) == length
			if at == 0 {
				r.Start = &backend.Start{Sampling: sampling(slot), Prompt: tokens}
			}
			if sampling(slot).LogProbs && x.b.blas != nil { // their logits are the library's
				r.Targets = randomPrompt(uint64(slot), len(r.Tokens), vocabulary)
			}
		})))
	}
	passes := 2 // a step with prompts is a graph the second time: then the host is not late, and kernels overlap on a busy machine too
	if testing.Short() {
		passes = 1
	}
	for range passes {
		for at := 0; at < length; at += chunk {
			prompt(at)
		}
	}
	var last backend.StepID
	for i := range steps {
		id := x.launch(rows(length+i, func(slot int, r *backend.Row) {
			if sampling(slot).LogProbs && slot%2 == 1 {
				r.Mask = slices.Repeat([]uint32{0x5555AAAA}, (vocabulary+31)/32)
			}
		}))
		if i > 0 {
			x.wait(last)
		}
		last = id
	}
	x.wait(last)
	x.wait(x.launch(rows(length+steps, func(_ int, r *backend.Row) { r.Logits = true })))
}

func greedySampling(int) backend.Sampling { return backend.Sampling{} }

// richSampling has every option of the sampler in use.
func richSampling(slot int) backend.Sampling {
	return backend.Sampling{Temperature: 0.9, TopK: 40, TopP: 0.95, MinP: 0.01, RepetitionPenalty: 1.2, PresencePenalty: 0.3, FrequencyPenalty: 0.2,
		Bias: []backend.TokenBias{{Token: 3, Bias: 2}, {Token: 5, Bias: -100}}, Seed: uint64(slot + 1), LogProbs: true, TopLogProbs: 5}
}

// drafts decodes a sequence token by token, then again with its tokens as drafts.
func (x *exercise) drafts(length, generate int) {
	x.Helper()
	step := func(r backend.Row) backend.RowResult { return x.wait(x.launch([]backend.Row{r}))[0] }
	prompt, tokens := randomPrompt(3, length, x.b.info.VocabSize), make([]int32, generate)
	for _, run := range []int{0, 1, 6, backend.MaxRowDrafts} {
		for i, r := range playDrafts(x.b.info, step, 0, prompt, tokens, run, backend.Sampling{LogProbs: true, TopLogProbs: 3}) {
			tokens[i] = r.Token
		}
	}
}

// all is every kind of step once; for compute-sanitizer's slower tools, -test.short takes fewer of each.
func (x *exercise) all() []uint32 {
	x.Helper()
	if x.b.info.MaxVerify > 0 {
		x.drafts(40, 24)
		return x.bits
	}
	if testing.Short() {
		x.sequences(1, 5, 5, 2, greedySampling)
		x.sequences(5, 3, 3, 2, greedySampling)
		x.sequences(24, 2, 2, 2, greedySampling)
		chunk := 140
		if x.b.blas == nil {
			chunk = gemmFP8Pays // of every format the most tokens that are not the library's
		}
		x.sequences(1, 140, chunk, 2, greedySampling)
		x.sequences(3, 10, 10, 2, richSampling)
		return x.bits
	}
	x.sequences(1, 5, 5, 6, greedySampling) // streaming kernels: 1 row, 5 rows
	x.sequences(2, 8, 4, 6, greedySampling)
	x.sequences(5, 3, 3, 6, greedySampling)
	x.sequences(24, 2, 2, 6, greedySampling)   // tensor cores: 48 rows, 24 rows
	x.sequences(40, 12, 12, 6, greedySampling) // the library
	x.sequences(64, 7, 7, 4, greedySampling)
	x.sequences(1, 400, 130, 6, greedySampling) // several splits
	x.sequences(3, 100, 100, 6, richSampling)
	x.sequences(20, 9, 9, 6, richSampling)
	return x.bits
}

// notInSteps are kernels that no step of these models launches, each with the reason.
func notInSteps() map[string]string {
	not := map[string]string{
		"read_probe":    "reads ten times the L2 at start, which these models do not have",
		"fp8_dequant":   "is for devices whose library takes no e4m3: TestFP8Dequant runs it",
		"draft_capture": "reads layers for a draft head: TestDraftHead runs it", "draft_gather": "likewise", "draft_pair": "likewise",
		"attn_prefix": "is off: TestAttnPrefix runs it",
	}
	if gemmPays <= gemvRows {
		not["gemm_sm90"] = "is off, as the library is as fast: TestGEMM runs it"
	}
	return not
}

// TestEveryKernelRuns takes small models through all kinds of steps: each kernel of engine/kernels is among what was launched, and the
// results are finite. What it is for is to be run under compute-sanitizer: make sanitize. TOKAMAK_TEST_BARE=1, with -test.short, leaves
// cuBLASLt out, whose kernels lose the context under racecheck, and the probe of the matrix units, whose reads of shared memory it follows one by one.
func TestEveryKernelRuns(t *testing.T) {
	needGPU(t)
	ran := map[string]bool{}
	for name, c := range exerciseCases() {
		t.Run(name, func(t *testing.T) {
			o := c.options
			o.DisableGraph = testing.Short() // one of each size takes longer to capture than these steps to run
			b := openTest(t, c.model, weights.NewDummy(c.model), o, settings{bare: os.Getenv("TOKAMAK_TEST_BARE") != ""})
			for _, bits := range newExercise(t, b, false).all() {
				require.NotEqual(t, uint32(0xDEAD), bits, "logits that are not finite")
			}
			for u := range b.functions {
				ran[u.Symbol] = true
			}
		})
	}
	files, err := os.ReadDir("../kernels")
	require.NoError(t, err)
	for _, f := range files {
		if kernel, ok := strings.CutSuffix(f.Name(), ".cu"); ok && !testing.Short() && notInSteps()[kernel] == "" {
			assert.True(t, ran[kernel], "%s was not launched", kernel)
		}
	}
	t.Log(fmt.Sprint(len(ran), " kernels"))
}
