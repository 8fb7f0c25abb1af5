package cpu

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"gonum.org/v1/gonum/stat/distuv"
	"pgregory.net/rapid"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

// TestPhilox holds the known answers of Random123's kat_vectors for philox4x32-10.
func TestPhilox(t *testing.T) {
	const ones = 0xFFFFFFFF
	for _, c := range []struct {
		counter [4]uint32
		key     [2]uint32
		want    [4]uint32
	}{
		{[4]uint32{}, [2]uint32{}, [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{[4]uint32{ones, ones, ones, ones}, [2]uint32{ones, ones}, [4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
		{[4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, [2]uint32{0xa4093822, 0x299f31d0}, [4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
	} {
		require.Equal(t, c.want, Philox4x32(c.counter, c.key))
	}
}

// TestGumbel: within its stated bounds, different in each of seed (both halves), position and token, and distributed as it says.
func TestGumbel(t *testing.T) {
	base := Gumbel(1, 2, 3)
	for _, other := range []float32{Gumbel(2, 2, 3), Gumbel(1|1<<40, 2, 3), Gumbel(1, 3, 3), Gumbel(1, 2, 4)} {
		require.NotEqual(t, base, other)
	}
	require.Equal(t, base, Gumbel(1, 2, 3))
	const n = 20000
	noise := make([]float64, n)
	for i := range noise {
		noise[i] = float64(Gumbel(9, i%7, int32(i)))
		require.True(t, noise[i] > -2.82 && noise[i] < 22.88)
	}
	slices.Sort(noise)
	worst := 0.0 // Kolmogorov-Smirnov against exp(-exp(-x))
	for i, x := range noise {
		worst = max(worst, math.Abs(math.Exp(-math.Exp(-x))-float64(i)/n))
	}
	require.Less(t, worst, 1.95/math.Sqrt(n)) // p = 0.001
}

// truncated is the exact distribution that [Truncate] and [Draw] sample, in float64.
func truncated(logits []float64, topK int, topP, minP float64) []float64 {
	order := make([]int, len(logits))
	probs := make([]float64, len(logits))
	largest, total := slices.Max(logits), 0.0
	for i, l := range logits {
		order[i] = i
		probs[i] = math.Exp(l - largest)
		total += probs[i]
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(logits[b], logits[a]) })
	out := make([]float64, len(logits))
	kept, sum := 0.0, 0.0
	for rank, i := range order {
		p := probs[i] / total
		if (topK > 0 && rank >= topK) || (topP > 0 && topP < 1 && sum >= topP) || p < minP*probs[order[0]]/total {
			break
		}
		out[i] = p
		sum += p
		kept += p
	}
	for i := range out {
		out[i] /= kept
	}
	return out
}

// TestDrawDistribution: chi-square of 30,000 draws of each kind against the exact truncated distribution.
func TestDrawDistribution(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 9))
	random := make([]float64, 40)
	for i := range random {
		random[i] = math.Round(r.NormFloat64()*2*8) / 8 // with ties
	}
	oneHot := make([]float64, 30)
	oneHot[7] = 40
	for name, c := range map[string]struct {
		logits     []float64
		topK       int
		topP, minP float64
	}{
		"plain":       {logits: random, topP: 1},
		"flat":        {logits: make([]float64, 25), topP: 1},
		"one hot":     {logits: oneHot, topP: 1},
		"top-k":       {logits: random, topK: 7, topP: 1},
		"top-k tie":   {logits: make([]float64, 25), topK: 4, topP: 1},
		"top-p":       {logits: random, topP: 0.75},
		"min-p":       {logits: random, topP: 1, minP: 0.1},
		"all":         {logits: random, topK: 12, topP: 0.9, minP: 0.05},
		"whole top-p": {logits: random, topP: 0.9999999},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			logits := make([]float32, len(c.logits))
			for i, l := range c.logits {
				logits[i] = float32(l)
			}
			Truncate(logits, c.topK, float32(c.topP), float32(c.minP))
			want := truncated(c.logits, c.topK, c.topP, c.minP)
			for i, p := range want {
				require.Equal(t, p > 0, logits[i] != negativeInf, "token %d", i)
			}
			const draws = 30000
			counts := make([]float64, len(logits))
			for i := range draws {
				counts[Draw(logits, uint64(i)*0x9E3779B97F4A7C15, i%4096)]++
			}
			chi, cells := 0.0, 0
			rest, restCount := 0.0, 0.0 // cells too thin for the test's approximation, together
			for i, p := range want {
				if e := p * draws; e >= 10 {
					chi += (counts[i] - e) * (counts[i] - e) / e
					cells++
				} else {
					rest += e
					restCount += counts[i]
				}
			}
			if rest >= 10 {
				chi += (restCount - rest) * (restCount - rest) / rest
				cells++
			} else {
				require.LessOrEqual(t, restCount, rest+6*math.Sqrt(rest)+1)
			}
			if cells > 1 {
				require.Greater(t, distuv.ChiSquared{K: float64(cells - 1)}.Survival(chi), 1e-4, "chi-square %v of %d cells", chi, cells)
			}
		})
	}
}

// TestSampleProperties: what holds for any logits and any sampling.
func TestSampleProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(2, 70).Draw(t, "vocabulary")
		logits := rapid.SliceOfN(rapid.Float32Range(-30, 30), n, n).Draw(t, "logits")
		mask := make([]uint32, (n+31)/32)
		allowed := rapid.SliceOfN(rapid.IntRange(0, n-1), 1, n).Draw(t, "allowed")
		for _, i := range allowed {
			mask[i/32] |= 1 << (i % 32)
		}
		start := &backend.Start{Sampling: backend.Sampling{
			Temperature:       rapid.SampledFrom([]float32{0, 1e-6, 0.5, 1, 3}).Draw(t, "temperature"),
			TopK:              rapid.IntRange(0, n+1).Draw(t, "top-k"),
			TopP:              rapid.SampledFrom([]float32{0, 1e-9, 0.4, 0.999999, 1}).Draw(t, "top-p"),
			MinP:              rapid.SampledFrom([]float32{0, 0.2, 1}).Draw(t, "min-p"),
			RepetitionPenalty: rapid.SampledFrom([]float32{0, 1, 0.7, 1.5}).Draw(t, "repetition"),
			FrequencyPenalty:  rapid.SampledFrom([]float32{0, 0.5}).Draw(t, "frequency"),
			Seed:              rapid.Uint64().Draw(t, "seed"),
			LogProbs:          true, TopLogProbs: rapid.IntRange(0, 5).Draw(t, "top"),
		}, Prompt: []int32{0, 1}, Output: []int32{1}}
		position := rapid.IntRange(0, 1<<20).Draw(t, "position")
		plain := slices.Clone(logits)
		draw := func() backend.Sampled { return newSequence(start).choose(logits, make([]float32, n), mask, position) }
		out := draw()
		if !slices.Contains(allowed, int(out.Token)) {
			t.Fatalf("token %d is not allowed", out.Token)
		}
		if !slices.Equal(plain, logits) {
			t.Fatal("the plain logits were changed")
		}
		if again := draw(); again.Token != out.Token {
			t.Fatalf("drew %d, then %d", out.Token, again.Token)
		}
		var total float64
		for _, l := range logits {
			total += math.Exp(float64(l) - LogSumExp(logits))
		}
		if math.Abs(total-1) > 1e-9 || out.LogProb > 1e-6 || len(out.Top) != min(start.Sampling.TopLogProbs, n) {
			t.Fatalf("probabilities sum to %v, log prob %v, %d top", total, out.LogProb, len(out.Top))
		}
		if !slices.IsSortedFunc(out.Top, func(a, b backend.TokenLogProb) int { return cmp.Compare(b.LogProb, a.LogProb) }) {
			t.Fatalf("top is not sorted: %v", out.Top)
		}
	})
}

func TestPenalties(t *testing.T) {
	logits := []float32{2, -2, 1, 4, 0.5}
	ApplyPenalties(logits, map[int32]int{0: 0, 1: 0, 2: 3, 3: 1}, &backend.Sampling{RepetitionPenalty: 2, PresencePenalty: 0.5, FrequencyPenalty: 0.25})
	require.Equal(t, []float32{1, -4, -0.75, 2 - 0.5 - 0.25, 0.5}, logits)
}

func TestTopLogProbs(t *testing.T) {
	logits := []float32{1, 5, 3, 5, -1, 3}
	norm := LogSumExp(logits)
	top := make([]backend.TokenLogProb, 4)
	TopLogProbs(top, logits, norm)
	ids := []int32{}
	for _, p := range top {
		ids = append(ids, p.Token)
		require.InDelta(t, float64(logits[p.Token])-norm, p.LogProb, 1e-6)
	}
	require.Equal(t, []int32{1, 3, 2, 5}, ids, "the lowest id first on a tie")
}
