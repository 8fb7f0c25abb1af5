// Package compare reads benchmark results and lays them out for comparison: tables by unit and configuration, rows by benchmark,
// columns by file, with x/perf's statistics in every cell. It draws no conclusion; package gate does.
package compare

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
	"golang.org/x/perf/benchproc"
)

// Options says how results are grouped. The languages are those of golang.org/x/perf/benchproc/syntax.
type Options struct {
	Table, Row, Col, Ignore, Filter string
	Confidence                      float64 // of the intervals around medians, 0..1
	Alpha                           float64 // a difference is told from noise below this p value
}

// DefaultOptions groups as benchstat does.
func DefaultOptions() Options {
	return Options{Table: ".config", Row: ".fullname", Col: ".file", Filter: "*", Confidence: 0.95, Alpha: 0.05}
}

// Set is everything that was read.
type Set struct {
	Tables []*Table
	Units  benchfmt.UnitMetadataMap
	// Syntax lists lines that are not benchmark format although they look like it, with file and line.
	Syntax []string
	// NotNumbers lists rows with a NaN or an infinity, which were left out.
	NotNumbers []string
	// Skips and Failures are what `go test` said of tests and benchmarks that did not run or did not pass: file and name.
	Skips, Failures []string
	// Filtered tells why results were dropped, where the filter had a reason to give.
	Filtered []string
	// Config holds every file-level configuration line: key, then file, then the values seen in order.
	Config map[string]map[string][]string
	Files  []string // labels in the order given
	// Results is the number of benchmark lines read.
	Results int
}

// Read reads files (or label=file) and groups their results. Lines that cannot be read are listed in the Set; an error is a file
// that cannot be read or an option that cannot be understood.
func Read(paths []string, o Options) (*Set, error) {
	filter, err := benchproc.NewFilter(o.Filter)
	if err != nil {
		return nil, fmt.Errorf("--filter %q: %w", o.Filter, err)
	}
	var parser benchproc.ProjectionParser
	var firstErr error
	project := func(flag, expr string, unit bool) (p *benchproc.Projection, u *benchproc.Field) {
		var err error
		if unit {
			p, u, err = parser.ParseWithUnit(expr, filter)
		} else {
			p, err = parser.Parse(expr, filter)
		}
		if err != nil && firstErr == nil {
			firstErr = fmt.Errorf("--%s %q: %w", flag, expr, err)
		}
		return p, u
	}
	b := builder{tables: map[benchproc.Key]*Table{}}
	b.tableBy, b.unit = project("table", o.Table, true)
	b.rowBy, _ = project("row", o.Row, false)
	b.colBy, _ = project("col", o.Col, false)
	project("ignore", o.Ignore, false)
	if firstErr != nil {
		return nil, firstErr
	}
	b.residueBy = parser.Residue()

	set := &Set{Units: benchfmt.UnitMetadataMap{}, Config: map[string]map[string][]string{}}
	if err := set.scan(paths, filter, &b); err != nil {
		return nil, err
	}
	set.Tables = b.finish(set.Units, o)
	return set, nil
}

func (s *Set) scan(paths []string, filter *benchproc.Filter, b *builder) error {
	var reader benchfmt.Reader
	times, seen := map[string]int{}, map[string]int{}
	for _, arg := range paths {
		times[arg]++
	}
	for _, arg := range paths {
		label, path, labelled := strings.Cut(arg, "=")
		if !labelled {
			label, path = arg, arg
		}
		if times[arg] > 1 && !labelled { // the same file twice is two columns
			label = fmt.Sprintf("%s#%d", arg, seen[arg])
			seen[arg]++
		}
		var in io.Reader = os.Stdin
		if path != "-" {
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		if !slices.Contains(s.Files, label) {
			s.Files = append(s.Files, label)
		}
		reader.Reset(&verdictReader{in: bufio.NewReaderSize(in, 1<<20), set: s, file: label}, path, ".file", label)
		for reader.Scan() {
			switch rec := reader.Result().(type) {
			case *benchfmt.SyntaxError:
				s.Syntax = append(s.Syntax, rec.Error())
			case *benchfmt.Result:
				s.Results++
				s.noteConfig(label, rec)
				if s.unusable(rec) {
					continue
				}
				ok, err := filter.Apply(rec)
				if err != nil && len(s.Filtered) < 10 {
					s.Filtered = append(s.Filtered, err.Error())
				}
				if ok {
					b.add(rec)
				}
			}
		}
		if err := reader.Err(); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	for k, v := range reader.Units() {
		s.Units[k] = v
	}
	return nil
}

// noteConfig keeps the distinct values of each configuration line per file.
func (s *Set) noteConfig(file string, rec *benchfmt.Result) {
	for _, c := range rec.Config {
		if !c.File {
			continue
		}
		byFile := s.Config[c.Key]
		if byFile == nil {
			byFile = map[string][]string{}
			s.Config[c.Key] = byFile
		}
		values := byFile[file]
		if n := len(values); n > 0 && values[n-1] == string(c.Value) {
			continue
		}
		known := false
		for _, v := range values {
			known = known || v == string(c.Value)
		}
		if !known {
			byFile[file] = append(values, string(c.Value))
		}
	}
}

// unusable finds what x/perf's reader lets through: values that are no numbers, and units that are (half a line, cut off).
func (s *Set) unusable(rec *benchfmt.Result) bool {
	for _, v := range rec.Values {
		if _, err := strconv.ParseFloat(v.Unit, 64); err == nil {
			file, line := rec.Pos()
			s.Syntax = append(s.Syntax, fmt.Sprintf("%s:%d: a number stands where a unit should: is the line cut off?", file, line))
			return true
		}
		if math.IsNaN(v.Value) || math.IsInf(v.Value, 0) {
			file, line := rec.Pos()
			s.NotNumbers = append(s.NotNumbers, fmt.Sprintf("%s:%d: %s: %v %s", file, line, rec.Name, v.Value, v.Unit))
			return true
		}
	}
	return false
}

// verdictReader passes benchmark text on and notes what go test said of skips and failures, which are not benchmark lines.
type verdictReader struct {
	in   *bufio.Reader
	set  *Set
	file string
	rest []byte // of the line that is being passed on
	err  error
}

func (v *verdictReader) Read(p []byte) (int, error) {
	if len(v.rest) == 0 {
		if v.err != nil {
			return 0, v.err
		}
		v.rest, v.err = v.in.ReadSlice('\n')
		if v.err == bufio.ErrBufferFull {
			v.err = nil
		}
		v.note(v.rest)
		if len(v.rest) == 0 {
			return 0, v.err
		}
	}
	n := copy(p, v.rest)
	v.rest = v.rest[n:]
	return n, nil
}

func (v *verdictReader) note(line []byte) {
	if len(line) == 0 || line[0] != '-' && line[0] != ' ' && line[0] != 'F' && line[0] != 'p' {
		return
	}
	line = bytes.TrimSpace(line)
	say := func(to *[]string, what []byte) { *to = append(*to, v.file+": "+string(what)) }
	switch {
	case bytes.HasPrefix(line, []byte("--- SKIP: ")):
		say(&v.set.Skips, line[len("--- SKIP: "):])
	case bytes.HasPrefix(line, []byte("--- FAIL: ")):
		say(&v.set.Failures, line[len("--- FAIL: "):])
	case bytes.HasPrefix(line, []byte("FAIL\t")), bytes.HasPrefix(line, []byte("panic: ")):
		say(&v.set.Failures, line)
	}
}

// assumption of a unit, and its name for people.
func assumption(units benchfmt.UnitMetadataMap, unit string) (benchmath.Assumption, bool) {
	a := units.GetAssumption(unit)
	return a, a == benchmath.AssumeExact
}
