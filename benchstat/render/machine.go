package render

import (
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strconv"

	"github.com/tokamak-engine/tokamak/benchstat/compare"
	"github.com/tokamak-engine/tokamak/benchstat/gate"
)

// SchemaVersion is the version of the JSON form; it changes when a field changes its meaning or goes.
const SchemaVersion = 1

type jsonReport struct {
	Version int       `json:"version"`
	Verdict string    `json:"verdict"`
	Code    int       `json:"exit_code"`
	Summary string    `json:"summary"`
	Reasons []string  `json:"reasons"`
	Notes   []string  `json:"notes"`
	Rows    []jsonRow `json:"rows"`
}

type jsonRow struct {
	Name   string   `json:"name"`
	Config string   `json:"config,omitempty"`
	Column string   `json:"column"`
	Unit   string   `json:"unit"`
	Better string   `json:"better"`
	Kind   string   `json:"kind"`
	Why    string   `json:"why,omitempty"`
	Before *float64 `json:"before"`
	After  *float64 `json:"after"`
	Ratio  *float64 `json:"ratio"`
	Low    *float64 `json:"ratio_low"`
	High   *float64 `json:"ratio_high"`
	P      *float64 `json:"p"`
	PAdj   *float64 `json:"p_adjusted"`
	N      [2]int   `json:"n"`
	Limit  float64  `json:"threshold"`
	Noisy  bool     `json:"noisy"`
}

// JSON writes the verdict and every row; what is not known is null.
func JSON(w io.Writer, r *gate.Result) error {
	report := jsonReport{Version: SchemaVersion, Verdict: r.Verdict.String(), Code: int(r.Verdict), Summary: r.Summary(),
		Reasons: append([]string{}, r.Reasons...), Notes: append([]string{}, r.Notes...), Rows: []jsonRow{}}
	for _, row := range r.Rows {
		j := jsonRow{Name: row.Name, Config: row.Config, Column: row.Column, Unit: row.Table.Unit, Kind: string(row.Kind), Why: row.Why,
			Better: [...]string{"lower", "unknown", "higher"}[row.Table.Better+1], N: [2]int{row.N1, row.N2}, Limit: row.Limit, Noisy: row.Noise}
		if row.N1 > 0 {
			j.Before = number(row.Before)
		}
		if row.N2 > 0 {
			j.After = number(row.After)
		}
		if row.Effect.Ratio != 0 {
			j.Ratio, j.Low, j.High = number(row.Effect.Ratio), number(row.Effect.Lo), number(row.Effect.Hi)
		}
		if certainty(row) != "" {
			j.P, j.PAdj = number(row.P), number(row.PAdj)
		}
		report.Rows = append(report.Rows, j)
	}
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(report)
}

// number is nil for what JSON cannot say.
func number(f float64) *float64 {
	if math.IsInf(f, 0) || math.IsNaN(f) {
		return nil
	}
	return &f
}

type junitSuites struct {
	XMLName  xml.Name   `xml:"testsuites"`
	Tests    int        `xml:"tests,attr"`
	Failures int        `xml:"failures,attr"`
	Errors   int        `xml:"errors,attr"`
	Suite    junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Failure *junitMessage `xml:"failure,omitempty"`
	Error   *junitMessage `xml:"error,omitempty"`
	Skipped *junitMessage `xml:"skipped,omitempty"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
}

// JUnit writes a test case for each row: a regression fails, a row that cannot be judged is an error, an unclear or new one is skipped.
func JUnit(w io.Writer, r *gate.Result) error {
	suite := junitSuite{Name: "benchstat"}
	for _, row := range r.Rows {
		c := junitCase{Class: row.Table.Unit, Name: label(row)}
		says := fmt.Sprintf("%s %s %s %s", change(row), interval(row), certainty(row), row.Why)
		switch row.Kind {
		case gate.Worse:
			c.Failure = &junitMessage{says}
			suite.Failures++
		case gate.Unjudged, gate.Gone:
			c.Error = &junitMessage{string(row.Kind) + ": " + says}
			suite.Errors++
		case gate.Unclear, gate.New:
			c.Skipped = &junitMessage{string(row.Kind) + ": " + says}
			suite.Skipped++
		default:
			c.Out = string(row.Kind) + ": " + says
		}
		suite.Cases = append(suite.Cases, c)
	}
	// What makes the whole comparison unfit is a case of its own, so that a report of no rows is not green.
	verdict := junitCase{Class: "verdict", Name: r.Verdict.String()}
	if r.Verdict == gate.CannotJudge {
		for _, why := range r.Reasons {
			verdict.Out += why + "\n"
		}
		verdict.Error = &junitMessage{r.Summary()}
		suite.Errors++
	}
	suite.Cases = append(suite.Cases, verdict)
	suite.Tests = len(suite.Cases)
	io.WriteString(w, xml.Header)
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(junitSuites{Tests: suite.Tests, Failures: suite.Failures, Errors: suite.Errors, Suite: suite}); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w)
	return err
}

// CSV writes one line for each row, unscaled.
func CSV(w io.Writer, _ *compare.Set, r *gate.Result) error {
	c := csv.NewWriter(w)
	c.Write([]string{"name", "config", "column", "unit", "kind", "before", "after", "ratio", "low", "high", "p", "p_adjusted", "n_before", "n_after", "threshold", "why"})
	f := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	for _, row := range r.Rows {
		line := []string{row.Name, row.Config, row.Column, row.Table.Unit, string(row.Kind), "", "", "", "", "", "", "",
			strconv.Itoa(row.N1), strconv.Itoa(row.N2), f(row.Limit), row.Why}
		if row.N1 > 0 {
			line[5] = f(row.Before)
		}
		if row.N2 > 0 {
			line[6] = f(row.After)
		}
		if row.Effect.Ratio != 0 {
			line[7], line[8], line[9] = f(row.Effect.Ratio), f(row.Effect.Lo), f(row.Effect.Hi)
		}
		if certainty(row) != "" {
			line[10], line[11] = f(row.P), f(row.PAdj)
		}
		c.Write(line)
	}
	c.Flush()
	return c.Error()
}
