package compare

import (
	"math"
	"slices"
)

// Effect is how much a sample lies above another, as a ratio: 1.03 is 3 % more.
type Effect struct {
	Ratio  float64 // Hodges-Lehmann: the median of the ratios of all pairs
	Lo, Hi float64 // confidence interval of Ratio; 0 and +Inf where the samples are too few for the confidence asked
}

// RatioOf estimates by what factor sample now exceeds sample before, with the interval that the Mann-Whitney test inverts to: the
// ratios that the test would not reject. It assumes nothing of the distributions but that one is the other, scaled. ok is false where a
// value is not above 0, for which a ratio says nothing.
func RatioOf(before, now []float64, confidence float64) (e Effect, ok bool) {
	if len(before) == 0 || len(now) == 0 {
		return Effect{}, false
	}
	ratios := make([]float64, 0, len(before)*len(now))
	for _, b := range before {
		for _, n := range now {
			if b <= 0 || n <= 0 {
				return Effect{}, false
			}
			ratios = append(ratios, n/b)
		}
	}
	slices.Sort(ratios)
	pairs := len(ratios)
	e.Ratio = math.Sqrt(ratios[(pairs-1)/2] * ratios[pairs/2])
	// The k smallest and k largest pair ratios lie outside: k is the largest with P(U < k) <= (1-confidence)/2.
	k := uQuantile(len(before), len(now), (1-confidence)/2)
	e.Lo, e.Hi = 0, math.Inf(1)
	if k > 0 {
		e.Lo, e.Hi = ratios[k-1], ratios[pairs-k]
	}
	return e, true
}

// exactPairs is the largest n1*n2 for which the U distribution is counted out; above it the normal approximation is within 1 % of
// a rank and the table would take more than a few milliseconds.
const exactPairs = 900

// uQuantile returns the largest k with P(U < k) <= tail under the null hypothesis; 0 where even P(U < 1) exceeds it.
func uQuantile(n1, n2 int, tail float64) int {
	if n1*n2 > exactPairs {
		mean := float64(n1*n2) / 2
		sd := math.Sqrt(float64(n1*n2) * float64(n1+n2+1) / 12)
		return max(0, int(math.Floor(mean+sd*math.Sqrt2*math.Erfinv(2*tail-1)-0.5)))
	}
	counts := uCounts(n1, n2)
	total := 0.0
	for _, c := range counts {
		total += c
	}
	below := 0.0
	for k, c := range counts {
		if below += c; below/total > tail {
			return k
		}
	}
	return 0
}

// uCounts returns in how many ways n1 and n2 ranks give U = 0, 1, …, n1*n2: the coefficients of the Gaussian binomial.
func uCounts(n1, n2 int) []float64 {
	size := n1*n2 + 1
	ways := make([]float64, size)
	ways[0] = 1
	for i := 1; i <= n1; i++ {
		// times (1 - q^(n2+i)), then over (1 - q^i)
		for u := size - 1; u >= n2+i; u-- {
			ways[u] -= ways[u-n2-i]
		}
		for u := i; u < size; u++ {
			ways[u] += ways[u-i]
		}
	}
	return ways
}

// SmallestP is the smallest p value that a two-sided Mann-Whitney test of n1 and n2 samples can give.
func SmallestP(n1, n2 int) float64 {
	ways, _ := math.Lgamma(float64(n1 + n2 + 1))
	a, _ := math.Lgamma(float64(n1 + 1))
	b, _ := math.Lgamma(float64(n2 + 1))
	return math.Min(1, 2*math.Exp(a+b-ways))
}
