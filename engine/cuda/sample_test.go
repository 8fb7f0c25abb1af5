//go:build cuda

package cuda

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cpu"
)

// sampleCase is one sequence for start, sample and publish.
type sampleCase struct {
	sampling       backend.Sampling
	prompt, output []int32
	masked         bool
	flat           float64 // standard deviation of the logits
	ties           bool    // logits in steps of a quarter
	bad            bool    // one logit is NaN
}

func sampleCases() []sampleCase {
	var cases []sampleCase
	add := func(c sampleCase) { cases = append(cases, c) }
	for _, flat := range []float64{0.3, 1.5, 5} {
		for _, ties := range []bool{false, true} {
			for i, s := range []backend.Sampling{
				{}, {Temperature: 1}, {Temperature: 0.3, TopK: 1}, {Temperature: 1.2, TopK: 40}, {Temperature: 0.8, TopP: 0.9}, {Temperature: 1, TopP: 0.05},
				{Temperature: 1, MinP: 0.1}, {Temperature: 2, TopK: 50, TopP: 0.95, MinP: 0.02}, {Temperature: 1, TopK: 5000, TopP: 0.999}, {Temperature: 1e-8},
				{Temperature: 0.7, TopP: 0.8, RepetitionPenalty: 1.3, PresencePenalty: 0.5, FrequencyPenalty: 0.25}, {RepetitionPenalty: 1.1},
				{Temperature: 1, TopK: 20, Bias: []backend.TokenBias{{Token: 3, Bias: 9}, {Token: 100, Bias: -50}, {Token: 3, Bias: 1}}},
				{LogProbs: true}, {Temperature: 1, LogProbs: true, TopLogProbs: 20}, {TopLogProbs: 5, Bias: []backend.TokenBias{{Token: 7, Bias: 30}}},
			} {
				s.Seed = uint64(i)*0x9E3779B97F4A7C15 + uint64(flat*10)
				add(sampleCase{sampling: s, flat: flat, ties: ties, prompt: []int32{1, 2, 3, 3, 500}, output: []int32{2, 9, 9, 9, 77}, masked: i%3 == 1})
			}
		}
	}
	add(sampleCase{flat: 1, bad: true})
	return cases
}

// TestSample holds start, sample and publish against the CPU backend's stages, all cases as rows of one launch.
func TestSample(t *testing.T) {
	needGPU(t)
	for _, vocabulary := range []int{3003, 32000, 128256} {
		for _, ctas := range []int{1, 8} {
			t.Run(fmt.Sprintf("%d/ctas=%d", vocabulary, ctas), func(t *testing.T) {
				if d, err := pickDevice(); err == nil && d.Major < 9 && ctas > 1 {
					t.Skip("clusters of CTAs need compute capability 9.0")
				}
				testSample(t, vocabulary, ctas)
			})
		}
	}
}

func testSample(t *testing.T, vocabulary, ctas int) {
	cases := sampleCases()
	s := testShapes()["llama-8b"]
	s.Vocab, s.MaxRows = vocabulary, bucketFor(len(cases))
	r := newRig(t, s)
	r.prepare(startOp(r.device, s, &buffers{}, 1), sampleOpOn(s, &buffers{}, 1, ctas), publishOp(r.device, s, &buffers{}, 1))
	n, l := len(cases), newStartLayout(s)
	starts := make([]byte, l.size)
	entries, bias, pool := within[startEntry](starts, 0, n), within[backend.TokenBias](starts, l.bias, n*4), within[int32](starts, l.tokens, n*16)
	logits := make([]float32, 0, n*vocabulary)
	masks := make([]uint32, n*s.maskWords())
	slots, positions, maskRow := make([]int32, n), make([]int32, n), make([]int32, n)
	biased, used := 0, 0
	for i, c := range cases {
		slots[i], positions[i], maskRow[i] = int32(n-1-i), int32(50+i), -1
		e := startEntry{Params: params(&c.sampling, vocabulary), Slot: slots[i], Token: 17, BiasFirst: int32(biased), PromptFirst: int32(used), Prompt: int32(len(c.prompt)),
			OutputFirst: int32(used + len(c.prompt)), Output: int32(len(c.output))}
		entries[i] = e
		biased += copy(bias[biased:], c.sampling.Bias)
		used += copy(pool[used:], c.prompt)
		used += copy(pool[used:], c.output)
		z := r.normal(vocabulary, c.flat)
		if c.ties {
			for j := range z {
				z[j] = float32(math.Round(float64(z[j])*4) / 4)
			}
		}
		if c.bad {
			z[vocabulary/2] = float32(math.NaN())
		}
		logits = append(logits, z...)
		if c.masked {
			maskRow[i] = int32(i)
			for j := range s.maskWords() {
				masks[i*s.maskWords()+j] = r.random.Uint32()
			}
		}
	}
	b := &buffers{Starts: [2]ptr{put(r, starts), r.room(16)}, Step: put(r, []uint64{2}), SlotParam: r.room(56 * s.MaxRows), Bias: r.room(8 * maxBias * s.MaxRows),
		Counts: r.room(2 * s.MaxRows * (vocabulary + vocabulary%2)), SlotToken: r.room(4 * s.MaxRows), Logits: put(r, logits), SampleSlot: put(r, slots),
		SamplePos: put(r, positions), MaskRow: put(r, maskRow), Mask: put(r, masks), Sampled: r.room(16 * n), Top: r.room(8 * maxTop * n),
		Ring: r.room(ringEntries * newRingLayout(s).size)}
	r.run(startOp(r.device, s, b, n))
	assert.Equal(t, int32(17), get[int32](r, b.SlotToken, 1)[0])
	r.run(sampleOpOn(s, b, n, ctas), publishOp(r.device, s, b, n))
	ring := newRingLayout(s)
	entry := b.Ring + ptr(2*ring.size)
	got, top, tokens := get[sampled](r, entry, n), get[backend.TokenLogProb](r, entry+ptr(ring.top), n*maxTop), get[int32](r, b.SlotToken, s.MaxRows)
	after := get[float32](r, b.Logits, len(logits))
	counts := get[uint16](r, b.Counts, s.MaxRows*(vocabulary+vocabulary%2))
	for i, c := range cases {
		what := fmt.Sprintf("row %d %+v", i, c)
		z := logits[i*vocabulary : (i+1)*vocabulary]
		if c.bad {
			assert.EqualValues(t, sampledNonFinite, got[i].Flags, what)
			continue
		}
		assert.Zero(t, got[i].Flags, what)
		require.Equal(t, z, after[i*vocabulary:(i+1)*vocabulary], "logits changed: %s", what)
		assert.Equal(t, got[i].Token, tokens[slots[i]], what)
		checkToken(t, c, z, masks[i*s.maskWords():(i+1)*s.maskWords()], int(positions[i]), got[i].Token, what)
		if c.sampling.LogProbs || c.sampling.TopLogProbs > 0 {
			norm := cpu.LogSumExp(z)
			assert.InDelta(t, float64(z[got[i].Token])-norm, got[i].LogProb, 1e-4, what)
			want := make([]backend.TokenLogProb, c.sampling.TopLogProbs)
			cpu.TopLogProbs(want, z, norm)
			for j, w := range want {
				g := top[i*maxTop+j]
				assert.Equal(t, w.Token, g.Token, "%s top %d", what, j)
				assert.InDelta(t, w.LogProb, g.LogProb, 1e-4, "%s top %d", what, j)
			}
		}
		if entries[i].Params.Flags&slotPenalties != 0 {
			want := make([]uint16, vocabulary)
			for _, p := range c.prompt {
				want[p] |= 0x8000
			}
			for _, o := range append(slices.Clone(c.output), got[i].Token) {
				want[o]++
			}
			require.Equal(t, want, counts[int(slots[i])*(vocabulary+vocabulary%2):][:vocabulary], "counts: %s", what)
		}
	}
}

// checkToken accepts the CPU's choice, or one that a rounding of 1e-5 of the tempered logits could make of it.
func checkToken(t *testing.T, c sampleCase, logits []float32, mask []uint32, position int, token int32, what string) {
	t.Helper()
	z := slices.Clone(logits)
	counts := map[int32]int{}
	for _, p := range c.prompt {
		counts[p] = 0
	}
	for _, o := range c.output {
		counts[o]++
	}
	s := &c.sampling
	cpu.ApplyBias(z, s.Bias)
	cpu.ApplyPenalties(z, counts, s)
	if c.masked {
		cpu.ApplyMask(z, mask)
	}
	if s.Temperature == 0 {
		want := cpu.Argmax(z)
		if z[token] < z[want]-1e-5 || !c.ties && token != want {
			assert.Equal(t, want, token, what)
		}
		return
	}
	largest := slices.Max(z)
	for i := range z {
		z[i] = (z[i] - largest) / s.Temperature
	}
	whole := slices.Clone(z)
	cpu.Truncate(z, s.TopK, s.TopP, s.MinP)
	want := cpu.Draw(z, s.Seed, position)
	if token == want {
		return
	}
	score := func(i int32) float64 { return float64(whole[i]) + float64(cpu.Gumbel(s.Seed, position, i)) }
	close := math.Abs(score(token)-score(want)) < 1e-4*math.Max(1, math.Abs(score(want)))
	// At the edge of the kept set the sums' last bits decide: the last kept logit may differ by a rounding.
	edge := false
	if math.IsInf(float64(z[token]), -1) || score(token) < score(want) {
		least := float32(math.Inf(1))
		for _, v := range z {
			if !math.IsInf(float64(v), -1) {
				least = min(least, v)
			}
		}
		edge = math.Abs(float64(whole[token]-least)) < 1e-4 || math.Abs(float64(whole[want]-least)) < 1e-4
	}
	assert.True(t, close || edge, "%s: drew %d (score %v), want %d (score %v)", what, token, score(token), want, score(want))
}

// TestSampleDraws: frequencies of draws follow the truncated distribution, by a chi-square test at 1 in a million.
func TestSampleDraws(t *testing.T) {
	s := testShapes()["llama-8b"]
	s.Vocab, s.MaxRows = 64, 256
	r := newRig(t, s)
	const n, rounds = 256, 200
	z := r.normal(s.Vocab, 1.2)
	p := params(&backend.Sampling{Temperature: 0.9, TopK: 12, TopP: 0.97}, s.Vocab)
	var logits []float32
	slots, masks := make([]int32, n), make([]int32, n)
	slotParams := make([]slotParams, n)
	for i := range n {
		logits = append(logits, z...)
		slots[i], masks[i] = int32(i), -1
		slotParams[i] = p
		slotParams[i].Seed = uint64(i) * 977
	}
	kept := slices.Clone(z)
	largest := slices.Max(kept)
	for i := range kept {
		kept[i] = (kept[i] - largest) / 0.9
	}
	cpu.Truncate(kept, 12, 0.97, 0)
	sum, seen := 0.0, make([]int, s.Vocab)
	for _, v := range kept {
		sum += math.Exp(float64(v))
	}
	b := &buffers{SlotParam: put(r, slotParams), Bias: r.room(8 * maxBias), Counts: r.room(2 * n * s.Vocab), Logits: put(r, logits), SampleSlot: put(r, slots), MaskRow: put(r, masks),
		Sampled: r.room(16 * n), Top: r.room(8 * maxTop * n)}
	for round := range rounds {
		positions := make([]int32, n)
		for i := range positions {
			positions[i] = int32(round)
		}
		b.SamplePos = put(r, positions)
		r.run(sampleOp(r.device, s, b, n))
		for _, v := range get[sampled](r, b.Sampled, n) {
			seen[v.Token]++
		}
	}
	chi, freedom := 0.0, -1.0
	for i, v := range kept {
		want := math.Exp(float64(v)) / sum * n * rounds
		if want == 0 {
			require.Zero(t, seen[i], "token %d is ruled out", i)
			continue
		}
		chi += (float64(seen[i]) - want) * (float64(seen[i]) - want) / want
		freedom++
	}
	// Wilson-Hilferty: (chi/k)^(1/3) is nearly normal with mean 1-2/9k and variance 2/9k.
	deviations := (math.Cbrt(chi/freedom) - (1 - 2/(9*freedom))) / math.Sqrt(2/(9*freedom))
	require.Less(t, math.Abs(deviations), 4.9, "chi-square %v for %v degrees of freedom", chi, freedom)
}

// TestTargetLogprob holds log probabilities of given tokens.
func TestTargetLogprob(t *testing.T) {
	for _, vocabulary := range []int{515, 32000, 128256} {
		s := testShapes()["llama-8b"]
		s.Vocab = vocabulary
		r := newRig(t, s)
		const n = 5
		logits := r.normal(n*vocabulary, 4)
		targets := []int32{-1, 0, 7, int32(vocabulary - 1), 100, 44}
		b := &buffers{Logits: put(r, logits), Targets: put(r, targets), TargetLogProbs: put(r, make([]float32, n+1))}
		r.run(targetLogprobOp(r.device, s, b, 1, n))
		for i, v := range get[float32](r, b.TargetLogProbs+4, n) {
			z := logits[i*vocabulary : (i+1)*vocabulary]
			require.InDelta(t, float64(z[targets[i+1]])-cpu.LogSumExp(z), v, 1e-4, "vocabulary %d row %d", vocabulary, i)
		}
	}
}

// within is n values at offset in bytes.
func within[T any](data []byte, offset, n int) []T {
	return unsafe.Slice((*T)(unsafe.Pointer(&data[offset])), n)
}
