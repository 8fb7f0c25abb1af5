package benchmarks

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/checkout"
	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/sources"
)

// These live as long as the test binary: TestMain sets them before anything runs.
var (
	set   = defaultSettings()
	model modelCache
	term  = newConsole(os.Stderr)
	table results
	// processors is GOMAXPROCS as it was at start; 0 leaves it to -cpu.
	processors = runtime.GOMAXPROCS(0)
)

func TestMain(m *testing.M) {
	fs := flag.CommandLine
	fs.Init(os.Args[0], flag.ContinueOnError)
	if err := set.parse(fs, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "# benchmarks:", err)
		os.Exit(2)
	}
	if top, err := checkout.Root(); err == nil {
		if cwd, err := os.Getwd(); err == nil && cwd == filepath.Join(top, "benchmarks") {
			set.pathsFrom(top)
		}
	}
	if set.help {
		def := defaultSettings()
		usage(os.Stdout, def.engine.Table(), def.table())
		os.Exit(0)
	}
	if fs.Lookup("test.bench").Value.String() != "" {
		pin(fs)
		if err := sources.Setup(); err != nil {
			fmt.Fprintln(os.Stderr, "# benchmarks:", err)
			os.Exit(2)
		}
		if fs.Lookup("test.cpuprofile").Value.String() != "" || fs.Lookup("test.trace").Value.String() != "" {
			profiling.AddSink(profiling.NewLabels()) // testing writes the profile, these are its labels
		}
	}
	code := m.Run()
	table.finish()
	if err := model.close(); err != nil {
		term.note("close the engine: %v", err)
		code = 1
	}
	table.print(term)
	os.Exit(code)
}

// pin sets what `go test` would otherwise choose by the machine or for small functions. Row names would end in the number of
// processors and not match between machines; so the benchmarks run with -cpu 1, which leaves the ending out, and take all
// processors themselves. And one run of a batch or a data set is one iteration: repetitions are -count's.
func pin(fs *flag.FlagSet) {
	given := map[string]bool{}
	fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
	if given["test.cpu"] {
		processors = 0
	} else {
		must(fs.Set("test.cpu", "1"))
	}
	if !given["test.benchtime"] {
		must(fs.Set("test.benchtime", "1x"))
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

// leaf runs a sub-benchmark on all processors.
func leaf(b *testing.B, name string, f func(b *testing.B)) {
	repeated := false
	b.Run(name, func(b *testing.B) {
		defer allProcessors()()
		// Package testing writes a row's name before each repetition but the first, which it runs to find sub-benchmarks.
		term.mu.Lock()
		term.halfRow, repeated = repeated, true
		term.mu.Unlock()
		f(b)
	})
}

// allProcessors undoes -cpu 1 until its result is called.
func allProcessors() (undo func()) {
	if processors == 0 {
		return func() {}
	}
	old := runtime.GOMAXPROCS(processors)
	return func() { runtime.GOMAXPROCS(old) }
}

// openOptions are the engine's options for a benchmark, after change.
func openOptions(change func(*engine.Options)) engine.Options {
	o := set.engine
	if change != nil {
		change(&o)
	}
	return o
}
