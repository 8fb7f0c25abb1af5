// Benchstat compares Go benchmark results and judges them: it prints what golang.org/x/perf/cmd/benchstat prints, and a verdict.
//
// Its exit code is 0 for no regression, 1 for a regression, and 2 where it cannot judge: unreadable lines, rows that are gone,
// too few samples, a unit whose direction nobody gave, another machine, throttled samples.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/perf/benchunit"

	"github.com/tokamak-engine/tokamak/benchstat/baseline"
	"github.com/tokamak-engine/tokamak/benchstat/compare"
	"github.com/tokamak-engine/tokamak/benchstat/gate"
	"github.com/tokamak-engine/tokamak/benchstat/history"
	"github.com/tokamak-engine/tokamak/benchstat/render"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

const usage = `Usage: benchstat [flags] old.txt new.txt ...
       benchstat --baseline DIR new.txt         judge against the stored baseline of this machine
       benchstat --aa file.txt                  how often does this noise raise a false alarm, and what can n samples show?
       benchstat baseline DIR new.txt           store new.txt as the baseline of its machine
       benchstat history add DIR result.txt     append a result; then: benchstat history page DIR > index.html

Prints medians with intervals and compares each file with the first, as golang.org/x/perf/cmd/benchstat does, then judges: a row
regresses if it is worse by at least its threshold and the difference is certain among all rows (Mann-Whitney, Holm). Give each
side at least 10 samples (go test -bench . -count=10).

Exit code: 0 no regression, 1 regression, 2 cannot judge or unusable arguments.

Flags:
`

func run(args []string, stdout, stderr io.Writer) int {
	if len(args) > 0 {
		switch args[0] {
		case "baseline":
			return report(stderr, baseline.Command(args[1:], stdout))
		case "history":
			return report(stderr, history.Command(args[1:], stdout))
		}
	}
	fs := flag.NewFlagSet("benchstat", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, usage); fs.PrintDefaults() }
	o, p := compare.DefaultOptions(), gate.DefaultPolicy()
	fs.StringVar(&o.Table, "table", o.Table, "split results into tables by `keys`")
	fs.StringVar(&o.Row, "row", o.Row, "split results into rows by `keys`")
	fs.StringVar(&o.Col, "col", o.Col, "split results into columns by `keys`; the first is the baseline")
	fs.StringVar(&o.Ignore, "ignore", "commit,date,throttled", "ignore differences in `keys`")
	fs.StringVar(&o.Filter, "filter", o.Filter, "use only results that match `query`")
	fs.Float64Var(&o.Alpha, "alpha", o.Alpha, "chance of a false alarm over all rows together")
	fs.Float64Var(&o.Confidence, "confidence", o.Confidence, "level of intervals")
	threshold := fs.String("threshold", "2%", "smallest change that counts, as `list`: 2% for all units, or tok/s=1%,sec/op=5%")
	env := fs.String("env", strings.Join(p.Environment, ","), "configuration `keys` that must agree for a judgement")
	fs.BoolVar(&p.AllowMissing, "allow-missing", false, "judge although rows are gone")
	fs.BoolVar(&p.IgnoreUnknown, "ignore-unknown-units", false, "judge although nobody said which way some unit is better")
	format := fs.String("format", "text", "text, md, json, html, junit or csv")
	base := fs.String("baseline", "", "compare with the baseline that `dir` holds for this machine")
	maxAge := fs.Int("max-age", 90, "with --baseline: refuse one older than this many `days`")
	aa := fs.Bool("aa", false, "split one file's samples at random: false alarms and the smallest change that can be shown")
	samples := fs.Int("n", 10, "with --aa: samples a side")
	tablesOnly := fs.Bool("tables-only", false, "print the tables alone, and judge nothing")
	if err := fs.Parse(args); err != nil {
		return int(gate.CannotJudge)
	}
	fail := func(err error) int { fmt.Fprintln(stderr, "benchstat:", err); return int(gate.CannotJudge) }
	if fs.NArg() == 0 {
		fs.Usage()
		return int(gate.CannotJudge)
	}
	if o.Alpha <= 0 || o.Alpha >= 1 || o.Confidence <= 0 || o.Confidence >= 1 {
		return fail(fmt.Errorf("--alpha and --confidence lie between 0 and 1"))
	}
	if err := parseThresholds(*threshold, &p); err != nil {
		return fail(err)
	}
	p.Alpha, p.Confidence = o.Alpha, o.Confidence
	p.Environment = strings.FieldsFunc(*env, func(r rune) bool { return r == ',' || r == ' ' })

	paths := fs.Args()
	if *base != "" {
		if len(paths) != 1 {
			return fail(fmt.Errorf("--baseline takes one file of new results"))
		}
		stored, err := baseline.Find(*base, paths[0], *maxAge)
		if err != nil {
			return fail(err)
		}
		for i := range stored {
			stored[i] = "baseline=" + stored[i]
		}
		paths = append(stored, "new="+paths[0])
	}
	set, err := compare.Read(paths, o)
	if err != nil {
		return fail(err)
	}
	switch {
	case *aa:
		return report(stderr, gate.WriteNoise(stdout, gate.Noise(set, p, *samples)))
	case *tablesOnly:
		for _, line := range append(set.Syntax, set.Filtered...) {
			fmt.Fprintln(stderr, line)
		}
		return report(stderr, render.Tables(stdout, set))
	}
	result := gate.Judge(set, p)
	switch *format {
	case "text":
		err = render.Text(stdout, set, result)
	case "md":
		err = render.Markdown(stdout, set, result)
	case "json":
		err = render.JSON(stdout, result)
	case "html":
		err = render.HTML(stdout, set, result)
	case "junit":
		err = render.JUnit(stdout, result)
	case "csv":
		err = render.CSV(stdout, set, result)
	default:
		err = fmt.Errorf("--format %q: want text, md, json, html, junit or csv", *format)
	}
	if err != nil {
		return fail(err)
	}
	return int(result.Verdict)
}

func report(stderr io.Writer, err error) int {
	if err != nil {
		fmt.Fprintln(stderr, "benchstat:", err)
		return int(gate.CannotJudge)
	}
	return 0
}

// parseThresholds reads "2%", "tok/s=1%" or several, comma-separated.
func parseThresholds(list string, p *gate.Policy) error {
	p.Thresholds = map[string]float64{}
	for _, item := range strings.Split(list, ",") {
		unit, text, perUnit := strings.Cut(strings.TrimSpace(item), "=")
		if !perUnit {
			text = unit
		}
		number, isPercent := strings.CutSuffix(text, "%")
		v, err := strconv.ParseFloat(number, 64)
		if isPercent {
			v /= 100
		}
		if err != nil || v < 0 || v >= 1 {
			return fmt.Errorf("--threshold %q: want a share such as 2%% or 0.02, or unit=share", item)
		}
		if perUnit {
			_, unit = benchunit.Tidy(1, unit)
			p.Thresholds[unit] = v
		} else {
			p.Threshold = v
		}
	}
	return nil
}
