package history

import (
	"cmp"
	"fmt"
	"html/template"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"
	"golang.org/x/perf/benchmath"
	"golang.org/x/perf/benchunit"
)

// Point is one stored result of a row.
type Point struct {
	Entry
	Median, Lo, Hi float64
	N              int
	// Change tells that the level of the row changed here, for better, worse or without a known direction.
	Change string
	values []float64
}

// Series is one row's way through time on one device.
type Series struct {
	Device, Name, Unit string
	Better             int
	Points             []Point
}

// Load reads every entry's rows into series, in the order of name, unit and device.
func Load(dir string, entries []Entry) ([]Series, error) {
	type key struct{ device, name, unit string }
	found := map[key]*Series{}
	for _, e := range entries {
		f, err := os.Open(filepath.Join(dir, filepath.FromSlash(e.Path)))
		if err != nil {
			return nil, err
		}
		r := benchfmt.NewReader(f, e.Path)
		for r.Scan() {
			rec, ok := r.Result().(*benchfmt.Result)
			if !ok {
				continue
			}
			for _, v := range rec.Values {
				k := key{e.Device, rec.Name.String(), v.Unit}
				s := found[k]
				if s == nil {
					s = &Series{Device: k.device, Name: k.name, Unit: k.unit}
					found[k] = s
				}
				if n := len(s.Points); n == 0 || s.Points[n-1].Path != e.Path {
					s.Points = append(s.Points, Point{Entry: e})
				}
				p := &s.Points[len(s.Points)-1]
				p.values = append(p.values, v.Value)
			}
		}
		err = r.Err()
		f.Close()
		if err != nil {
			return nil, err
		}
		for k, s := range found {
			s.Better = r.Units().GetBetter(k.unit)
		}
	}
	var all []Series
	for _, s := range found {
		for i := range s.Points {
			p := &s.Points[i]
			sum := benchmath.AssumeNothing.Summary(benchmath.NewSample(p.values, &benchmath.DefaultThresholds), 0.95)
			p.Median, p.N = sum.Center, len(p.values)
			p.Lo, p.Hi = slices.Min(p.values), slices.Max(p.values)
			if !math.IsInf(sum.Lo, 0) {
				p.Lo, p.Hi = sum.Lo, sum.Hi
			}
		}
		s.markChanges()
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b Series) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Unit, b.Unit), cmp.Compare(a.Device, b.Device))
	})
	return all, nil
}

const (
	// changeWindow is how many results on each side a change of level is judged by.
	changeWindow = 5
	// changeAlpha is strict, since every point of every row is tried.
	changeAlpha = 0.001
	// changeShare is the smallest change of level worth a mark.
	changeShare = 0.02
)

// markChanges marks the points at which the level of the series changes: where the samples of the results before and after differ with
// near certainty, and the split there is the sharpest among its neighbours.
func (s *Series) markChanges() {
	n := len(s.Points)
	p := make([]float64, n)
	share := make([]float64, n)
	for i := range p {
		p[i] = 1
		if i < 2 && n > 4 || i == 0 {
			continue
		}
		before := gather(s.Points[max(0, i-changeWindow):i])
		after := gather(s.Points[i:min(n, i+changeWindow)])
		if len(before) < 4 || len(after) < 4 {
			continue
		}
		t := &benchmath.DefaultThresholds
		a, b := benchmath.NewSample(before, t), benchmath.NewSample(after, t)
		p[i] = benchmath.AssumeNothing.Compare(a, b).P
		if old := a.Values[len(a.Values)/2]; old != 0 {
			share[i] = b.Values[len(b.Values)/2]/old - 1
		}
	}
	for i := 1; i < n; i++ {
		if p[i] > changeAlpha || math.Abs(share[i]) < changeShare {
			continue
		}
		sharpest := true
		for j := max(1, i-changeWindow+1); j < min(n, i+changeWindow); j++ {
			if p[j] < p[i] || p[j] == p[i] && (math.Abs(share[j]) > math.Abs(share[i]) || math.Abs(share[j]) == math.Abs(share[i]) && j < i) {
				sharpest = false
			}
		}
		if !sharpest {
			continue
		}
		s.Points[i].Change = "changed"
		if good := share[i] * float64(s.Better); good > 0 {
			s.Points[i].Change = "better"
		} else if good < 0 {
			s.Points[i].Change = "worse"
		}
	}
}

func gather(points []Point) []float64 {
	var all []float64
	for _, p := range points {
		all = append(all, p.values...)
	}
	return all
}

const chartWidth, chartHeight, chartMargin = 640.0, 120.0, 8.0

type dot struct {
	X, Y, Top, Bottom   float64
	Title, Change, Link string
}

type chart struct {
	Series
	Path     string
	Dots     []dot
	Min, Max string
	Latest   string
	Changes  int
}

// Page writes one HTML file with a chart for each row: no network, no script needed to read it.
func Page(w io.Writer, dir string, entries []Entry, commitURL string) error {
	series, err := Load(dir, entries)
	if err != nil {
		return err
	}
	var charts []chart
	for _, s := range series {
		charts = append(charts, draw(s, commitURL))
	}
	return historyPage.Execute(w, map[string]any{"Charts": charts, "Results": len(entries), "First": entries[0].Date, "Last": entries[len(entries)-1].Date})
}

func draw(s Series, commitURL string) chart {
	c := chart{Series: s}
	lo, hi := math.Inf(1), math.Inf(-1)
	var medians []float64
	for _, p := range s.Points {
		lo, hi = min(lo, p.Lo), max(hi, p.Hi)
		medians = append(medians, p.Median)
	}
	scale := benchunit.CommonScale(medians, benchunit.ClassOf(s.Unit))
	c.Min, c.Max, c.Latest = scale.Format(lo), scale.Format(hi), scale.Format(medians[len(medians)-1])
	span := hi - lo
	if span == 0 {
		span = 1
	}
	y := func(v float64) float64 { return chartMargin + (hi-v)/span*(chartHeight-2*chartMargin) }
	var path strings.Builder
	for i, p := range s.Points {
		x := chartWidth / 2
		if len(s.Points) > 1 {
			x = chartMargin + float64(i)/float64(len(s.Points)-1)*(chartWidth-2*chartMargin)
		}
		fmt.Fprintf(&path, "%s%.1f %.1f", map[bool]string{true: "M", false: "L"}[i == 0], x, y(p.Median))
		d := dot{X: x, Y: y(p.Median), Top: y(p.Hi), Bottom: y(p.Lo), Change: p.Change,
			Title: fmt.Sprintf("%s %s\n%s %s (n=%d)", p.Date.Format("2006-01-02 15:04"), p.Commit, scale.Format(p.Median), s.Unit, p.N)}
		if commitURL != "" {
			d.Link = commitURL + strings.TrimSuffix(p.Commit, "-dirty")
		}
		if p.Change != "" {
			c.Changes++
		}
		c.Dots = append(c.Dots, d)
	}
	c.Path = path.String()
	return c
}

var historyPage = template.Must(template.New("history").Parse(`<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Benchmark history</title>
<style>
body{font:14px/1.5 system-ui,sans-serif;margin:2em}section{margin:0 0 1.5em}h2{font-size:1em;margin:0;overflow-wrap:anywhere}
small{color:#666}svg{background:#fafafa;border:1px solid #ddd;display:block}path{fill:none;stroke:#36c;stroke-width:1.5}
circle{fill:#36c}.worse circle{fill:#d22}.better circle{fill:#282}.changed circle{fill:#e90}.bar{stroke:#9bd;stroke-width:2}
</style>
<h1>Benchmark history</h1>
<p>{{.Results}} results, {{.First.Format "2006-01-02"}} to {{.Last.Format "2006-01-02"}}. A dot is a result's median, its bar the interval; a large dot marks a change of level: red worse, green better.</p>
{{range .Charts}}<section data-row="{{.Name}}" data-unit="{{.Unit}}" data-changes="{{.Changes}}"><h2>{{.Name}}</h2>
<small>{{.Unit}} on {{.Device}}: {{.Min}} to {{.Max}}, latest {{.Latest}}{{if .Changes}}, {{.Changes}} changes of level{{end}}</small>
<svg width="640" height="120" viewBox="0 0 640 120" role="img" aria-label="{{.Name}} {{.Unit}}"><path d="{{.Path}}"/>
{{range .Dots}}{{if .Link}}<a href="{{.Link}}">{{end}}<g class="{{.Change}}"><title>{{.Title}}</title><line class="bar" x1="{{.X}}" x2="{{.X}}" y1="{{.Top}}" y2="{{.Bottom}}"/><circle cx="{{.X}}" cy="{{.Y}}" r="{{if .Change}}6{{else}}3{{end}}"/></g>{{if .Link}}</a>{{end}}
{{end}}</svg></section>
{{end}}</html>
`))
