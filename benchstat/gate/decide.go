package gate

import (
	"fmt"
	"math"
	"slices"

	"github.com/tokamak-engine/tokamak/benchstat/compare"
)

// adjust corrects the p values for the number of rows looked at (Holm's step-down method, which holds whatever the rows'
// dependence) and decides each undecided row.
func (r *Result) adjust(p Policy) {
	var family []*Row
	for i := range r.Rows {
		if row := &r.Rows[i]; row.Kind == "" {
			if row.Table.Better == 0 {
				row.Kind, row.Why = Unjudged, fmt.Sprintf("nobody said which way %s is better: print a line `Unit %s better=higher` or `better=lower`", row.Table.Unit, row.Table.Unit)
				continue
			}
			family = append(family, row)
		}
	}
	slices.SortStableFunc(family, func(a, b *Row) int {
		switch {
		case a.P < b.P:
			return -1
		case a.P > b.P:
			return 1
		}
		return 0
	})
	running := 0.0
	for i, row := range family {
		running = math.Max(running, math.Min(1, row.P*float64(len(family)-i)))
		row.PAdj = running
	}
	for _, row := range family {
		row.decide(len(family), p)
	}
}

// decide names what became of a row with samples on both sides. family is the number of rows p values were adjusted for.
func (row *Row) decide(family int, p Policy) {
	if least := compare.SmallestP(row.N1, row.N2); least*float64(family) >= p.Alpha {
		row.Kind = Unjudged
		row.Why = fmt.Sprintf("too few samples: %d and %d can show p=%.2g at best, %d rows need p<%.2g; run -count=%d",
			row.N1, row.N2, least, family, p.Alpha/float64(family), neededSamples(family, p.Alpha))
		return
	}
	// Turn the effect so that above 1 is worse.
	worse, lo, hi := row.Effect.Ratio, row.Effect.Lo, row.Effect.Hi
	if row.Table.Better > 0 {
		worse, lo, hi = 1/worse, 1/hi, 1/lo
	}
	certain := row.PAdj < p.Alpha
	row.Noise = hi/lo > (1+row.Limit)*(1+row.Limit)
	switch {
	case certain && worse >= 1+row.Limit:
		row.Kind = Worse
	case certain && 1/worse >= 1+row.Limit:
		row.Kind = Better
	case hi < 1+row.Limit:
		row.Kind = NoWorse
		if certain && worse > 1 {
			row.Kind = Insubstantial
		}
	default:
		row.Kind = Unclear
	}
}

// neededSamples is the count a side with which the smallest p value passes a family of rows.
func neededSamples(family int, alpha float64) int {
	for n := 2; n < 100; n++ {
		if compare.SmallestP(n, n)*float64(family) < alpha {
			return n
		}
	}
	return 100
}

// conclude sums the rows up. A shown regression outweighs rows that cannot be judged: it will not go away by measuring more.
func (r *Result) conclude(p Policy) {
	counts := map[Kind]int{}
	noisy := 0
	for _, row := range r.Rows {
		counts[row.Kind]++
		if row.Noise {
			noisy++
		}
		switch row.Kind {
		case Unjudged:
			if row.Table.Better == 0 && p.IgnoreUnknown {
				continue
			}
			r.Reasons = append(r.Reasons, fmt.Sprintf("%s %s: %s", row.Name, row.Table.Unit, row.Why))
		case Gone:
			if say := fmt.Sprintf("%s %s is gone from %s", row.Name, row.Table.Unit, row.Column); p.AllowMissing {
				r.Notes = append(r.Notes, say)
			} else {
				r.Reasons = append(r.Reasons, say)
			}
		case New:
			r.Notes = append(r.Notes, fmt.Sprintf("%s %s is new in %s", row.Name, row.Table.Unit, row.Column))
		}
	}
	if noisy > 0 {
		r.Notes = append(r.Notes, fmt.Sprintf("%d of %d rows are noisier than their threshold: a change of that size may go unseen; run more samples or raise --threshold", noisy, len(r.Rows)))
	}
	switch {
	case r.unfit:
		r.Verdict = CannotJudge
	case counts[Worse] > 0:
		r.Verdict = Regression
	case len(r.Reasons) > 0:
		r.Verdict = CannotJudge
	case len(r.Rows) == 0:
		r.Verdict = CannotJudge
		r.Reasons = append(r.Reasons, "no row stands in two files")
	}
}

// Summary is one line for a person.
func (r *Result) Summary() string {
	counts := map[Kind]int{}
	for _, row := range r.Rows {
		counts[row.Kind]++
	}
	text := r.Verdict.String() + ":"
	for _, k := range []Kind{Worse, Better, NoWorse, Insubstantial, Unchanged, Unclear, Unjudged, Gone, New} {
		if counts[k] > 0 {
			text += fmt.Sprintf(" %d %s,", counts[k], k)
		}
	}
	if len(r.Rows) == 0 {
		return text + " no rows"
	}
	return text[:len(text)-1]
}
