// Package gate judges a comparison: which rows got worse, by how much, with what certainty, and whether that can be said at all.
//
// A row regresses if it moved in its unit's bad direction by at least the unit's threshold and the difference would be unlikely by
// chance even among all the rows looked at (Mann-Whitney p values, adjusted by Holm). Both must hold: with many samples a tiny
// change is certain, and among many rows a large one happens by chance.
package gate

import (
	"fmt"
	"math"
	"sort"
	"strings"

	"github.com/tokamak-engine/tokamak/benchstat/compare"
)

// Verdict of a row or a whole comparison; its value is the exit code.
type Verdict int

const (
	Pass        Verdict = 0 // no regression
	Regression  Verdict = 1
	CannotJudge Verdict = 2
)

func (v Verdict) String() string {
	return [...]string{"no regression", "regression", "cannot judge"}[v]
}

// Kind says what became of a row.
type Kind string

const (
	Worse         Kind = "worse"         // beyond the threshold, and certain
	Better        Kind = "better"        // likewise, in the good direction
	NoWorse       Kind = "no worse"      // the whole interval lies within the threshold: shown not to be worse
	Unclear       Kind = "unclear"       // no regression shown, none excluded
	Unjudged      Kind = "cannot judge"  // see Why
	Gone          Kind = "gone"          // in the baseline only
	New           Kind = "new"           // not in the baseline
	Unchanged     Kind = "unchanged"     // an exact unit, equal
	Insubstantial Kind = "insubstantial" // a certain change, smaller than the threshold
)

// Row is one benchmark in one unit, judged.
type Row struct {
	Table   *compare.Table
	Name    string // the row's key
	Config  string // the table's configuration where several are compared, "" else
	Column  string
	Kind    Kind
	Why     string // for a person; "" where the figures say it
	Before  float64
	After   float64
	Effect  compare.Effect // After over Before; zero where it has no meaning
	P, PAdj float64        // Mann-Whitney, and adjusted by Holm
	N1, N2  int
	// Limit is the threshold applied, as a fraction: 0.02 is 2 %.
	Limit float64
	// Noise tells that the interval is wider than the threshold: a change of the threshold's size may go unseen.
	Noise bool
}

// Result is a judged comparison.
type Result struct {
	Verdict Verdict
	Rows    []Row
	// Reasons says why the whole cannot be judged, one line each.
	Reasons []string
	// Notes are worth telling but change nothing.
	Notes []string
	// unfit tells that the input itself cannot be trusted, so that not even a regression is one.
	unfit bool
}

// Policy says what counts as a regression.
type Policy struct {
	Threshold     float64            // fraction; a unit's own stands in Thresholds
	Thresholds    map[string]float64 // by tidied unit
	Alpha         float64            // of the whole family of rows
	Confidence    float64            // of intervals
	Environment   []string           // configuration keys that must agree
	AllowMissing  bool               // rows that are gone do not stop the judgement
	IgnoreUnknown bool               // units without a direction are shown and not judged
}

// DefaultPolicy is 2 % at a family-wise 5 %.
func DefaultPolicy() Policy {
	return Policy{Threshold: 0.02, Alpha: 0.05, Confidence: 0.95,
		Environment: []string{"goos", "goarch", "cpu", "gpu", "driver", "cuda", "backend", "dtype", "model"}}
}

// Judge judges every column of s against the first.
func Judge(s *compare.Set, p Policy) *Result {
	r := &Result{}
	r.checkInput(s, p)
	configs := map[string]bool{}
	for _, t := range s.Tables {
		configs[configOf(t)] = true
	}
	for _, t := range s.Tables {
		config := configOf(t)
		if len(configs) == 1 {
			config = ""
		}
		r.judgeTable(s, t, config, p)
	}
	r.adjust(p)
	r.conclude(p)
	return r
}

// checkInput finds what makes the whole comparison unfit to be judged.
func (r *Result) checkInput(s *compare.Set, p Policy) {
	cannot := func(format string, args ...any) { r.Reasons = append(r.Reasons, fmt.Sprintf(format, args...)) }
	if s.Results == 0 {
		cannot("no benchmark results in %s", strings.Join(s.Files, ", "))
	}
	if len(s.Files) < 2 {
		cannot("one file alone: name a baseline before it")
	}
	list(s.Syntax, "not benchmark format: %s", cannot)
	list(s.NotNumbers, "not a number: %s", cannot)
	list(s.Failures, "failed: %s", cannot)
	list(s.Skips, "skipped: %s", func(format string, args ...any) { r.Notes = append(r.Notes, fmt.Sprintf(format, args...)) })
	for _, why := range s.Filtered {
		r.Notes = append(r.Notes, "filtered: "+why)
	}
	for _, key := range p.Environment {
		first, values := "", s.Config[key]
		for i, file := range s.Files {
			v := strings.Join(values[file], " and ")
			if i == 0 {
				first = v
			} else if v != first {
				cannot("%s differs: %s in %s, %s in %s", key, quoted(first), s.Files[0], quoted(v), file)
			}
		}
	}
	for file, values := range s.Config["throttled"] {
		for _, v := range values {
			if v != "false" && v != "no" && v != "0" {
				cannot("samples of %s were taken while the device was throttled (%s)", file, v)
			}
		}
	}
	sort.Strings(r.Reasons)
	r.unfit = len(r.Reasons) > 0
}

func quoted(s string) string {
	if s == "" {
		return "none"
	}
	return fmt.Sprintf("%q", s)
}

// list says the first ten lines and how many there are more.
func list(lines []string, format string, say func(string, ...any)) {
	for i, line := range lines {
		if i == 10 {
			say(format, fmt.Sprintf("and %d more", len(lines)-10))
			return
		}
		say(format, line)
	}
}

func configOf(t *compare.Table) string { return strings.Join(t.Header(nil), " ") }

func (r *Result) judgeTable(s *compare.Set, t *compare.Table, config string, p Policy) {
	limit, own := p.Thresholds[t.Unit]
	if !own {
		limit = p.Threshold
		if t.Exact {
			limit = 0
		}
	}
	base := s.Files[0]
	for _, key := range t.Rows {
		before := t.Cell(key, t.Cols[0])
		for _, col := range t.Cols[min(1, len(t.Cols)):] {
			row := Row{Table: t, Name: key.StringValues(), Config: config, Column: col.StringValues(), Limit: limit}
			now := t.Cell(key, col)
			switch {
			case before == nil && now == nil:
				continue
			case now == nil:
				row.Kind, row.Before, row.N1 = Gone, before.Summary.Center, len(before.Sample.Values)
			case before == nil:
				row.Kind, row.After, row.N2 = New, now.Summary.Center, len(now.Sample.Values)
			default:
				row.compare(before, now, p)
			}
			r.Rows = append(r.Rows, row)
		}
		if len(t.Cols) == 1 && len(s.Files) > 1 {
			row := Row{Table: t, Name: key.StringValues(), Config: config, Limit: limit, Kind: New, Column: t.Cols[0].StringValues()}
			only := t.Cell(key, t.Cols[0])
			if row.Column == base {
				row.Kind, row.Before, row.N1 = Gone, only.Summary.Center, len(only.Sample.Values)
			} else {
				row.After, row.N2 = only.Summary.Center, len(only.Sample.Values)
			}
			r.Rows = append(r.Rows, row)
		}
	}
}

// compare fills in what two samples say; the p value is adjusted and the kind decided later, when all rows are known.
func (row *Row) compare(before, now *compare.Cell, p Policy) {
	row.Before, row.After = before.Summary.Center, now.Summary.Center
	row.N1, row.N2 = len(before.Sample.Values), len(now.Sample.Values)
	if row.Table.Exact {
		row.compareExact(before, now)
		return
	}
	row.P = now.Comparison.P
	effect, ok := compare.RatioOf(before.Sample.Values, now.Sample.Values, p.Confidence)
	if !ok {
		if row.Before == row.After && row.P > p.Alpha {
			row.Effect = compare.Effect{Ratio: 1, Lo: 1, Hi: 1} // all zero, say: allocations
			return
		}
		row.Kind, row.Why = Unjudged, "values of 0 or less have no ratio: give the unit assume=exact"
		return
	}
	row.Effect = effect
	if math.IsInf(before.Summary.Lo, 0) || math.IsInf(now.Summary.Lo, 0) {
		row.Kind = Unjudged
		row.Why = fmt.Sprintf("too few samples: %d and %d give no interval at %g %%; run -count=10", row.N1, row.N2, 100*p.Confidence)
	}
}

func (row *Row) compareExact(before, now *compare.Cell) {
	for _, c := range []*compare.Cell{before, now} {
		values := c.Sample.Values
		if values[0] != values[len(values)-1] {
			row.Kind = Unjudged
			row.Why = fmt.Sprintf("unit is exact, but values vary from %v to %v", values[0], values[len(values)-1])
			return
		}
	}
	change := 0.0
	if row.Before != row.After {
		change = math.Inf(1)
		if row.Before != 0 {
			change = (row.After - row.Before) / math.Abs(row.Before)
			row.Effect = compare.Effect{Ratio: 1 + change, Lo: 1 + change, Hi: 1 + change}
		} else if row.After < 0 {
			change = math.Inf(-1)
		}
	}
	switch good := change * float64(row.Table.Better); {
	case change == 0:
		row.Kind = Unchanged
	case row.Table.Better == 0:
		row.Kind, row.Why = Worse, "an exact unit without a direction must not change"
	case good < 0 && -good > row.Limit:
		row.Kind = Worse
	case good > 0:
		row.Kind = Better
	default:
		row.Kind = Insubstantial
	}
}
