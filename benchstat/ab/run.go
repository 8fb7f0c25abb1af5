package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/tokamak-engine/tokamak/benchstat/compare"
	"github.com/tokamak-engine/tokamak/benchstat/gate"
	"github.com/tokamak-engine/tokamak/benchstat/render"
)

// order returns which side runs at each of 2n places: blocks of four, ABBA or BAAB by a coin, so that a drift that is even over a
// block cancels out; an odd n ends in one AB or BA.
func order(n int, seed uint64) []int {
	rng := rand.New(rand.NewPCG(seed, 0))
	var sides []int
	for len(sides) < 2*n {
		a := rng.IntN(2)
		if 2*n-len(sides) == 2 {
			sides = append(sides, a, 1-a)
		} else {
			sides = append(sides, a, 1-a, 1-a, a)
		}
	}
	return sides
}

// record is one finished run, a line of runs.jsonl.
type record struct {
	Side    string    `json:"side"`
	Start   time.Time `json:"start"`
	Seconds float64   `json:"seconds"`
	Before  state     `json:"before"`
	After   state     `json:"after"`
}

// plan is what a resumed run must agree on.
type plan struct {
	Settings settings `json:"settings"`
	Base     string   `json:"base_commit"`
	New      string   `json:"new_commit"`
}

// compareSides builds, runs and judges; results stay in s.out.
func compareSides(ctx context.Context, s settings, stdout, stderr io.Writer) (gate.Verdict, error) {
	var sides [2]side
	for i, what := range []string{s.Base, s.New} {
		fmt.Fprintf(stderr, "building %s: %s\n", []string{"base", "new"}[i], what)
		var err error
		if sides[i], err = build(ctx, s, []string{"base", "new"}[i], what); err != nil {
			return gate.CannotJudge, err
		}
	}
	if s.out == "" {
		s.out = filepath.Join(s.cache, sides[0].commit+"-"+sides[1].commit)
	}
	done, err := resume(s, plan{s, sides[0].commit, sides[1].commit})
	if err != nil {
		return gate.CannotJudge, err
	}
	places := order(s.Max, s.Seed)
	if done > 0 {
		fmt.Fprintf(stderr, "going on after %d of %d runs in %s\n", done, len(places), s.out)
	} else {
		for range s.Warmup {
			for _, sd := range sides {
				if _, err := execute(ctx, s, sd); err != nil {
					return gate.CannotJudge, err
				}
			}
		}
	}
	progress := mpb.New(mpb.WithOutput(nil))
	if f, ok := stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		progress = mpb.New(mpb.WithOutput(f))
	}
	bar := progress.AddBar(int64(len(places)), mpb.PrependDecorators(decor.CountersNoUnit("run %d of %d ")), mpb.AppendDecorators(decor.AverageETA(decor.ET_STYLE_GO)))
	bar.IncrBy(done)
	for i := done; i < len(places); i++ {
		if err := measure(ctx, s, sides[places[i]]); err != nil {
			bar.Abort(true)
			return gate.CannotJudge, err
		}
		bar.Increment()
		if n := (i + 1) / 2; s.EarlyStop && (i+1)%4 == 0 && n >= s.Min && n < s.Max {
			_, result, err := judge(s, looks(s))
			if err != nil {
				return gate.CannotJudge, err
			}
			if decided(result) {
				fmt.Fprintf(stderr, "every row is decided after %d runs a side\n", n)
				bar.Abort(true)
				break
			}
		}
	}
	progress.Wait()
	share := 1
	if s.EarlyStop {
		share = looks(s)
	}
	set, result, err := judge(s, share)
	if err != nil {
		return gate.CannotJudge, err
	}
	return result.Verdict, render.Text(stdout, set, result)
}

// looks is how often an early stop may be decided, the end included. Each look gets an equal share of alpha: to look often is to
// give chance more chances.
func looks(s settings) int {
	n := 1
	for runs := 2; runs < s.Max; runs += 2 {
		if runs >= s.Min {
			n++
		}
	}
	return n
}

func decided(r *gate.Result) bool {
	for _, row := range r.Rows {
		if row.Kind == gate.Unclear || row.Kind == gate.Unjudged {
			return false
		}
	}
	return true
}

func judge(s settings, looks int) (*compare.Set, *gate.Result, error) {
	o, p := compare.DefaultOptions(), gate.DefaultPolicy()
	o.Ignore = "commit,date,throttled"
	p.Threshold = s.threshold
	p.Alpha /= float64(looks)
	if s.Metric != "" {
		o.Filter = fmt.Sprintf(".unit:%q", s.Metric)
	}
	set, err := compare.Read([]string{"base=" + filepath.Join(s.out, "base.txt"), "new=" + filepath.Join(s.out, "new.txt")}, o)
	if err != nil {
		return nil, nil, err
	}
	return set, gate.Judge(set, p), nil
}

// resume prepares s.out and returns how many runs it holds already. A directory of another comparison is refused.
func resume(s settings, want plan) (int, error) {
	if err := os.MkdirAll(s.out, 0o755); err != nil {
		return 0, err
	}
	at := filepath.Join(s.out, "plan.json")
	text, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		return 0, err
	}
	old, err := os.ReadFile(at)
	if errors.Is(err, os.ErrNotExist) {
		return 0, os.WriteFile(at, text, 0o644)
	}
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(old, text) {
		return 0, fmt.Errorf("%s holds another comparison: remove it or name another --out", s.out)
	}
	if strings.HasSuffix(want.New, "-dirty") || strings.HasSuffix(want.Base, "-dirty") {
		return 0, fmt.Errorf("%s holds results of an uncommitted work tree, which may have changed since: remove it or commit", s.out)
	}
	runs, err := os.ReadFile(filepath.Join(s.out, "runs.jsonl"))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	return bytes.Count(runs, []byte("\n")), err
}

// measure runs one side once and stores its rows, then its record: a run that is cut off leaves no record and is run again, its rows
// having been written only as a whole.
func measure(ctx context.Context, s settings, sd side) error {
	r := record{Side: sd.label, Start: time.Now().UTC(), Before: machineState(ctx)}
	rows, err := execute(ctx, s, sd)
	if err != nil {
		return err
	}
	r.Seconds, r.After = time.Since(r.Start).Seconds(), machineState(ctx)
	head := "commit: " + sd.commit + "\n"
	if why := throttled(r.Before, r.After); why != "" {
		head += "throttled: " + why + "\n"
	}
	// commit and throttled lines hold until the next: the next run's head begins anew.
	if err := appendFile(filepath.Join(s.out, sd.label+".txt"), append([]byte(head), append(rows, "throttled:\n"...)...)); err != nil {
		return err
	}
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return appendFile(filepath.Join(s.out, "runs.jsonl"), append(line, '\n'))
}

func appendFile(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	if _, err := f.Write(text); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}

// execute runs a side's binary once, in its own process group so that nothing it started outlives it, and returns what it printed.
func execute(ctx context.Context, s settings, sd side) ([]byte, error) {
	args := append([]string{"-test.run", "^$", "-test.bench", s.Bench, "-test.benchtime", s.Benchtime, "-test.count", "1", "-test.timeout", "0"}, s.Extra...)
	cmd := exec.CommandContext(ctx, sd.binary, args...)
	cmd.Dir = s.Package
	if info, err := os.Stat(s.Package); err != nil || !info.IsDir() {
		cmd.Dir = "."
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		lines := slices.DeleteFunc(strings.Split(stderr.String()+stdout.String(), "\n"), func(l string) bool { return strings.TrimSpace(l) == "" })
		return nil, fmt.Errorf("%s (%s): %w\n%s", sd.label, sd.commit, err, strings.Join(lines[max(0, len(lines)-10):], "\n"))
	}
	if !bytes.Contains(stdout.Bytes(), []byte("\nBenchmark")) && !bytes.HasPrefix(stdout.Bytes(), []byte("Benchmark")) {
		return nil, fmt.Errorf("%s (%s): -bench %s ran nothing", sd.label, sd.commit, s.Bench)
	}
	return stdout.Bytes(), nil
}
