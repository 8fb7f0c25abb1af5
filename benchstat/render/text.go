// Package render writes a comparison and its verdict for people (text, Markdown, HTML) and for machines (JSON, JUnit, CSV).
package render

import (
	"fmt"
	"io"
	"math"
	"strings"

	"golang.org/x/perf/benchproc"
	"golang.org/x/perf/benchunit"

	"github.com/tokamak-engine/tokamak/benchstat/compare"
	"github.com/tokamak-engine/tokamak/benchstat/gate"
)

// Columns of a text table: a label, then for each file its median with interval and notes, and from the second file on the
// difference, its p value and notes.
const (
	labelColumns  = 1
	centerColumns = 3
	deltaColumns  = 3
)

func startColumn(file int) int {
	if file == 0 {
		return labelColumns
	}
	return labelColumns + centerColumns + (file-1)*(centerColumns+deltaColumns)
}

// footnotes numbers warnings in the order they are first met.
type footnotes struct {
	text  []string
	index map[string]int
}

func (f *footnotes) marks(warnings []string) string {
	var marks []string
	for _, w := range warnings {
		i, ok := f.index[w]
		if !ok {
			if f.index == nil {
				f.index = map[string]int{}
			}
			i = len(f.text)
			f.index[w] = i
			f.text = append(f.text, w)
		}
		marks = append(marks, superscript(i+1))
	}
	return strings.Join(marks, " ")
}

func superscript(i int) string {
	digits := []rune("⁰¹²³⁴⁵⁶⁷⁸⁹")
	var out strings.Builder
	for _, d := range fmt.Sprint(i) {
		out.WriteRune(digits[d-'0'])
	}
	return out.String()
}

// Tables writes the tables as golang.org/x/perf/cmd/benchstat does.
func Tables(w io.Writer, s *compare.Set) error {
	var before *compare.Table
	for _, t := range s.Tables {
		if before != nil {
			fmt.Fprintln(w)
		}
		for _, line := range t.Header(before) {
			fmt.Fprintln(w, line)
		}
		before = t
		if err := table(w, t); err != nil {
			return err
		}
	}
	return nil
}

func table(w io.Writer, t *compare.Table) error {
	g := grid{fixed: map[int]bool{}}
	var notes footnotes
	edge := startColumn(len(t.Cols) + 1)

	for nodes := benchproc.NewKeyHeader(t.Cols).Top; len(nodes) > 0; {
		var next []*benchproc.KeyHeaderNode
		for _, n := range nodes {
			from, to := startColumn(n.Start), startColumn(n.Start+n.Len)
			g.put(from, to-from, n.Value, " │ ", center)
			next = append(next, n.Children...)
		}
		g.put(edge, 1, "", " │", left)
		g.row++
		nodes = next
	}
	for i := range t.Cols {
		from := startColumn(i)
		g.put(from, centerColumns, t.Unit, " │ ", center)
		end := from + centerColumns
		if i > 0 {
			g.put(end, deltaColumns, "vs base", "  ", left)
			end += deltaColumns
		}
		for col := from + 1; col < end; col++ {
			g.fixed[col] = true
		}
	}
	g.put(edge, 1, "", " │", left)
	g.row++

	class := benchunit.ClassOf(t.Unit)
	for _, key := range t.Rows {
		g.text(0, key.StringValues(), left)
		scale := rowScale(t, key, class)
		for i, col := range t.Cols {
			c := t.Cell(key, col)
			if c == nil {
				continue
			}
			at := startColumn(i)
			g.text(at, scale.Format(c.Summary.Center), right)
			g.put(at+1, 1, c.Summary.PctRangeString(), " ± ", right)
			g.text(at+2, notes.marks(c.Warnings()), left)
			if i > 0 && c.Base != nil {
				g.text(at+3, c.Comparison.FormatDelta(c.Base.Summary.Center, c.Summary.Center), right)
				g.text(at+4, "("+c.Comparison.String()+")", left)
				var warnings []string
				for _, e := range c.Comparison.Warnings {
					warnings = append(warnings, e.Error())
				}
				g.text(at+5, notes.marks(warnings), left)
			}
		}
		g.row++
	}
	if len(t.Rows) > 1 {
		g.text(0, "geomean", left)
		for i := range t.Cols {
			column := t.Geomean(i)
			at := startColumn(i)
			if !math.IsNaN(column.Mean) {
				g.text(at, benchunit.Scale(column.Mean, class), right)
			}
			if i > 0 {
				if math.IsNaN(column.Ratio) {
					g.text(at+centerColumns, "?", left)
				} else {
					g.text(at+centerColumns, fmt.Sprintf("%+.2f%%", (column.Ratio-1)*100), right)
				}
			}
			g.text(startColumn(i+1)-1, notes.marks(column.Warnings), left)
		}
	}
	if err := g.write(w); err != nil {
		return err
	}
	for i, note := range notes.text {
		fmt.Fprintf(w, "%s %s\n", superscript(i+1), note)
	}
	return nil
}

func rowScale(t *compare.Table, row benchproc.Key, class benchunit.Class) benchunit.Scaler {
	var values []float64
	for _, col := range t.Cols {
		if c := t.Cell(row, col); c != nil {
			values = append(values, c.Summary.Center)
		}
	}
	return benchunit.CommonScale(values, class)
}

// Text writes tables, the judged rows worth a look, and the verdict.
func Text(w io.Writer, s *compare.Set, r *gate.Result) error {
	if err := Tables(w, s); err != nil {
		return err
	}
	fmt.Fprintln(w)
	var g grid
	for _, row := range r.Rows {
		if quiet(row.Kind) {
			continue
		}
		for col, text := range []string{string(row.Kind), label(row), row.Table.Unit, change(row), interval(row), certainty(row), row.Why} {
			g.text(col, text, left)
		}
		g.row++
	}
	if err := g.write(w); err != nil {
		return err
	}
	for _, n := range r.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	if r.Verdict == gate.CannotJudge {
		for _, why := range some(r.Reasons) {
			fmt.Fprintln(w, "cannot judge:", why)
		}
	}
	_, err := fmt.Fprintln(w, r.Summary())
	return err
}

// some are the first ten of lines, and how many more there are: a person reads no further.
func some(lines []string) []string {
	const most = 10
	if len(lines) <= most {
		return lines
	}
	return append(lines[:most:most], fmt.Sprintf("and %d more (--format json lists all)", len(lines)-most))
}

// quiet kinds need no line of their own in a summary for people.
func quiet(k gate.Kind) bool {
	return k == gate.NoWorse || k == gate.Unchanged || k == gate.Insubstantial
}

func label(row gate.Row) string {
	if row.Config == "" {
		return row.Name
	}
	return row.Name + " [" + row.Config + "]"
}

// change is the effect as a person reads it: "+3.10%".
func change(row gate.Row) string {
	if row.Effect.Ratio == 0 {
		return ""
	}
	return percent(row.Effect.Ratio)
}

func percent(ratio float64) string {
	if math.IsInf(ratio, 1) {
		return "∞"
	}
	return fmt.Sprintf("%+.2f%%", (ratio-1)*100)
}

func interval(row gate.Row) string {
	if row.Effect.Ratio == 0 {
		return ""
	}
	return fmt.Sprintf("[%s, %s]", percent(row.Effect.Lo), percent(row.Effect.Hi))
}

func certainty(row gate.Row) string {
	if row.Table.Exact || row.N1 == 0 || row.N2 == 0 {
		return ""
	}
	return fmt.Sprintf("p=%.2g (adjusted %.2g) n=%d+%d", row.P, row.PAdj, row.N1, row.N2)
}
