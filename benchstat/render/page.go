package render

import (
	"fmt"
	"html/template"
	"io"
	"strings"

	"golang.org/x/perf/benchunit"

	"github.com/tokamak-engine/tokamak/benchstat/compare"
	"github.com/tokamak-engine/tokamak/benchstat/gate"
)

// Markdown writes the verdict and the rows that moved for a pull request's comment, the rest folded away.
func Markdown(w io.Writer, s *compare.Set, r *gate.Result) error {
	mark := [...]string{"✅", "❌", "⚠️"}[r.Verdict]
	fmt.Fprintf(w, "### %s Benchmarks: %s\n\n", mark, escapeMarkdown(r.Summary()))
	if r.Verdict == gate.CannotJudge {
		for _, why := range some(r.Reasons) {
			fmt.Fprintf(w, "- %s\n", escapeMarkdown(why))
		}
		fmt.Fprintln(w)
	}
	var loud, calm []gate.Row
	for _, row := range r.Rows {
		if quiet(row.Kind) {
			calm = append(calm, row)
		} else {
			loud = append(loud, row)
		}
	}
	markdownRows(w, loud)
	if len(calm) > 0 {
		fmt.Fprintf(w, "<details><summary>%d rows without a change worth a look</summary>\n\n", len(calm))
		markdownRows(w, calm)
		fmt.Fprint(w, "</details>\n")
	}
	for _, n := range r.Notes {
		fmt.Fprintf(w, "\n> %s\n", escapeMarkdown(n))
	}
	var config []string
	for _, t := range s.Tables {
		if config = t.Header(nil); len(config) > 0 {
			break
		}
	}
	_, err := fmt.Fprintf(w, "\n<sub>%s</sub>\n", escapeMarkdown(strings.Join(config, " · ")))
	return err
}

func markdownRows(w io.Writer, rows []gate.Row) {
	if len(rows) == 0 {
		return
	}
	fmt.Fprint(w, "| | benchmark | unit | before | after | change | 95 % interval | certainty |\n|--|--|--|--:|--:|--:|--|--|\n")
	for _, row := range rows {
		before, after := scaled(row)
		says := certainty(row)
		if row.Why != "" {
			says = strings.TrimSpace(says + " " + row.Why)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s | %s |\n", row.Kind, escapeMarkdown(label(row)), escapeMarkdown(row.Table.Unit),
			before, after, change(row), interval(row), escapeMarkdown(says))
	}
	fmt.Fprintln(w)
}

// escapeMarkdown keeps names from files out of the table's and the page's markup.
func escapeMarkdown(s string) string {
	return strings.NewReplacer("|", "\\|", "<", "&lt;", ">", "&gt;", "\n", " ", "`", "\\`", "@", "&#64;", "*", "\\*", "_", "\\_").Replace(s)
}

// scaled formats a row's medians with a common prefix; "" for a side that has none.
func scaled(row gate.Row) (before, after string) {
	var values []float64
	if row.N1 > 0 {
		values = append(values, row.Before)
	}
	if row.N2 > 0 {
		values = append(values, row.After)
	}
	scale := benchunit.CommonScale(values, benchunit.ClassOf(row.Table.Unit))
	if row.N1 > 0 {
		before = scale.Format(row.Before)
	}
	if row.N2 > 0 {
		after = scale.Format(row.After)
	}
	return before, after
}

// HTML writes a page that needs nothing else: the verdict, every row with its interval drawn, and the tables as text.
func HTML(w io.Writer, s *compare.Set, r *gate.Result) error {
	type view struct {
		Kind, Class, Name, Unit, Before, After, Change, Interval, Certainty, Why string
		Lo, Mid, Hi, Limit                                                       float64
		Drawn                                                                    bool
	}
	var rows []view
	for _, row := range r.Rows {
		v := view{Kind: string(row.Kind), Class: strings.ReplaceAll(string(row.Kind), " ", "-"), Name: label(row), Unit: row.Table.Unit,
			Change: change(row), Interval: interval(row), Certainty: certainty(row), Why: row.Why}
		v.Before, v.After = scaled(row)
		if row.Effect.Ratio > 0 {
			v.Drawn = true
			v.Lo, v.Mid, v.Hi = position(row.Effect.Lo), position(row.Effect.Ratio), position(row.Effect.Hi)
			v.Limit = position(1+row.Limit) - position(1)
		}
		rows = append(rows, v)
	}
	var text strings.Builder
	if err := Tables(&text, s); err != nil {
		return err
	}
	return page.Execute(w, map[string]any{"Summary": r.Summary(), "Class": strings.ReplaceAll(r.Verdict.String(), " ", "-"),
		"Reasons": r.Reasons, "Notes": r.Notes, "Rows": rows, "Text": text.String(), "Files": s.Files})
}

// position of a ratio on a drawing 200 wide that shows changes of up to 10 % either way.
func position(ratio float64) float64 { return max(0, min(200, 100+(ratio-1)*1000)) }

var page = template.Must(template.New("page").Funcs(template.FuncMap{"sub": func(a, b float64) float64 { return a - b }}).Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>benchstat: {{.Summary}}</title>
<style>
body{font:14px/1.5 system-ui,sans-serif;margin:2em;max-width:90em}h1{font-size:1.3em;padding:.5em;border-left:.4em solid #888}
h1.no-regression{border-color:#2a2}h1.regression{border-color:#d22}h1.cannot-judge{border-color:#e90}
table{border-collapse:collapse}td,th{padding:.2em .7em;text-align:left;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}
.worse td:first-child,.cannot-judge td:first-child,.gone td:first-child{color:#c11;font-weight:bold}.better td:first-child{color:#282;font-weight:bold}
pre{background:#f6f6f6;padding:1em;overflow:auto}
</style>
<h1 class="{{.Class}}">{{.Summary}}</h1>
{{range .Reasons}}<p>cannot judge: {{.}}</p>{{end}}{{range .Notes}}<p>note: {{.}}</p>{{end}}
<table><tr><th>verdict<th>benchmark<th>unit<th>before<th>after<th>change<th>interval<th>−10 % … +10 %<th>certainty</tr>
{{range .Rows}}<tr class="{{.Class}}"><td>{{.Kind}}<td>{{.Name}}<td>{{.Unit}}<td>{{.Before}}<td>{{.After}}<td>{{.Change}}<td>{{.Interval}}
<td>{{if .Drawn}}<svg width="200" height="16" role="img" aria-label="{{.Change}}"><rect x="{{sub 100 .Limit}}" width="{{sub .Limit (sub 0 .Limit)}}" height="16" fill="#eee"/><line x1="100" x2="100" y2="16" stroke="#999"/><line x1="{{.Lo}}" x2="{{.Hi}}" y1="8" y2="8" stroke="#36c" stroke-width="2"/><circle cx="{{.Mid}}" cy="8" r="4" fill="#36c"/></svg>{{end}}
<td>{{.Certainty}} {{.Why}}</tr>
{{end}}</table>
<details><summary>tables</summary><pre>{{.Text}}</pre></details>
</html>
`))
