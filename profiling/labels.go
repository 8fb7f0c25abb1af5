package profiling

import (
	"context"
	"errors"
	"os"
	"runtime/pprof"
	gotrace "runtime/trace"
	"sync"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// Labels is a sink that labels goroutines for CPU profiles of Go itself: a sample knows the phase of a request that it was taken in
// (tokenize, schedule, launch, wait, commit, deliver) and the room. In a trace of Go each is a region.
//
//	go tool pprof -tagfocus phase=schedule cpu.out
type Labels struct{ open openRegions }

// NewLabels makes the sink; install it with AddSink.
func NewLabels() *Labels { return &Labels{open: openRegions{regions: map[uint64]*gotrace.Region{}}} }

// Begin implements trace.Sink. Ranges that are labelled do not nest.
func (l *Labels) Begin(name string, c trace.Category, _ uint64) uint64 {
	pprof.SetGoroutineLabels(pprof.WithLabels(context.Background(), pprof.Labels("phase", name, "room", string(c))))
	if !gotrace.IsEnabled() {
		return 0
	}
	return l.open.add(gotrace.StartRegion(context.Background(), name))
}

// End implements trace.Sink.
func (l *Labels) End(_ string, _ trace.Category, token uint64) {
	pprof.SetGoroutineLabels(context.Background())
	if token != 0 {
		l.open.take(token).End()
	}
}

// openRegions keeps regions between their begin and their end.
type openRegions struct {
	mu      sync.Mutex
	next    uint64
	regions map[uint64]*gotrace.Region
}

func (o *openRegions) add(r *gotrace.Region) uint64 {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next++
	o.regions[o.next] = r
	return o.next
}

func (o *openRegions) take(token uint64) *gotrace.Region {
	o.mu.Lock()
	defer o.mu.Unlock()
	r := o.regions[token]
	delete(o.regions, token)
	return r
}

// Counter implements trace.Sink.
func (*Labels) Counter(string, trace.Category, int64) {}

// SpanBegin implements trace.Sink. A span is no goroutine's.
func (*Labels) SpanBegin(string, trace.Category, uint64) {}

// SpanEnd implements trace.Sink.
func (*Labels) SpanEnd(string, trace.Category, uint64) {}

// Step implements trace.Sink.
func (*Labels) Step(trace.Step) {}

// HostProfile records Go itself: a CPU profile and a trace, each into the file named, none where the name is empty, with labels by phase. stop
// ends both and must be called before the process ends.
func HostProfile(cpuProfile, goTrace string) (stop func() error, err error) {
	if cpuProfile == "" && goTrace == "" {
		return func() error { return nil }, nil
	}
	var ends []func() error
	stop = func() error {
		var err error
		for _, end := range ends {
			err = errors.Join(err, end())
		}
		ends = nil
		return err
	}
	begin := func(path string, start func(*os.File) error, end func()) error {
		if path == "" {
			return nil
		}
		f, err := os.Create(path)
		if err != nil {
			return err
		}
		if err := start(f); err != nil {
			return errors.Join(err, f.Close(), os.Remove(path))
		}
		ends = append(ends, func() error { end(); return f.Close() })
		return nil
	}
	err = begin(cpuProfile, func(f *os.File) error { return pprof.StartCPUProfile(f) }, pprof.StopCPUProfile)
	if err == nil {
		err = begin(goTrace, func(f *os.File) error { return gotrace.Start(f) }, gotrace.Stop)
	}
	if err != nil {
		return nil, errors.Join(err, stop())
	}
	l := NewLabels()
	AddSink(l)
	ends = append(ends, func() error { RemoveSink(l); return nil })
	return stop, nil
}
