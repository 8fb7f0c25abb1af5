// Ab runs two builds of the same benchmarks in turn on this machine and judges them: ABBA in random blocks, so that a machine that
// warms up, slows down or is shared hits both alike.
//
//	go run ./benchstat/ab --base main --bench OneBatch -- --batch-size 1,8
//	go run ./benchstat/ab bisect --good v0.1 --bad HEAD --metric step-ms --bench OneBatch
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/tokamak-engine/tokamak/benchstat/gate"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

const usage = `Usage: ab [flags] [-- flags of the benchmark]
       ab bisect --good REV --bad REV --metric UNIT [flags] [-- flags of the benchmark]

Builds the benchmarks of --base and --new (git revisions, "." for the work tree, or test binaries), runs them in turn, and judges
the second against the first. Results go to --out; a run that was cut off goes on there when the same command is given again.

Exit code: 0 no regression, 1 regression, 2 cannot judge or failed.

Flags:
`

// settings of a comparison. All but the paths decide what is measured, and a resumed run must have the same.
type settings struct {
	Base, New  string
	Package    string
	Bench      string
	Benchtime  string
	Tags       string
	Min, Max   int
	Warmup     int
	Seed       uint64
	EarlyStop  bool
	Extra      []string
	Metric     string
	threshold  float64
	out, cache string
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	bisecting := len(args) > 0 && args[0] == "bisect"
	if bisecting {
		args = args[1:]
	}
	var s settings
	var good, bad string
	fs := flag.NewFlagSet("ab", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, usage); fs.PrintDefaults() }
	fs.StringVar(&s.Base, "base", "HEAD", "baseline: a git `revision` or a test binary")
	fs.StringVar(&s.New, "new", ".", "candidate: a git `revision`, a test binary, or . for the work tree")
	fs.StringVar(&good, "good", "", "bisect: a `revision` without the regression")
	fs.StringVar(&bad, "bad", "HEAD", "bisect: a `revision` with it")
	fs.StringVar(&s.Metric, "metric", "", "judge this `unit` alone")
	fs.StringVar(&s.Package, "pkg", "./benchmarks", "package of the benchmarks")
	fs.StringVar(&s.Bench, "bench", ".", "benchmarks to run, as in go test -bench")
	fs.StringVar(&s.Benchtime, "benchtime", "1x", "as in go test -benchtime")
	fs.StringVar(&s.Tags, "tags", "", "build tags")
	fs.IntVar(&s.Max, "n", 10, "runs a side")
	fs.IntVar(&s.Min, "min", 6, "with --stop-early: runs a side before the first look")
	fs.BoolVar(&s.EarlyStop, "stop-early", false, "stop when every row is decided; each look costs its share of alpha")
	fs.IntVar(&s.Warmup, "warmup", 1, "runs a side that do not count")
	fs.Uint64Var(&s.Seed, "seed", 1, "of the order of runs")
	fs.Float64Var(&s.threshold, "threshold", 0.02, "smallest change that counts")
	fs.StringVar(&s.out, "out", "", "directory of results (default .cache/ab/<base>-<new>)")
	fs.StringVar(&s.cache, "cache", filepath.Join(".cache", "ab"), "directory of built test binaries")
	if err := fs.Parse(args); err != nil {
		return int(gate.CannotJudge)
	}
	s.Extra = fs.Args()
	fail := func(err error) int { fmt.Fprintln(stderr, "ab:", err); return int(gate.CannotJudge) }
	switch {
	case s.Max < 1 || s.Min < 1 || s.Warmup < 0:
		return fail(errors.New("--n and --min are at least 1, --warmup at least 0"))
	case s.threshold <= 0 || s.threshold >= 1:
		return fail(errors.New("--threshold lies between 0 and 1: 0.02 is 2 %"))
	case bisecting && (good == "" || s.Metric == ""):
		return fail(errors.New("bisect needs --good and --metric"))
	}
	if bisecting {
		first, err := bisect(ctx, s, good, bad, stdout, stderr)
		if err != nil {
			return fail(err)
		}
		fmt.Fprintln(stdout, "first bad commit:", first)
		return 0
	}
	verdict, err := compareSides(ctx, s, stdout, stderr)
	if err != nil {
		return fail(err)
	}
	return int(verdict)
}

// bisect finds the first commit on the way from good to bad whose metric regresses against good.
func bisect(ctx context.Context, s settings, good, bad string, stdout, stderr io.Writer) (string, error) {
	list, err := git(ctx, "rev-list", "--first-parent", "--reverse", good+".."+bad)
	if err != nil {
		return "", err
	}
	commits := strings.Fields(list)
	if len(commits) == 0 {
		return "", fmt.Errorf("no commits between %s and %s", good, bad)
	}
	root := s.out
	if root == "" {
		root = filepath.Join(s.cache, "bisect")
	}
	regresses := func(i int) (bool, error) {
		step := s
		step.Base, step.New = good, commits[i]
		step.out = filepath.Join(root, short(commits[i]))
		verdict, err := compareSides(ctx, step, io.Discard, stderr)
		if err != nil {
			return false, err
		}
		fmt.Fprintf(stdout, "%s (%d of %d): %s\n", short(commits[i]), i+1, len(commits), verdict)
		if verdict == gate.CannotJudge {
			return false, fmt.Errorf("%s cannot be judged against %s: see %s", short(commits[i]), good, step.out)
		}
		return verdict == gate.Regression, nil
	}
	lo, hi := 0, len(commits)-1
	if is, err := regresses(hi); err != nil {
		return "", err
	} else if !is {
		return "", fmt.Errorf("%s does not regress against %s in %s: nothing to find", bad, good, s.Metric)
	}
	for lo < hi {
		mid := (lo + hi) / 2
		is, err := regresses(mid)
		if err != nil {
			return "", err
		}
		if is {
			hi = mid
		} else {
			lo = mid + 1
		}
	}
	return commits[lo], nil
}

func short(commit string) string { return commit[:min(len(commit), 12)] }
