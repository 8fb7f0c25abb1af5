//go:build cuda

package cuda

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/backend/backendtest"
	"github.com/tokamak-engine/tokamak/engine/cpu"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/engine/weights"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// tinyHead is the tiny Llama with its draft head.
func tinyHead(t testing.TB) (*model.Config, *weights.Store) {
	dir, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	head, err := tinymodel.Dir(tinymodel.DraftHead)
	require.NoError(t, err)
	return backendtest.WithDraftHead(t, dir, head)
}

// headOptions give all these tests, and the engine's, the same kernels: a head has as many of its own as a model, and compiling them is what takes time.
var headOptions = backend.Options{MaxRows: 8, MaxTokens: 512, MaxContext: 128, PageSize: 16, NumPages: 96, MaxVerify: 48}

// dummyHead is a small Llama whose head is as wide as that of a large one in everything that decides between kernels: heads of 128, and guesses
// over a part of the vocabulary.
func dummyHead(testing.TB) (*model.Config, *weights.Store) {
	cfg := &model.Config{
		Architecture: "LlamaForCausalLM", Family: "llama", HiddenSize: 512, IntermediateSize: 1024, NumLayers: 6, NumHeads: 8, NumKVHeads: 2, HeadDim: 64,
		VocabSize: 2048, MaxPositions: 4096, RMSNormEps: 1e-5, RoPE: model.RoPE{Theta: 500000, AttentionFactor: 1}, DType: "bfloat16",
	}
	layer := *cfg
	layer.NumLayers, layer.NumHeads, layer.NumKVHeads, layer.HeadDim, layer.RoPE.Theta = 1, 4, 2, 128, 10000
	cfg.DraftHead = &model.DraftHead{Layer: layer, VocabSize: 1000, AuxLayers: [3]int{1, 2, 4}, TargetHiddenSize: cfg.HiddenSize}
	w := weights.NewDummy(cfg)
	w.AddDummyDraftHead(cfg.DraftHead)
	return cfg, w
}

// telling is a sequence that comes in chunks, and then with drafts that are right, and now and then wrong in the middle.
type telling struct {
	slot                   int
	prompt, says           []int32
	chunk, drafts, guesses int

	got   [][]backend.Guess // behind each token said; nil where none were asked
	said  int
	steps int
	next  backend.Row
	ended bool
}

// tell plays sequences together until all have ended. One ends early if the model says something else: two tokens were as good.
func tell(t *testing.T, b backend.Backend, sequences ...*telling) {
	for _, q := range sequences {
		q.got = make([][]backend.Guess, len(q.says))
		q.next = backend.Row{Slot: q.slot, Start: &backend.Start{}, Pages: pagesOf(b, q.slot)}
		q.goOn()
	}
	var out backend.Result
	for {
		var batch backend.Batch
		var rows []*telling
		for _, q := range sequences {
			if !q.ended {
				batch.Rows, rows = append(batch.Rows, q.next), append(rows, q)
			}
		}
		if len(rows) == 0 {
			return
		}
		id, err := b.Launch(&batch)
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		for i, q := range rows {
			q.took(t, &out.Rows[i])
		}
	}
}

// pagesOf are a slot's own pages.
func pagesOf(b backend.Backend, slot int) []int32 {
	pages := make([]int32, b.Info().MaxContext/b.Info().PageSize)
	for i := range pages {
		pages[i] = int32(slot*len(pages) + i)
	}
	return pages
}

// goOn makes the next row of what was said and what is left of the prompt.
func (q *telling) goOn() {
	r := &q.next
	r.Follow, r.Drafts = true, nil
	if left := len(q.prompt) - r.Position; left > 0 {
		r.Tokens = q.prompt[r.Position:min(len(q.prompt), r.Position+q.chunk)]
		if r.Sample = left <= q.chunk; r.Sample {
			r.Guess = q.guesses
		}
		return
	}
	r.Tokens, r.Position = nil, len(q.prompt)+q.said-1
	r.Drafts = append(r.Drafts, q.says[q.said:min(len(q.says)-1, q.said+q.drafts)]...)
	if n := len(r.Drafts); n > 1 && q.steps%3 == 2 {
		r.Drafts[n/2] ^= 1
	}
}

func (q *telling) took(t *testing.T, r *backend.RowResult) {
	q.next.Start = nil
	if !q.next.Sample {
		q.next.Position += len(q.next.Tokens)
		q.goOn()
		return
	}
	q.steps++
	if q.ended = r.Token != q.says[q.said]; q.ended {
		return
	}
	q.said++
	for _, m := range r.More {
		if q.ended = m.Token != q.says[q.said]; q.ended { // behind the last draft, as good
			return
		}
		q.said++
	}
	q.got[q.said-1] = append([]backend.Guess(nil), r.Guesses...)
	q.next.Position = len(q.prompt) // past the prompt
	if q.ended = q.said == len(q.says); !q.ended {
		q.goOn()
	}
}

// sameGuesses compares guesses with wanted ones, up to the first of a chain that differs. It returns how many it compared, how many of those
// differ, and the furthest that the logarithms of their probabilities lie apart: two tokens that are as good may change places, then both are
// about as likely.
func sameGuesses(t *testing.T, want, got [][]backend.Guess) (compared, different int, furthest float64) {
	for i := range want {
		if len(got[i]) == 0 {
			continue // accepted as a draft, nothing was asked behind it; or another text
		}
		require.Len(t, got[i], len(want[i]), "behind token %d", i)
		for k, g := range got[i] {
			compared++
			furthest = max(furthest, math.Abs(math.Log(float64(want[i][k].Prob))-math.Log(float64(g.Prob))))
			if want[i][k].Token != g.Token {
				different++
				break
			}
		}
	}
	return compared, different, furthest
}

// TestDraftHead: guesses on the device are the CPU's, whatever chunks, drafts and batch mates.
func TestDraftHead(t *testing.T) {
	for _, c := range []struct {
		name   string
		open   func(testing.TB) (*model.Config, *weights.Store)
		prompt int
		// What the logarithm of a probability may differ by. See bf16Tolerance: logits of about 3 differ by up to 0.08 there. The dummy head reads states
		// that have passed 3 times as many layers, sqrt(3) of that and again for the layer of its own; the trained tiny one has logits of up to 15.
		tolerance float64
		turned    int // one of so many guesses may be another that is as good; the dummy's logits are flat
	}{{"tiny", tinyHead, 40, 0.4, 10}, {"dummy", dummyHead, 90, 0.2, 3}} {
		t.Run(c.name, func(t *testing.T) {
			cfg, w := c.open(t)
			const says = 24
			o := headOptions
			b := openTest(t, cfg, w, o, settings{})
			require.True(t, b.Info().DraftHead)
			o.Threads = 2
			host, err := cpu.Open(cfg, w, o)
			require.NoError(t, err)
			defer func() { require.NoError(t, host.Close()) }()
			plays := []*telling{{chunk: 1000, guesses: 4}, {chunk: 37, guesses: 4}, {chunk: 1, drafts: 3, guesses: 2}, {chunk: 16, drafts: 5, guesses: 5}}
			for i, q := range plays {
				q.slot, q.prompt = i, randomPrompt(uint64(5+i), c.prompt-i, cfg.VocabSize)
				// What the model says is the device's own: it may differ from the CPU's where two tokens are as good.
				for _, r := range play(t, b, i, q.prompt, len(q.prompt), says, backend.Sampling{}, false) {
					q.says = append(q.says, r.Token)
				}
			}
			check := func(what string, q *telling) {
				want := guessesBehind(t, host, q)
				compared, different, furthest := sameGuesses(t, want, q.got)
				t.Logf("%s, chunks of %d, %d drafts: %d guesses, %d differ, log probabilities by up to %.3f", what, q.chunk, q.drafts, compared, different, furthest)
				require.Greater(t, compared, 5)
				require.LessOrEqual(t, different*c.turned, compared)
				require.LessOrEqual(t, furthest, c.tolerance)
			}
			for _, q := range plays {
				alone := *q
				tell(t, b, &alone)
				check("alone", &alone)
			}
			tell(t, b, plays...)
			for _, q := range plays {
				check("together", q)
			}
		})
	}
}

// guessesBehind is what the head guesses behind each token of a text that is given: masks leave the model no other, so it does not matter what it
// would say.
func guessesBehind(t *testing.T, b backend.Backend, q *telling) [][]backend.Guess {
	var out backend.Result
	all := make([][]backend.Guess, len(q.says))
	row := backend.Row{Start: &backend.Start{}, Tokens: q.prompt}
	for i, token := range q.says {
		row.Mask = make([]uint32, (b.Info().VocabSize+31)/32)
		row.Mask[token/32] |= 1 << (token % 32)
		row.Pages, row.Sample, row.Follow, row.Guess = pagesOf(b, 0), true, true, q.guesses
		id, err := b.Launch(&backend.Batch{Rows: []backend.Row{row}})
		require.NoError(t, err)
		require.NoError(t, b.Wait(id, &out))
		require.Equal(t, token, out.Rows[0].Token)
		all[i] = append([]backend.Guess(nil), out.Rows[0].Guesses...)
		row = backend.Row{Position: len(q.prompt) + i}
	}
	return all
}

// TestGuessesAsDrafts: a sequence whose guesses are verified as its drafts has the tokens and the bits of one decoded token by token, with graphs and
// without; and after the prompts that the tiny head knows by heart, guesses are right.
func TestGuessesAsDrafts(t *testing.T) {
	goldens, err := tinymodel.DraftHeadGoldens()
	require.NoError(t, err)
	for _, graphs := range []bool{true, false} {
		cfg, w := tinyHead(t)
		o := headOptions
		o.DisableGraph = !graphs
		b := openTest(t, cfg, w, o, settings{})
		sampling := backend.Sampling{TopP: 1, RepetitionPenalty: 1, LogProbs: true}
		accepted, verified := 0, 0
		for _, g := range goldens {
			const says, guesses = 24, 4
			want := play(t, b, 0, g.Prompt, len(g.Prompt), says, sampling, false)
			row := backend.Row{Slot: 1, Start: &backend.Start{Sampling: sampling}, Tokens: g.Prompt, Sample: true}
			for i := range int32(6) {
				row.Pages = append(row.Pages, 20+i)
			}
			var out backend.Result
			for said := 0; said < says; {
				row.Follow, row.Guess = true, guesses
				id, err := b.Launch(&backend.Batch{Rows: []backend.Row{row}})
				require.NoError(t, err)
				require.NoError(t, b.Wait(id, &out))
				r := &out.Rows[0]
				for i, s := range append([]backend.Sampled{{Token: r.Token, LogProb: r.LogProb}}, r.More...) {
					require.Equal(t, want[said].Token, s.Token, "token %d, %d of its step", said, i)
					require.Equal(t, want[said].LogProb, s.LogProb, "token %d, %d of its step", said, i)
					said++
				}
				accepted, verified = accepted+len(r.More), verified+len(row.Drafts)
				row = backend.Row{Slot: 1, Pages: row.Pages, Position: len(g.Prompt) + said - 1, Sample: true}
				for _, guess := range r.Guesses[:min(guesses, max(0, says-said-1))] {
					row.Drafts = append(row.Drafts, guess.Token)
				}
			}
		}
		t.Logf("graphs %t: %d of %d guesses are right", graphs, accepted, verified)
		require.Greater(t, 6*accepted, verified)
	}
}

// TestDraftHeadKeepsItsUnits holds that no pass, and no step that the head reads, needs a kernel that Open did not compile.
func TestDraftHeadKeepsItsUnits(t *testing.T) {
	cfg, w := dummyHead(t)
	d, s := testDevices["sm_90"], newShape(cfg)
	s.Page, s.MaxContext, s.MaxPages, s.MaxRows, s.MaxTokens, s.MaxVerify = 16, 512, 32, 48, 1024, 48
	h, err := planDraftHead(cfg.DraftHead, w, d, s, &buffers{})
	require.NoError(t, err)
	keepsUnits(t, "the head", h.layer.planner, 32)
	model := plannerOf(d, s, layerWeights{})
	model.layers, model.captures = make([]layerWeights, cfg.NumLayers), h
	keepsUnits(t, "the model", model, 32)
	captured := 0
	for _, n := range model.step(stepShape{rows: 1, decode: 1, tokens: 1, samples: 1}.padded(), hooks{}) {
		if n.op != nil && n.op.Name == "draft_capture" {
			captured++
			require.True(t, n.op.PDL)
		}
	}
	require.Equal(t, len(cfg.DraftHead.AuxLayers), captured)
}

// TestDraftHeadCompiles compiles what a head needs beside a model's kernels, for every architecture. For sm_90a it refuses local memory.
func TestDraftHeadCompiles(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	s := testShapes()["llama-8b"]
	units := []unit{draftCaptureOp(s, &buffers{}, 0, 0, 1, 1).Unit, draftGatherOp(0, 0, 0, 1, s.Hidden).Unit, draftGatherOp(0, 0, 0, 1, 3*s.Hidden).Unit,
		draftPairOp(s, draftPairParams{}, 1).Unit}
	for name, d := range testDevices {
		compileUnits(t, nvrtc, d, s, units, name == "sm_90")
	}
}

// BenchmarkDraftHead is what a head costs a step of Llama 3.1 8B, B=1 in 512: nothing where no row is followed, what it takes to read, and to guess.
//
//	go test -tags cuda ./engine/cuda -run '^$' -bench DraftHead -benchtime 1x
func BenchmarkDraftHead(b *testing.B) {
	const tokens, runs, steps = 512, 5, 100
	cfg := benchModels()["llama-8b"]
	layer := *cfg
	layer.NumLayers, layer.TieEmbeddings = 1, false
	for _, c := range []struct {
		name   string
		head   bool
		follow bool
		guess  int
	}{{"head=none", false, false, 0}, {"head=idle", true, false, 0}, {"head=reads", true, true, 0}, {"guesses=1", true, true, 1}, {"guesses=3", true, true, 3},
		{"guesses=7", true, true, 7}} {
		b.Run(c.name, func(b *testing.B) {
			model := *cfg
			w := weights.NewDummy(cfg)
			if c.head {
				model.DraftHead = newHead(cfg, &layer)
				w.AddDummyDraftHead(model.DraftHead)
			}
			be := openTest(b, &model, w, backend.Options{MaxRows: 48, MaxTokens: 2048, MaxContext: 4096, MaxVerify: 48, MemFraction: 0.4}, settings{})
			pages := make([]int32, 4096/be.Info().PageSize)
			for i := range pages {
				pages[i] = int32(i)
			}
			var out backend.Result
			step := func(row backend.Row) {
				row.Pages, row.Sample, row.Follow, row.Guess = pages, true, c.follow, c.guess
				id, err := be.Launch(&backend.Batch{Rows: []backend.Row{row}})
				require.NoError(b, err)
				require.NoError(b, be.Wait(id, &out))
				require.Len(b, out.Rows[0].Guesses, c.guess)
			}
			for b.Loop() {
				step(backend.Row{Start: &backend.Start{}, Tokens: randomPrompt(1, tokens, model.VocabSize)})
				at := tokens
				var times []float64
				for range runs {
					began := time.Now()
					for range steps {
						step(backend.Row{Position: at})
						at++
					}
					times = append(times, time.Since(began).Seconds()*1e3/steps)
				}
				slices.Sort(times)
				b.ReportMetric(times[runs/2], "step-ms")
				b.ReportMetric(times[0], "least-ms")
				b.ReportMetric(times[runs-1], "most-ms")
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// newHead is a head of the usual kind: 32,000 tokens of the target's.
func newHead(target, layer *model.Config) *model.DraftHead {
	return &model.DraftHead{Layer: *layer, VocabSize: 32000, AuxLayers: [3]int{1, target.NumLayers/2 - 1, target.NumLayers - 4}, TargetHiddenSize: target.HiddenSize}
}
