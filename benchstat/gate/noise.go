package gate

import (
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"text/tabwriter"

	"golang.org/x/perf/benchmath"

	"github.com/tokamak-engine/tokamak/benchstat/compare"
)

// NoiseReport says what comparing a build with itself gives: the false alarms there are, and the changes that would be seen.
type NoiseReport struct {
	Trials  int
	Samples int // a side
	Alarms  int // trials in which any row was called worse or better
	Rows    []NoiseRow
	// Redrawn tells that some row had fewer than 2*Samples values, so that values were drawn with replacement.
	Redrawn bool
}

// NoiseRow is one row's noise.
type NoiseRow struct {
	Name, Unit string
	N          int
	Spread     float64 // robust standard deviation over the median
	Alarms     int     // trials in which this row was called worse or better
	Limit      float64
	// Visible is the smallest worsening that is called a regression in 95 of 100 trials; +Inf if none up to 100 % is.
	Visible float64
}

const (
	noiseTrials = 100
	noiseSeed   = 1 // the split is random but the report repeatable
)

// Noise splits each row's samples at random into two sides of n, many times, and judges them as if they were two builds.
func Noise(s *compare.Set, p Policy, n int) *NoiseReport {
	rng := rand.New(rand.NewPCG(noiseSeed, 0))
	report := &NoiseReport{Trials: noiseTrials, Samples: n}
	type source struct {
		row    NoiseRow
		values []float64
		better int
	}
	var sources []source
	for _, t := range s.Tables {
		if t.Exact || t.Better == 0 {
			continue
		}
		limit, own := p.Thresholds[t.Unit]
		if !own {
			limit = p.Threshold
		}
		for _, key := range t.Rows {
			for _, col := range t.Cols {
				c := t.Cell(key, col)
				if c == nil || len(c.Sample.Values) < 4 || c.Sample.Values[0] <= 0 {
					continue
				}
				v := c.Sample.Values
				report.Redrawn = report.Redrawn || len(v) < 2*n
				sources = append(sources, source{NoiseRow{Name: key.StringValues(), Unit: t.Unit, N: len(v), Spread: spread(v), Limit: limit}, v, t.Better})
			}
		}
	}
	for range noiseTrials {
		alarm := false
		for i := range sources {
			src := &sources[i]
			a, b := split(rng, src.values, n)
			if k := judgePair(a, b, src.better, src.row.Limit, len(sources), p); k == Worse || k == Better {
				src.row.Alarms++
				alarm = true
			}
		}
		if alarm {
			report.Alarms++
		}
	}
	for i := range sources {
		src := &sources[i]
		src.row.Visible = visible(rng, src.values, n, src.better, src.row.Limit, len(sources), p)
		report.Rows = append(report.Rows, src.row)
	}
	return report
}

// judgePair decides one row of a family as Judge would, its p value adjusted as the most significant of the family's.
func judgePair(before, now []float64, better int, limit float64, family int, p Policy) Kind {
	thresholds := &benchmath.Thresholds{CompareAlpha: p.Alpha}
	c := benchmath.AssumeNothing.Compare(benchmath.NewSample(before, thresholds), benchmath.NewSample(now, thresholds))
	effect, _ := compare.RatioOf(before, now, p.Confidence)
	row := Row{Table: &compare.Table{Better: better}, N1: len(before), N2: len(now), Effect: effect, P: c.P,
		PAdj: math.Min(1, c.P*float64(family)), Limit: limit}
	row.decide(family, p)
	return row.Kind
}

func split(rng *rand.Rand, values []float64, n int) (a, b []float64) {
	if len(values) >= 2*n {
		shuffled := slices.Clone(values)
		rng.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		return shuffled[:n], shuffled[n : 2*n]
	}
	draw := func() []float64 {
		side := make([]float64, n)
		for i := range side {
			side[i] = values[rng.IntN(len(values))]
		}
		return side
	}
	return draw(), draw()
}

// visible finds by bisection the smallest factor of worsening that 95 of 100 trials call a regression.
func visible(rng *rand.Rand, values []float64, n, better int, limit float64, family int, p Policy) float64 {
	seen := func(change float64) bool {
		factor := 1 + change
		if better > 0 {
			factor = 1 / factor
		}
		hits := 0
		for range noiseTrials {
			a, b := split(rng, values, n)
			b = slices.Clone(b)
			for i := range b {
				b[i] *= factor
			}
			if judgePair(a, b, better, limit, family, p) == Worse {
				hits++
			}
		}
		return hits*100 >= 95*noiseTrials
	}
	if !seen(1) {
		return math.Inf(1)
	}
	lo, hi := 0.0, 1.0
	for hi-lo > 0.0005 && hi-lo > hi/50 {
		if mid := (lo + hi) / 2; seen(mid) {
			hi = mid
		} else {
			lo = mid
		}
	}
	return hi
}

// spread is the median absolute deviation, scaled to a standard deviation, over the median. values ascend.
func spread(values []float64) float64 {
	median := values[len(values)/2]
	deviations := make([]float64, len(values))
	for i, v := range values {
		deviations[i] = math.Abs(v - median)
	}
	slices.Sort(deviations)
	return 1.4826 * deviations[len(deviations)/2] / median
}

// WriteNoise prints a report as a table with a line of reading below.
func WriteNoise(w io.Writer, r *NoiseReport) error {
	if len(r.Rows) == 0 {
		return fmt.Errorf("no row has 4 samples or more of a unit with a direction: run the same build with -count=%d", 2*r.Samples)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "benchmark\tunit\tsamples\tspread\tfalse alarms\tvisible change\tthreshold")
	blind := 0
	for _, row := range r.Rows {
		seen := fmt.Sprintf("%.1f%%", 100*row.Visible)
		if math.IsInf(row.Visible, 1) {
			seen = "none"
		}
		note := ""
		if row.Visible > 2*row.Limit {
			note = "  noise"
			blind++
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%.2f%%\t%d/%d\t%s\t%.1f%%%s\n", row.Name, row.Unit, row.N, 100*row.Spread, row.Alarms, r.Trials, seen, 100*row.Limit, note)
	}
	t.Flush()
	fmt.Fprintf(w, "\n%d of %d comparisons of the build with itself raised an alarm (n=%d a side, %d rows).\n", r.Alarms, r.Trials, r.Samples, len(r.Rows))
	if blind > 0 {
		fmt.Fprintf(w, "warning: %d rows show only changes of more than twice their threshold: take more samples or raise the threshold.\n", blind)
	}
	if r.Redrawn {
		fmt.Fprintf(w, "note: fewer than %d samples in some rows: values were drawn with replacement, which flatters the false-alarm rate.\n", 2*r.Samples)
	}
	return nil
}
