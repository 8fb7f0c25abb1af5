package cpu

import (
	"cmp"
	"math"
	"slices"

	"github.com/tokamak-engine/tokamak/engine/backend"
)

var negativeInf = float32(math.Inf(-1))

// The stages of sampling, in the order that backend.Sampling documents. logits is [vocabulary] and changed in place; a token
// that is ruled out gets -Inf.

// ApplyBias adds each token's bias to its logit.
func ApplyBias(logits []float32, bias []backend.TokenBias) {
	for _, b := range bias {
		logits[b.Token] += b.Bias
	}
}

// ApplyPenalties applies the repetition, then the presence and frequency penalties. counts holds every token of the prompt
// and the output so far, with its number of occurrences in the output (0 for a token of the prompt alone).
func ApplyPenalties(logits []float32, counts map[int32]int, s *backend.Sampling) {
	repetition := s.RepetitionPenalty
	if repetition == 0 {
		repetition = 1
	}
	for token, n := range counts {
		l := logits[token]
		if l > 0 {
			l /= repetition
		} else {
			l *= repetition
		}
		if n > 0 {
			l -= s.PresencePenalty + float32(n)*s.FrequencyPenalty
		}
		logits[token] = l
	}
}

// ApplyMask rules out token t where bit t%32 of mask[t/32] is clear. A nil mask rules out none.
func ApplyMask(logits []float32, mask []uint32) {
	if mask == nil {
		return
	}
	for t := range logits {
		if mask[t/32]>>(t%32)&1 == 0 {
			logits[t] = negativeInf
		}
	}
}

// Truncate rules out the tokens that top-k, top-p or min-p drop. logits are tempered; each of the three is measured on their
// whole softmax, not on what another one left, and a token stays if all three keep it. Tokens of equal probability rank by
// ascending id. topK 0, topP 1 (or 0) and minP 0 drop nothing.
func Truncate(logits []float32, topK int, topP, minP float32) {
	largest := slices.Max(logits)
	useTopK, useTopP := topK > 0 && topK < len(logits), topP > 0 && topP < 1
	if minP > 0 {
		defer dropBelow(logits, largest+float32(math.Log(float64(minP))))
	}
	if !useTopK && !useTopP {
		return
	}
	if !useTopK {
		topK = len(logits)
	}
	allowed := 0
	for _, l := range logits {
		if l != negativeInf {
			allowed++
		}
	}
	topK = min(topK, allowed)
	mass := math.Inf(1)
	if useTopP {
		mass = float64(topP) * sumExp(logits, largest)
	}
	// Only the likeliest tokens need an order: take those near the largest, and more until the kept set lies inside.
	var near []int32
	for reach := float32(4); ; reach *= 2 {
		near = near[:0]
		var sum float64
		for t, l := range logits {
			if l >= largest-reach && l != negativeInf {
				near = append(near, int32(t))
				sum += math.Exp(float64(l) - float64(largest))
			}
		}
		// The margin covers the order of summing, which differs below.
		if len(near) >= topK || sum > mass*(1+1e-9) {
			break
		}
	}
	slices.SortFunc(near, func(a, b int32) int {
		return cmp.Or(cmp.Compare(logits[b], logits[a]), cmp.Compare(a, b))
	})
	kept := 0
	for sum := 0.0; kept < min(topK, len(near)) && sum < mass; kept++ {
		sum += math.Exp(float64(logits[near[kept]]) - float64(largest))
	}
	last := near[kept-1]
	for t, l := range logits {
		if l < logits[last] || l == logits[last] && int32(t) > last {
			logits[t] = negativeInf
		}
	}
}

func dropBelow(logits []float32, least float32) {
	for t, l := range logits {
		if l < least {
			logits[t] = negativeInf
		}
	}
}

// sumExp is the sum of exp(logit - largest).
func sumExp(logits []float32, largest float32) float64 {
	var sum float64
	for _, l := range logits {
		if d := float64(l) - float64(largest); d > -45 { // e^-45 is below a float64's last bit of the sum, which is at least 1
			sum += math.Exp(d)
		}
	}
	return sum
}

// Draw returns the token with the largest logit plus [Gumbel] noise, the lowest id on a tie. logits are tempered, and -Inf
// where a token is ruled out.
func Draw(logits []float32, seed uint64, position int) int32 {
	best, bestScore := int32(0), negativeInf
	largest := slices.Max(logits)
	for t, l := range logits {
		if l < largest-maxGumbelSpread || l == negativeInf {
			continue
		}
		if score := l + Gumbel(seed, position, int32(t)); score > bestScore {
			best, bestScore = int32(t), score
		}
	}
	return best
}

// Argmax is the index of the largest value, the lowest on a tie.
func Argmax(x []float32) int32 {
	best := 0
	for i, v := range x {
		if v > x[best] {
			best = i
		}
	}
	return int32(best)
}

// LogSumExp is log(sum(exp(x))): a token's log probability is its logit less this.
func LogSumExp(logits []float32) float64 {
	largest := slices.Max(logits)
	return float64(largest) + math.Log(sumExp(logits, largest))
}

// TopLogProbs fills top with the likeliest tokens and their log probabilities, most likely first, the lowest id first on a
// tie. norm is the logits' [LogSumExp].
func TopLogProbs(top []backend.TokenLogProb, logits []float32, norm float64) {
	n := 0
	for t, l := range logits {
		if n == len(top) && (n == 0 || l <= top[n-1].LogProb) {
			continue
		}
		i := n
		if n < len(top) {
			n++
		} else {
			i--
		}
		for ; i > 0 && l > top[i-1].LogProb; i-- {
			top[i] = top[i-1]
		}
		top[i] = backend.TokenLogProb{Token: int32(t), LogProb: l}
	}
	for i := range top[:n] {
		top[i].LogProb = float32(float64(top[i].LogProb) - norm)
	}
}

// sequence is what a slot remembers between its steps.
type sequence struct {
	sampling  backend.Sampling
	counts    map[int32]int // as ApplyPenalties takes it; nil if no penalty is set
	lastToken int32
}

func newSequence(s *backend.Start) *sequence {
	q := &sequence{sampling: s.Sampling}
	if p := &q.sampling; p.RepetitionPenalty != 0 && p.RepetitionPenalty != 1 || p.PresencePenalty != 0 || p.FrequencyPenalty != 0 {
		q.counts = make(map[int32]int)
		for _, t := range s.Prompt {
			q.counts[t] = 0
		}
		for _, t := range s.Output {
			q.counts[t]++
		}
	}
	return q
}

// choose chooses the token at position and changes nothing. scratch is [vocabulary].
func (q *sequence) choose(logits, scratch []float32, mask []uint32, position int) (out backend.Sampled) {
	s := &q.sampling
	work := logits
	if len(s.Bias) > 0 || q.counts != nil || mask != nil || s.Temperature > 0 {
		work = scratch
		copy(work, logits)
	}
	ApplyBias(work, s.Bias)
	ApplyPenalties(work, q.counts, s)
	ApplyMask(work, mask)
	if s.Temperature > 0 {
		temper(work, s.Temperature)
		Truncate(work, s.TopK, s.TopP, s.MinP)
		out.Token = Draw(work, s.Seed, position)
	} else {
		out.Token = Argmax(work)
	}
	if s.LogProbs || s.TopLogProbs > 0 {
		norm := LogSumExp(logits)
		out.LogProb = float32(float64(logits[out.Token]) - norm)
		out.Top = make([]backend.TokenLogProb, min(s.TopLogProbs, len(logits)))
		TopLogProbs(out.Top, logits, norm)
	}
	return out
}

// took notes that token is the sequence's next.
func (q *sequence) took(token int32) {
	q.lastToken = token
	if q.counts != nil {
		q.counts[token]++
	}
}

// temper divides by the temperature after moving the largest logit to 0: so near 0 nothing overflows.
func temper(logits []float32, temperature float32) {
	largest := slices.Max(logits)
	for t, l := range logits {
		logits[t] = (l - largest) / temperature
	}
}

func isFinite(x []float32) bool {
	for _, v := range x {
		if math.Float32bits(v)&0x7F800000 == 0x7F800000 {
			return false
		}
	}
	return true
}
