package profiling

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

func TestAlign(t *testing.T) {
	own := func(names ...string) (ops []trace.Op) {
		for _, n := range names {
			ops = append(ops, trace.Op{Name: "op " + n, Symbol: n})
		}
		return ops
	}
	library := trace.Op{Name: "gemm"}
	cases := []struct {
		name   string
		ops    []trace.Op
		events []string
		want   []int
	}{
		{"one to one", own("a", "b", "a"), []string{"a", "b", "a"}, []int{0, 1, 2}},
		{"a library's product and its reduction", []trace.Op{own("a")[0], library, own("b")[0]}, []string{"a", "nvjet_tst", "splitKreduce_kernel", "b"}, []int{0, 1, 1, 2}},
		{"two products in a row", []trace.Op{library, library, own("b")[0]}, []string{"gemm1", "gemm2", "b"}, []int{0, 1, 2}},
		{"a product that ran nothing we saw", []trace.Op{own("a")[0], library, own("b")[0]}, []string{"a", "b"}, []int{0, 2}},
		{"kernels lost", own("a", "b", "c"), []string{"a", "c"}, []int{0, 2}},
		{"a kernel of nobody's", own("a", "b"), []string{"a", "stranger", "b"}, []int{0, -1, 1}},
		{"no plan", nil, []string{"a"}, []int{-1}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			var events []*Event
			for _, n := range c.events {
				events = append(events, &Event{Name: n})
			}
			assert.Equal(t, c.want, align(events, c.ops))
		})
	}
}

// planning marks a step whose launch plans two operations, and has the source see their kernels.
func planning(src *source, id uint64, stack []uintptr) {
	s := trace.Step{ID: id, Phase: trace.Decode, Rows: 1, Launched: time.Now()}
	r := trace.BeginArg("launch", trace.Backend, id)
	if trace.WantOps() {
		trace.StepOps(true, []trace.Op{{Name: "gemv_qkv", Symbol: "gemv", Layer: 3, Bytes: 1000, Stack: stack}, {Name: "head", Layer: -1, FLOPs: 10}})
	}
	time.Sleep(50 * time.Microsecond)
	r.End()
	s.LaunchTime = time.Since(s.Launched)
	at := s.Launched.Add(10 * time.Microsecond)
	for i, name := range []string{"gemv", "nvjet"} {
		src.see(Event{Name: name, Category: KernelCategory, Track: chrometrace.Track{PID: 10, TID: 7},
			Start: at.Add(time.Duration(100+50*i) * time.Microsecond), Length: 40 * time.Microsecond, Launched: at, LaunchedFrom: Loop, Flow: id})
	}
	s.WaitStart = time.Now()
	trace.StepDone(s)
}

func TestKernelsKnowTheirOperations(t *testing.T) {
	src := &source{}
	c, err := Start(Options{Dir: t.TempDir(), StartStep: 1, NumSteps: 3, Sources: []Source{src}})
	require.NoError(t, err)
	stack := make([]uintptr, 8)
	stack = stack[:runtime.Callers(1, stack)]
	for id := range uint64(6) {
		planning(src, id+1, stack)
	}
	files, err := c.Result()
	require.NoError(t, err)
	kernels := c.Kernels()
	require.Len(t, kernels, 6, "two of each of the three steps")
	for i, k := range kernels {
		assert.Equal(t, uint64(2+i/2), k.Step)
		assert.Equal(t, []string{"gemv_qkv", "head"}[i%2], k.Op)
		assert.Equal(t, []int{3, -1}[i%2], k.Layer)
	}
	events, _ := read(t, files[0])
	rates := 0
	for _, e := range events {
		if e.Ph == "C" && e.Name == "GB/s of planned bytes" && e.Args[e.Name] != 0.0 {
			rates++
			assert.InDelta(t, 1000/90e-6/1e9, e.Args[e.Name], 1e-9, "1000 bytes from the first kernel's start to the second one's end")
		}
	}
	assert.Positive(t, rates)
	seen := 0
	for _, e := range events {
		if e.Cat == KernelCategory && e.Name == "gemv" {
			seen++
			assert.Equal(t, 3.0, e.Args["layer"])
			assert.Contains(t, e.Args["go stack"], "TestKernelsKnowTheirOperations")
		}
	}
	assert.Equal(t, 3, seen)

	var out bytes.Buffer
	require.NoError(t, WritePprof(&out, kernels))
	p, err := profile.Parse(&out)
	require.NoError(t, err)
	var total int64
	byLeaf := map[string]int64{}
	for _, s := range p.Sample {
		total += s.Value[1]
		byLeaf[s.Location[0].Line[0].Function.Name] += s.Value[0]
	}
	assert.Equal(t, 6*40*time.Microsecond.Nanoseconds(), total)
	assert.Equal(t, map[string]int64{"kernel gemv": 3, "kernel nvjet": 3}, byLeaf)
}

func TestAddedTime(t *testing.T) {
	at := time.Now()
	k := func(step uint64, start, length time.Duration) Kernel {
		return Kernel{Step: step, Start: at.Add(start), Length: length}
	}
	kernels := []Kernel{k(1, 0, 10), k(1, 4, 20), k(1, 5, 3), k(2, 20, 9), k(1, 30, 2)} // the third lies within the second
	assert.Equal(t, []time.Duration{10, 14, 0, 9, 2}, Added(kernels))
	var out bytes.Buffer
	require.NoError(t, WritePprof(&out, kernels))
	p, err := profile.Parse(&out)
	require.NoError(t, err)
	require.Len(t, p.Sample, 1)
	assert.Equal(t, []int64{5, 35}, p.Sample[0].Value)
}

// With dependent launches kernels overlap on their stream, a graph's kernels share one launch, and a library launches some unseen.
func TestOverlappingKernels(t *testing.T) {
	src := &source{}
	c, err := Start(Options{Dir: t.TempDir(), NumSteps: 1, Sources: []Source{src}})
	require.NoError(t, err)
	s := trace.Step{ID: 1, Phase: trace.Decode, Rows: 1, Launched: time.Now()}
	r := trace.BeginArg("launch", trace.Backend, 1)
	trace.StepOps(false, []trace.Op{{Name: "start", Symbol: "start", Layer: -1}}) // ahead of the graph
	trace.StepOps(true, []trace.Op{{Name: "gemm"}, {Name: "norm", Symbol: "norm"}})
	time.Sleep(50 * time.Microsecond)
	r.End()
	s.LaunchTime = time.Since(s.Launched)
	launched := s.Launched.Add(10 * time.Microsecond)
	for i, name := range []string{"start", "nvjet", "splitKreduce", "norm"} {
		e := Event{Name: name, Category: KernelCategory, Track: chrometrace.Track{PID: 10, TID: 7}, Start: launched.Add(time.Duration(100+30*i) * time.Microsecond),
			Length: 40 * time.Microsecond, Launched: launched, LaunchedFrom: Calls, Flow: 9}
		if name == "splitKreduce" {
			e.Launched, e.Flow = time.Time{}, 0
		}
		src.see(e)
	}
	src.recording.Threads = map[chrometrace.Track]string{{PID: 10, TID: 7}: "stream 7"}
	s.WaitStart = time.Now()
	trace.StepDone(s)
	files, err := c.Result()
	require.NoError(t, err)
	var ops []string
	for _, k := range c.Kernels() {
		ops = append(ops, k.Op)
	}
	assert.Equal(t, []string{"start", "gemm", "gemm", "norm"}, ops)
	events, _ := read(t, files[0])
	ends, names := map[int]float64{}, map[string]bool{}
	for _, e := range events {
		switch {
		case e.Cat == KernelCategory:
			assert.GreaterOrEqual(t, e.TS, ends[e.TID]-1e-6, "events of a thread follow each other")
			ends[e.TID] = e.TS + e.Dur
		case e.Ph == "M" && e.Name == "thread_name":
			names[e.Args["name"].(string)] = true
		}
	}
	assert.Len(t, ends, 2)
	assert.True(t, names["stream 7"] && names["stream 7 (overlapping 1)"], names)
	assert.Equal(t, 3, bytes.Count(raw(t, files[0]), []byte(`"ph":"s"`)))
	for _, id := range []string{`"id":1}`, `"id":2}`, `"id":3}`} {
		assert.Equal(t, 1, bytes.Count(raw(t, files[0]), []byte(id)), "one arrow begins with a number (the other end has more fields)")
	}
}

func raw(t *testing.T, path string) []byte {
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	gz, err := gzip.NewReader(f)
	require.NoError(t, err)
	text, err := io.ReadAll(gz)
	require.NoError(t, err)
	return text
}
