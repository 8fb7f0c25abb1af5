package profiling

import (
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/pprof/profile"
)

// frames are the functions of a stack, innermost first, without the machinery that launches kernels.
func frames(stack []uintptr) []string {
	var out []string
	walk(stack, func(f runtime.Frame) {
		out = append(out, fmt.Sprintf("%s %s:%d", shortName(f.Function), filepath.Base(f.File), f.Line))
	})
	return out
}

func shortName(function string) string {
	return function[strings.LastIndexByte(function, '/')+1:]
}

func walk(stack []uintptr, do func(runtime.Frame)) {
	if len(stack) == 0 {
		return
	}
	for it := runtime.CallersFrames(stack); ; {
		f, more := it.Next()
		if f.Function != "" && !strings.HasPrefix(f.Function, "runtime.") {
			do(f)
		}
		if !more {
			return
		}
	}
}

// WritePprof writes GPU time by Go stack, for `go tool pprof`: a sample for each operation and kernel, its leaf the kernel, above it the
// operation and the Go functions that launched or captured it. A kernel's time is what it adds to its step, so that the sum is the time the GPU was busy.
func WritePprof(w io.Writer, kernels []Kernel) error {
	p := &profile.Profile{
		SampleType:        []*profile.ValueType{{Type: "kernels", Unit: "count"}, {Type: "gpu", Unit: "nanoseconds"}},
		PeriodType:        &profile.ValueType{Type: "gpu", Unit: "nanoseconds"},
		Period:            1,
		DefaultSampleType: "gpu",
	}
	functions := map[string]*profile.Function{}
	locations := map[string]*profile.Location{}
	location := func(name, file string, line int) *profile.Location {
		key := fmt.Sprintf("%s:%d", name, line)
		if l := locations[key]; l != nil {
			return l
		}
		f := functions[name]
		if f == nil {
			f = &profile.Function{ID: uint64(len(p.Function) + 1), Name: name, SystemName: name, Filename: file}
			functions[name] = f
			p.Function = append(p.Function, f)
		}
		l := &profile.Location{ID: uint64(len(p.Location) + 1), Line: []profile.Line{{Function: f, Line: int64(line)}}}
		locations[key] = l
		p.Location = append(p.Location, l)
		return l
	}
	samples := map[string]*profile.Sample{}
	added := Added(kernels)
	for i, k := range kernels {
		path := []*profile.Location{location("kernel "+k.Name, "", 0)}
		if k.Op != "" {
			path = append(path, location("op "+k.Op, "", 0))
		}
		walk(k.Stack, func(f runtime.Frame) { path = append(path, location(f.Function, f.File, f.Line)) })
		var key strings.Builder
		for _, l := range path {
			fmt.Fprintf(&key, "%d,", l.ID)
		}
		s := samples[key.String()]
		if s == nil {
			s = &profile.Sample{Location: path, Value: make([]int64, 2)}
			samples[key.String()] = s
			p.Sample = append(p.Sample, s)
		}
		s.Value[0]++
		s.Value[1] += added[i].Nanoseconds()
	}
	if err := p.CheckValid(); err != nil {
		return err
	}
	return p.Write(w)
}
