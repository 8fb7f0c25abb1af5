package profiling

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// Options of a capture. Zero fields take defaults that bound it.
type Options struct {
	Dir       string // made if it does not exist; files go nowhere else
	Name      string // part of file names: letters, digits, ".", "_" and "-"
	StartStep int    // steps from now until the capture may begin
	NumSteps  int    // steps of each stage to capture: exactly so many; 0 is DefaultSteps
	Stage     string // "all", "prefill", "decode", or "both": prefill and decode apart, a file each
	MinBatch  int    // capture only steps of at least this many rows
	MaxBytes  int    // of marks and planned operations in memory; 0 is DefaultBytes. A capture that reaches it ends early and says so.
	// Deadline ends a capture whose stage never comes; 0 is DefaultDeadline.
	Deadline time.Duration
	// Stacks notes the Go stack of each launch while the capture runs. Graphs captured before it keep what they have: TOKAMAK_BACKTRACE=cuda.
	Stacks bool
	// Sources add what happened outside the engine's marks: kernels, telemetry.
	Sources []Source
}

const (
	stepBits = 20
	stepMask = 1<<stepBits - 1
)

// Bounds of a capture that asks for none.
const (
	DefaultSteps    = 200
	DefaultBytes    = 256 << 20
	DefaultDeadline = 10 * time.Minute
	MaxSteps        = 100_000
)

// Source records beside a capture: a GPU's activity, a power meter.
type Source interface {
	// Start begins recording.
	Start() error
	// Stop ends it and hands over what was recorded. It is called once, off the engine's thread.
	Stop() (Recording, error)
}

// LoopSource is a Source that starts on the engine's thread, which has the device's context, right before a step that may be captured is
// launched. It stops there right after the last one was awaited, or on another thread if the capture ends before.
type LoopSource interface {
	Source
	OnLoop()
}

var (
	// ErrRunning is returned by Start while a capture runs.
	ErrRunning = errors.New("a capture is running: stop it first")
	// ErrNotRunning is returned when there is nothing to stop.
	ErrNotRunning = errors.New("no capture is running: start one first")
)

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$`)

// Capture records chosen steps. It is a trace sink; it never blocks the engine.
type Capture struct {
	o      Options
	begun  time.Time
	timer  *time.Timer
	stacks bool // it turned stacks on

	mu        sync.Mutex
	stages    []*stage
	steps     int               // seen since the start
	marks     map[uint64][]mark // of steps not yet known to be wanted
	floating  []mark            // of no step yet
	spans     map[spanKey]time.Time
	kept      kept
	ops       map[uint64]stepOps      // by step
	launching uint64                  // step whose launch is under way
	awaiting  uint64                  // step whose wait is
	times     map[uint64][]trace.Time // by step
	node      struct {                // open range of a layer, of the loop's goroutine
		open  bool
		layer int
		token uint64
	}
	onLoop    []Source    // sources of the loop's that wait for their start
	taken     []Recording // of the loop's sources, at the capture's end
	sourceErr error       // of the loop's sources
	started   []Source    // all that must be stopped
	bytes     int
	ended     bool
	cut       string // why it ended early; "" if it did not

	done    chan struct{}
	files   []string
	kernels []Kernel
	err     error
}

// stage is one file's worth of steps.
type stage struct {
	name  string // in the file name; "" if it is the only one
	take  func(trace.Phase) bool
	steps []trace.Step
	marks []mark
}

// mark is a finished range. Loop, scheduler and backend ranges are the engine loop's own and nest.
type mark struct {
	name     string
	category trace.Category
	step     uint64
	start    time.Time
	length   time.Duration
}

type span struct {
	name          string
	id            uint64
	start, finish time.Time
}

type spanKey struct {
	name string
	id   uint64
}

type sample struct {
	name  string
	at    time.Time
	value int64
}

// kept is what belongs to no step.
type kept struct {
	spans    []span
	counters []sample
	callers  []mark
}

// markBytes is about what a mark, a span or a sample takes in memory; an operation of a plan and its time take their own size.
const (
	markBytes = 96
	opBytes   = int(unsafe.Sizeof(trace.Op{}))
	timeBytes = int(unsafe.Sizeof(trace.Time{}))
)

var running struct {
	sync.Mutex
	capture *Capture
}

// Running returns the capture that runs, or nil.
func Running() *Capture {
	running.Lock()
	defer running.Unlock()
	return running.capture
}

// Start begins a capture. It returns an error at once for a directory that cannot be written, a bad option, or a source that does not
// start; the engine goes on in any case.
func Start(o Options) (*Capture, error) {
	if err := o.fill(); err != nil {
		return nil, err
	}
	c := &Capture{o: o, begun: time.Now(), marks: map[uint64][]mark{}, spans: map[spanKey]time.Time{}, ops: map[uint64]stepOps{}, times: map[uint64][]trace.Time{}, done: make(chan struct{})}
	stages := map[string]func(trace.Phase) bool{
		"prefill": func(p trace.Phase) bool { return p != trace.Decode },
		"decode":  func(p trace.Phase) bool { return p == trace.Decode },
	}
	switch o.Stage {
	case "all":
		c.stages = []*stage{{take: func(trace.Phase) bool { return true }}}
	case "both":
		c.stages = []*stage{{name: "prefill", take: stages["prefill"]}, {name: "decode", take: stages["decode"]}}
	default:
		c.stages = []*stage{{take: stages[o.Stage]}}
	}
	running.Lock()
	defer running.Unlock()
	if running.capture != nil {
		return nil, ErrRunning
	}
	for _, s := range o.Sources {
		if _, ok := s.(LoopSource); ok {
			c.onLoop = append(c.onLoop, s)
			continue
		}
		if err := s.Start(); err != nil {
			for _, started := range c.started {
				_, stopErr := started.Stop()
				err = errors.Join(err, stopErr)
			}
			return nil, err
		}
		c.started = append(c.started, s)
	}
	running.capture = c
	if o.Stacks && trace.Stacks.CompareAndSwap(false, true) {
		c.stacks = true
	}
	c.timer = time.AfterFunc(o.Deadline, func() { c.finish("the deadline of " + o.Deadline.String() + " came first") })
	AddSink(c)
	return c, nil
}

func (o *Options) fill() error {
	if o.Stage == "" {
		o.Stage = "all"
	}
	if o.Name == "" {
		o.Name = "tokamak"
	}
	switch {
	case o.Dir == "":
		return errors.New("profiling has no directory: set TOKAMAK_PROFILER_DIR where the engine runs")
	case !nameForm.MatchString(o.Name):
		return fmt.Errorf("profile name %q: want up to 64 letters, digits, dots, underscores and dashes", o.Name)
	case !slices.Contains([]string{"all", "prefill", "decode", "both"}, o.Stage):
		return fmt.Errorf("stage %q: want all, prefill, decode or both", o.Stage)
	case o.NumSteps < 0 || o.NumSteps > MaxSteps:
		return fmt.Errorf("num_steps %d: want 1 to %d, or 0 for %d", o.NumSteps, MaxSteps, DefaultSteps)
	case o.StartStep < 0 || o.MinBatch < 0 || o.MaxBytes < 0 || o.Deadline < 0:
		return errors.New("start_step, batch size, bytes and deadline cannot be negative")
	}
	if o.NumSteps == 0 {
		o.NumSteps = DefaultSteps
	}
	if o.MaxBytes == 0 {
		o.MaxBytes = DefaultBytes
	}
	if o.Deadline == 0 {
		o.Deadline = DefaultDeadline
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return fmt.Errorf("profile directory: %w", err)
	}
	probe, err := os.CreateTemp(o.Dir, ".writable-*")
	if err != nil {
		return fmt.Errorf("profile directory: %w", err)
	}
	return errors.Join(probe.Close(), os.Remove(probe.Name()))
}

// Paths returns where the capture's files will be once it is done.
func (c *Capture) Paths() []string {
	var paths []string
	for _, s := range c.stages {
		name := c.stem()
		if s.name != "" {
			name += "-" + s.name
		}
		paths = append(paths, name+".trace.json.gz")
	}
	return paths
}

func (c *Capture) stem() string {
	return filepath.Join(c.o.Dir, c.o.Name+"-"+c.begun.UTC().Format("20060102T150405.000"))
}

// Steps returns the steps of a capture that is done, stage by stage.
func (c *Capture) Steps() []trace.Step {
	<-c.done
	var all []trace.Step
	for _, s := range c.stages {
		all = append(all, s.steps...)
	}
	return all
}

// Done is closed when the files are written, or could not be.
func (c *Capture) Done() <-chan struct{} { return c.done }

// Stop ends the capture if it has not ended by itself, waits for its files, and returns them.
func (c *Capture) Stop() ([]string, error) {
	c.finish("it was stopped")
	<-c.done
	return c.files, c.err
}

// Result returns the files of a capture that is done.
func (c *Capture) Result() ([]string, error) {
	<-c.done
	return c.files, c.err
}

// Begin implements trace.Sink.
func (c *Capture) Begin(name string, category trace.Category, arg uint64) uint64 {
	if category == trace.Backend && name == "launch" {
		c.mu.Lock()
		c.launching = arg & stepMask
		c.startOnLoop()
		c.mu.Unlock()
	}
	if category == trace.Backend && name == "wait" {
		c.mu.Lock()
		c.awaiting = arg & stepMask
		c.mu.Unlock()
	}
	// The token holds the time since the capture began, up to five hours, and the step, whose number may wrap: two are in flight.
	return uint64(time.Since(c.begun).Nanoseconds())<<stepBits | arg&stepMask
}

// startOnLoop starts the loop's sources before the first launch that may be kept: up to two steps are in flight and not counted yet.
func (c *Capture) startOnLoop() {
	if c.ended || c.steps+2 < c.o.StartStep {
		return
	}
	for _, s := range c.onLoop {
		if err := s.Start(); err != nil {
			c.sourceErr = errors.Join(c.sourceErr, err)
			continue
		}
		c.started = append(c.started, s)
	}
	c.onLoop = nil
}

// stopOnLoop stops them: Step calls it, on the same thread.
func (c *Capture) stopOnLoop() {
	var left []Source
	for _, s := range c.started {
		if _, ok := s.(LoopSource); !ok {
			left = append(left, s)
			continue
		}
		r, err := s.Stop()
		c.taken, c.sourceErr = append(c.taken, r), errors.Join(c.sourceErr, err)
	}
	c.started = left
}

// End implements trace.Sink.
func (c *Capture) End(name string, category trace.Category, token uint64) {
	now := time.Now()
	start := c.begun.Add(time.Duration(token >> stepBits))
	m := mark{name: name, category: category, step: token & stepMask, start: start, length: now.Sub(start)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended || !c.room(markBytes) {
		return
	}
	if category == trace.Request { // on a caller's goroutine, beside the loop
		c.kept.callers = append(c.kept.callers, m)
		return
	}
	if m.step == 0 {
		c.floating = append(c.floating, m)
		return
	}
	// What had no number of its own happened on the way to this.
	c.marks[m.step] = append(append(c.marks[m.step], c.floating...), m)
	c.floating = c.floating[:0]
}

// room accounts for so many more bytes and ends the capture when there is none.
func (c *Capture) room(bytes int) bool {
	if c.bytes += bytes; c.bytes <= c.o.MaxBytes {
		return true
	}
	c.endLocked(fmt.Sprintf("%d bytes of marks and operations were reached", c.o.MaxBytes))
	return false
}

// Counter implements trace.Sink.
func (c *Capture) Counter(name string, _ trace.Category, value int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended && c.recording() && c.room(markBytes) {
		c.kept.counters = append(c.kept.counters, sample{name, time.Now(), value})
	}
}

// recording tells whether a step has been kept yet.
func (c *Capture) recording() bool {
	return slices.ContainsFunc(c.stages, func(s *stage) bool { return len(s.steps) > 0 })
}

// SpanBegin implements trace.Sink.
func (c *Capture) SpanBegin(name string, _ trace.Category, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.spans[spanKey{name, id}] = time.Now()
	}
}

// SpanEnd implements trace.Sink.
func (c *Capture) SpanEnd(name string, _ trace.Category, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	key := spanKey{name, id}
	if start, ok := c.spans[key]; ok && !c.ended && c.room(markBytes) {
		c.kept.spans = append(c.kept.spans, span{name, id, start, time.Now()})
	}
	delete(c.spans, key)
}

// Step implements trace.Sink: only here is known what kind of step its marks belong to.
func (c *Capture) Step(s trace.Step) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended {
		return
	}
	c.steps++
	id := s.ID & stepMask
	marks := append(c.marks[id], c.floating...)
	c.floating = c.floating[:0]
	delete(c.marks, id)
	keep := false
	if c.steps > c.o.StartStep && s.Rows >= c.o.MinBatch && !s.Launched.Before(c.begun) {
		for _, st := range c.stages {
			if st.take(s.Phase) && len(st.steps) < c.o.NumSteps {
				st.steps = append(st.steps, s)
				st.marks = append(st.marks, marks...)
				marks, keep = nil, true
				break
			}
		}
	}
	c.bytes -= len(marks) * markBytes // of a step that is not kept
	if !keep {
		c.bytes -= len(c.ops[id].ops)*opBytes + len(c.times[id])*timeBytes
		delete(c.ops, id)
		delete(c.times, id)
	}
	if !slices.ContainsFunc(c.stages, func(st *stage) bool { return len(st.steps) < c.o.NumSteps }) {
		c.stopOnLoop()
		c.endLocked("")
	}
}

// finish ends the capture early, for the reason given, unless it has ended.
func (c *Capture) finish(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		c.endLocked(why)
	}
}

// endLocked stops recording and writes on another goroutine, so that the engine goes on.
func (c *Capture) endLocked(why string) {
	c.ended, c.cut = true, why
	at := time.Now()
	for key, start := range c.spans { // requests that go on
		c.kept.spans = append(c.kept.spans, span{key.name, key.id, start, at})
	}
	c.timer.Stop()
	go func() {
		RemoveSink(c)
		if c.stacks {
			trace.Stacks.Store(false)
		}
		c.files, c.err = c.write()
		running.Lock()
		running.capture = nil
		running.Unlock()
		close(c.done)
	}()
}
