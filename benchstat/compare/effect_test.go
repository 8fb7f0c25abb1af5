package compare

import (
	"math"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// uCounts against counting by hand: every way to choose which ranks are the first sample's.
func TestUCounts(t *testing.T) {
	for _, n := range [][2]int{{1, 1}, {2, 3}, {4, 4}, {5, 2}, {6, 5}} {
		counted := make([]float64, n[0]*n[1]+1)
		for mask := range 1 << (n[0] + n[1]) {
			u, ones, zeros := 0, 0, 0
			for bit := range n[0] + n[1] {
				if mask>>bit&1 == 1 {
					ones++
					u += zeros
				} else {
					zeros++
				}
			}
			if ones == n[0] {
				counted[u]++
			}
		}
		assert.Equal(t, counted, uCounts(n[0], n[1]), "n=%v", n)
	}
}

func TestUQuantileAgreesWithNormal(t *testing.T) {
	exact := uQuantile(30, 30, 0.025)
	mean, sd := 450.0, math.Sqrt(30*30*61/12.0)
	assert.InDelta(t, mean-1.96*sd, float64(exact), 2)
	assert.InDelta(t, 1012.5-1.96*123.9, uQuantile(45, 45, 0.025), 2) // beyond the exact table: mean and deviation of U
	assert.Zero(t, uQuantile(2, 2, 0.025))
}

// The interval must hold the true ratio as often as it says.
func TestRatioCoverage(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for _, n := range []int{5, 10, 40} {
		held := 0
		const trials = 2000
		for range trials {
			a, b := make([]float64, n), make([]float64, n)
			for i := range a {
				a[i] = math.Exp(0.05 * rng.NormFloat64())
				b[i] = 1.07 * math.Exp(0.05*rng.NormFloat64())
			}
			e, ok := RatioOf(a, b, 0.95)
			require.True(t, ok)
			if e.Lo <= 1.07 && 1.07 <= e.Hi {
				held++
			}
		}
		share := float64(held) / trials
		t.Logf("n=%d: interval at 95 %% held the truth in %.1f %%", n, 100*share)
		assert.GreaterOrEqual(t, share, 0.935)
		assert.LessOrEqual(t, share, 0.99)
	}
}

func TestRatioOfNothing(t *testing.T) {
	_, ok := RatioOf(nil, []float64{1}, 0.95)
	assert.False(t, ok)
	_, ok = RatioOf([]float64{0, 1}, []float64{1, 1}, 0.95)
	assert.False(t, ok)
	e, ok := RatioOf([]float64{2}, []float64{3}, 0.95)
	assert.True(t, ok)
	assert.InDelta(t, 1.5, e.Ratio, 1e-12)
	assert.True(t, math.IsInf(e.Hi, 1))
}

func TestSmallestP(t *testing.T) {
	assert.InDelta(t, 2.0/184756, SmallestP(10, 10), 1e-12)
	assert.InDelta(t, 2.0/252, SmallestP(5, 5), 1e-12)
	assert.Equal(t, 1.0, SmallestP(1, 1))
}

func FuzzRead(f *testing.F) {
	f.Add("goos: linux\nUnit a/op better=lower\nBenchmarkX/a=1-8 10 12.5 ns/op 3 a/op\n")
	f.Add("BenchmarkY 1 NaN x\n--- SKIP: BenchmarkZ\nFAIL\tp 1s\n")
	f.Add("Benchmark\x00 1 1 \xff\nUnit\nkey: value\n")
	f.Fuzz(func(t *testing.T, text string) {
		path := t.TempDir() + "/in.txt"
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		set, err := Read([]string{"a=" + path, "b=" + path}, DefaultOptions())
		if err != nil {
			return
		}
		for _, table := range set.Tables {
			for _, row := range table.Rows {
				for i, col := range table.Cols {
					if c := table.Cell(row, col); c != nil && (len(c.Sample.Values) == 0 || math.IsNaN(c.Summary.Center)) {
						t.Fatalf("column %d has an empty or NaN cell", i)
					}
				}
			}
		}
	})
}
