package compare

import (
	"errors"
	"fmt"
	"math"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
	"golang.org/x/perf/benchproc"
)

// Table holds the results of one unit under one configuration.
type Table struct {
	Key   benchproc.Key // configuration and, last, the unit
	Unit  string
	Exact bool // values have no noise: one sample is enough and any difference is real
	// Better is +1 where higher is better, -1 where lower is, 0 where nobody said.
	Better     int
	Rows, Cols []benchproc.Key
	cells      map[cellKey]*Cell
}

type cellKey struct{ row, col benchproc.Key }

// Cell is one row's sample in one column.
type Cell struct {
	Sample     *benchmath.Sample // values in ascending order
	Summary    benchmath.Summary
	Base       *Cell                // the same row in the first column; nil there and where the first column has no such row
	Comparison benchmath.Comparison // with Base; meaningless without one

	residue benchproc.Key
	varied  []benchproc.Key // residues that differ from the first
}

// Cell returns the cell of a row and a column, or nil.
func (t *Table) Cell(row, col benchproc.Key) *Cell { return t.cells[cellKey{row, col}] }

// Column is the last row of a table: what all of a column's benchmarks say together.
type Column struct {
	Mean     float64 // geometric mean of the medians; NaN if there is none
	Ratio    float64 // geometric mean of the ratios to the first column; NaN if there is none
	Warnings []string
}

// Geomean summarises column i. Ratios are averaged, rather than averages divided, so that a column that lacks some rows still
// compares like with like.
func (t *Table) Geomean(i int) Column {
	var medians, ratios []float64
	bases, comparable := 0, true
	for _, row := range t.Rows {
		if t.Cell(row, t.Cols[0]) != nil {
			bases++
		}
		cell := t.Cell(row, t.Cols[i])
		if cell == nil {
			continue
		}
		medians = append(medians, cell.Summary.Center)
		if cell.Base == nil {
			continue
		}
		now, before := cell.Summary.Center, cell.Base.Summary.Center
		switch {
		case now == before: // 0/0 counts as no change
			ratios = append(ratios, 1)
		case before == 0:
			comparable = false
			ratios = append(ratios, 0)
		default:
			ratios = append(ratios, now/before)
		}
	}
	c := Column{Mean: geomean(medians), Ratio: math.NaN()}
	if i > 0 && len(ratios) != bases {
		c.Warnings = append(c.Warnings, "benchmark set differs from baseline; geomeans may not be comparable")
	}
	if math.IsNaN(c.Mean) {
		c.Warnings = append(c.Warnings, "summaries must be >0 to compute geomean")
	}
	if i > 0 && comparable {
		if c.Ratio = geomean(ratios); math.IsNaN(c.Ratio) {
			c.Warnings = append(c.Warnings, "ratios must be >0 to compute geomean")
		}
	}
	return c
}

// geomean is NaN where a value is not above 0 and for no values.
func geomean(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sum := 0.0
	for i, v := range values {
		if v <= 0 {
			return math.NaN()
		}
		sum += (math.Log(v) - sum) / float64(i+1)
	}
	return math.Exp(sum)
}

// Warnings of a cell that stand beside its median.
func (c *Cell) Warnings() []string {
	var all []string
	for _, e := range c.Sample.Warnings {
		all = append(all, e.Error())
	}
	for _, e := range c.Summary.Warnings {
		all = append(all, e.Error())
	}
	return all
}

// builder collects results into tables.
type builder struct {
	tableBy, rowBy, colBy, residueBy *benchproc.Projection
	unit                             *benchproc.Field
	tables                           map[benchproc.Key]*Table
	values                           map[*Cell][]float64
}

func (b *builder) add(rec *benchfmt.Result) {
	if b.values == nil {
		b.values = map[*Cell][]float64{}
	}
	key := cellKey{b.rowBy.Project(rec), b.colBy.Project(rec)}
	residue := b.residueBy.Project(rec)
	for i, tableKey := range b.tableBy.ProjectValues(rec) {
		t := b.tables[tableKey]
		if t == nil {
			t = &Table{Key: tableKey, Unit: tableKey.Get(b.unit), cells: map[cellKey]*Cell{}}
			b.tables[tableKey] = t
		}
		c := t.cells[key]
		if c == nil {
			c = &Cell{residue: residue}
			t.cells[key] = c
		}
		if c.residue != residue {
			c.varied = append(c.varied, residue)
		}
		b.values[c] = append(b.values[c], rec.Values[i].Value)
	}
}

func (b *builder) finish(units benchfmt.UnitMetadataMap, o Options) []*Table {
	keys := make([]benchproc.Key, 0, len(b.tables))
	for k := range b.tables {
		keys = append(keys, k)
	}
	benchproc.SortKeys(keys)
	thresholds := &benchmath.Thresholds{CompareAlpha: o.Alpha}
	tables := make([]*Table, 0, len(keys))
	for _, k := range keys {
		t := b.tables[k]
		var assume benchmath.Assumption
		assume, t.Exact = assumption(units, t.Unit)
		t.Better = units.GetBetter(t.Unit)
		t.order()
		for _, c := range t.cells {
			c.Sample = benchmath.NewSample(b.values[c], thresholds)
			c.Summary = assume.Summary(c.Sample, o.Confidence)
			c.warnVaried()
			delete(b.values, c)
		}
		for k, c := range t.cells {
			if base := t.cells[cellKey{k.row, t.Cols[0]}]; k.col != t.Cols[0] && base != nil {
				c.Base = base
				c.Comparison = assume.Compare(base.Sample, c.Sample)
			}
		}
		tables = append(tables, t)
	}
	return tables
}

// order fills Rows and Cols, each in the order its projection asks for.
func (t *Table) order() {
	rows, cols := map[benchproc.Key]bool{}, map[benchproc.Key]bool{}
	for k := range t.cells {
		if !rows[k.row] {
			rows[k.row] = true
			t.Rows = append(t.Rows, k.row)
		}
		if !cols[k.col] {
			cols[k.col] = true
			t.Cols = append(t.Cols, k.col)
		}
	}
	benchproc.SortKeys(t.Rows)
	benchproc.SortKeys(t.Cols)
}

// warnVaried tells that a cell mixes results that differ in something no projection asked for.
func (c *Cell) warnVaried() {
	if len(c.varied) == 0 {
		return
	}
	keys := append(c.varied, c.residue)
	benchproc.SortKeys(keys)
	var names []string
	for _, f := range benchproc.NonSingularFields(keys) {
		names = append(names, f.Name)
	}
	c.varied = nil
	if len(names) > 0 {
		c.Sample.Warnings = append(c.Sample.Warnings, errors.New("benchmarks vary in "+strings.Join(names, ", ")))
	}
}

// Header returns the configuration of table t that differs from the table before it (nil for the first), one "key: value" each.
func (t *Table) Header(before *Table) []string {
	var lines []string
	for _, f := range t.Key.Projection().FlattenedFields() {
		if f.Name == ".unit" {
			continue
		}
		value := t.Key.Get(f)
		if before == nil || value != before.Key.Get(f) {
			lines = append(lines, fmt.Sprintf("%s: %s", f.Name, value))
		}
	}
	return lines
}
