// Tracesum reads a trace of the engine and says what is in it: steps by kind, their kernels, and the time of each layer and operation.
// It fails where a kernel is without a layer, an operation or, if asked for, a Go stack, and where the kernels' time is not the step's.
//
//	go run ./profiling/cmd/tracesum NAME.trace.json.gz
//	go run ./profiling/cmd/tracesum --steps 'decode batch=1' --step-ms 5.10 --within 0.03 --stacks NAME.trace.json.gz
//
// Exit code: 0 all is well, 1 something is missing or beside the mark, 2 bad use or an unreadable file.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"os"
	"strings"

	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("tracesum", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		fmt.Fprintln(stderr, "Usage: tracesum [flags] NAME.trace.json.gz\n\nExit code: 0 all is well, 1 something is missing or beside the mark, 2 bad use.\n\nFlags:")
		fs.PrintDefaults()
	}
	only := fs.String("steps", "", "only steps whose name begins so: \"decode batch=1\"")
	want := fs.Float64("step-ms", 0, "milliseconds of a step as measured without a profiler: the kernels' time must agree")
	within := fs.Float64("within", 0.03, "how far they may be apart, as a part of --step-ms")
	stacks := fs.Bool("stacks", false, "every kernel must have a Go stack")
	layers := fs.Bool("layers", false, "print the time of each layer")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	if fs.NArg() != 1 {
		fs.Usage()
		return 2
	}
	f, err := os.Open(fs.Arg(0))
	if err != nil {
		fmt.Fprintln(stderr, "tracesum:", err)
		return 2
	}
	defer f.Close()
	events, err := chrometrace.Read(f)
	if err != nil {
		fmt.Fprintf(stderr, "tracesum: %s: %v\n", fs.Arg(0), err)
		return 2
	}
	s := summarize(events, *only)
	s.print(stdout, *layers)
	problems := s.problems(*stacks)
	if *want > 0 && s.kernels > 0 {
		off := s.spanMs()/(*want) - 1
		fmt.Fprintf(stdout, "kernels %.4f ms a step, step %.4f ms without the profiler: %+.2f %%\n", s.spanMs(), *want, 100*off)
		if math.Abs(off) > *within {
			problems = append(problems, fmt.Sprintf("the kernels' time is %+.2f %% off the step's, more than %.2f %%", 100*off, 100**within))
		}
	}
	if len(problems) > 0 {
		fmt.Fprintf(stdout, "FAIL: %s\n", strings.Join(problems, "; "))
		return 1
	}
	fmt.Fprintln(stdout, "ok")
	return 0
}
