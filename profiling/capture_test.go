package profiling

import (
	"compress/gzip"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// steps marks n steps as the engine's loop does, with two in flight, and returns their records.
func steps(n int, first uint64, phase func(i int) (trace.Phase, int)) []trace.Step {
	var all []trace.Step
	finish := func(s trace.Step) {
		s.WaitStart = time.Now()
		r := trace.BeginArg("wait", trace.Backend, s.ID)
		time.Sleep(200 * time.Microsecond)
		r.End()
		s.WaitTime = time.Since(s.WaitStart)
		trace.BeginArg("commit", trace.Scheduler, s.ID).End()
		trace.Begin("deliver", trace.Loop).End()
		trace.StepDone(s)
		trace.Counter("batch rows", trace.Scheduler, int64(s.Rows))
		all = append(all, s)
	}
	var flying []trace.Step
	for i := range n {
		trace.Begin("schedule", trace.Scheduler).End()
		s := trace.Step{ID: first + uint64(i), Launched: time.Now()}
		r := trace.BeginArg("launch", trace.Backend, s.ID)
		r.End()
		s.LaunchTime = time.Since(s.Launched)
		s.Phase, s.Rows = phase(i)
		s.Tokens = s.Rows
		flying = append(flying, s)
		if len(flying) == 2 {
			finish(flying[0])
			flying = flying[1:]
		}
	}
	for _, s := range flying {
		finish(s)
	}
	return all
}

func decode(int) (trace.Phase, int) { return trace.Decode, 4 }

type event struct {
	Ph, Name, Cat string
	PID, TID      int
	TS, Dur       float64
	Args          map[string]any
}

func read(t *testing.T, path string) (events []event, meta map[string]string) {
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	gz, err := gzip.NewReader(f)
	require.NoError(t, err)
	var whole struct {
		TraceEvents []event
		OtherData   map[string]string
	}
	require.NoError(t, json.NewDecoder(gz).Decode(&whole))
	return whole.TraceEvents, whole.OtherData
}

func ofSteps(events []event) (ids []float64, phases map[string]int) {
	phases = map[string]int{}
	for _, e := range events {
		if e.Cat == "step" {
			ids = append(ids, e.Args["step"].(float64))
			phases[strings.Fields(e.Name)[0]]++
		}
	}
	return ids, phases
}

func TestExactlySoManySteps(t *testing.T) {
	for _, n := range []int{1, 2, 7} {
		c, err := Start(Options{Dir: t.TempDir(), StartStep: 3, NumSteps: n})
		require.NoError(t, err)
		steps(20, 100, decode)
		files, err := c.Result()
		require.NoError(t, err)
		require.Equal(t, c.Paths(), files)
		events, meta := read(t, files[0])
		ids, _ := ofSteps(events)
		require.Len(t, ids, n)
		assert.Equal(t, 103.0, ids[0], "three steps go before")
		assert.NotContains(t, meta, "ended_early")
		// Each kept step has its four tagged or floating ranges, and no other step has any.
		ranges := map[float64]map[string]bool{}
		for _, e := range events {
			if e.Ph == "X" && e.Cat != "step" && e.Name != "schedule" && e.Name != "deliver" {
				id := e.Args["step"].(float64)
				if ranges[id] == nil {
					ranges[id] = map[string]bool{}
				}
				ranges[id][e.Name] = true
			}
		}
		require.Len(t, ranges, n)
		for id, names := range ranges {
			assert.Contains(t, ids, id)
			assert.Equal(t, map[string]bool{"launch": true, "wait": true, "commit": true}, names)
		}
		assert.Nil(t, Running())
		assert.False(t, trace.Enabled(), "the sink is gone")
	}
}

func mixed(i int) (trace.Phase, int) {
	switch {
	case i%5 == 0:
		return trace.Prefill, 2
	case i%5 == 1:
		return trace.Mixed, 9
	}
	return trace.Decode, i
}

func TestStagesAndBatch(t *testing.T) {
	c, err := Start(Options{Dir: t.TempDir(), NumSteps: 3, Stage: "decode", MinBatch: 8})
	require.NoError(t, err)
	steps(30, 1, mixed)
	files, err := c.Result()
	require.NoError(t, err)
	events, _ := read(t, files[0])
	ids, phases := ofSteps(events)
	assert.Equal(t, []float64{9, 10, 13}, ids, "decode steps of 8 rows or more")
	assert.Equal(t, map[string]int{"decode": 3}, phases)

	c, err = Start(Options{Dir: t.TempDir(), NumSteps: 3, Stage: "both"})
	require.NoError(t, err)
	steps(30, 1, mixed)
	files, err = c.Result()
	require.NoError(t, err)
	require.Len(t, files, 2)
	events, _ = read(t, files[0])
	_, phases = ofSteps(events)
	assert.Equal(t, map[string]int{"prefill": 2, "mixed": 1}, phases)
	events, _ = read(t, files[1])
	_, phases = ofSteps(events)
	assert.Equal(t, map[string]int{"decode": 3}, phases)
}

func TestRangesNest(t *testing.T) {
	c, err := Start(Options{Dir: t.TempDir(), NumSteps: 5})
	require.NoError(t, err)
	steps(10, 1, decode)
	files, err := c.Result()
	require.NoError(t, err)
	events, _ := read(t, files[0])
	ends := map[[2]int][]float64{}
	for _, e := range events {
		if e.Ph != "X" {
			continue
		}
		assert.GreaterOrEqual(t, e.TS, 0.0, "%+v", e)
		key := [2]int{e.PID, e.TID}
		for len(ends[key]) > 0 && ends[key][len(ends[key])-1] <= e.TS {
			ends[key] = ends[key][:len(ends[key])-1]
		}
		if open := ends[key]; len(open) > 0 {
			assert.LessOrEqual(t, e.TS+e.Dur, open[len(open)-1]+0.001, "%s overlaps an open range of its track", e.Name)
		}
		ends[key] = append(ends[key], e.TS+e.Dur)
	}
}

func TestStopEndsEarly(t *testing.T) {
	c, err := Start(Options{Dir: t.TempDir(), NumSteps: 1000})
	require.NoError(t, err)
	assert.Same(t, c, Running())
	_, err = Start(Options{Dir: t.TempDir()})
	assert.ErrorIs(t, err, ErrRunning)
	steps(4, 1, decode)
	files, err := c.Stop()
	require.NoError(t, err)
	events, meta := read(t, files[0])
	ids, _ := ofSteps(events)
	assert.Len(t, ids, 4)
	assert.Equal(t, "it was stopped", meta["ended_early"])
	again, err := c.Stop()
	assert.NoError(t, err)
	assert.Equal(t, files, again)
}

func TestBounds(t *testing.T) {
	c, err := Start(Options{Dir: t.TempDir(), NumSteps: 1000, MaxBytes: 40 * markBytes})
	require.NoError(t, err)
	steps(50, 1, decode)
	files, err := c.Result()
	require.NoError(t, err)
	_, meta := read(t, files[0])
	assert.Contains(t, meta["ended_early"], "bytes of marks and operations were reached")

	// What a backend tells of each step counts, too, unless the step is not kept.
	const ops = 100
	c, err = Start(Options{Dir: t.TempDir(), StartStep: 50, NumSteps: 1000, MaxBytes: 3 * ops * (opBytes + timeBytes)})
	require.NoError(t, err)
	for id := range uint64(55) {
		s := trace.Step{ID: id + 1, Phase: trace.Decode, Rows: 1, Launched: time.Now()}
		trace.BeginArg("launch", trace.Backend, s.ID).End()
		trace.StepOps(true, make([]trace.Op, ops))
		trace.BeginArg("wait", trace.Backend, s.ID).End()
		trace.StepTimes(make([]trace.Time, ops))
		trace.StepDone(s)
	}
	_, err = c.Result()
	require.NoError(t, err)
	assert.Len(t, c.Steps(), 2, "the third one's operations found no room")

	c, err = Start(Options{Dir: t.TempDir(), Stage: "prefill", Deadline: 20 * time.Millisecond})
	require.NoError(t, err)
	steps(5, 1, decode)
	_, err = c.Result()
	assert.ErrorContains(t, err, "no step was captured (the deadline of 20ms came first)")
	left, err := filepath.Glob(filepath.Join(c.o.Dir, "*"))
	require.NoError(t, err)
	assert.Empty(t, left, "nothing half-done stays")
}

func TestBadOptions(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	cases := map[string]Options{
		"set TOKAMAK_PROFILER_DIR":   {},
		"profile name \"../../etc\"": {Dir: t.TempDir(), Name: "../../etc"},
		"profile name \".hidden\"":   {Dir: t.TempDir(), Name: ".hidden"},
		"stage \"extend\"":           {Dir: t.TempDir(), Stage: "extend"},
		"num_steps -1":               {Dir: t.TempDir(), NumSteps: -1},
		"cannot be negative":         {Dir: t.TempDir(), StartStep: -1},
		"profile directory":          {Dir: filepath.Join(file, "below")},
		"sensor is taken":            {Dir: t.TempDir(), Sources: []Source{&source{fail: errors.New("sensor is taken")}}},
	}
	for says, o := range cases {
		_, err := Start(o)
		assert.ErrorContains(t, err, says)
		assert.Nil(t, Running())
		assert.False(t, trace.Enabled())
	}
}

type source struct {
	fail      error
	mu        sync.Mutex // a capture stops its sources on a goroutine of its own
	recording Recording
}

func (s *source) Start() error { return s.fail }
func (s *source) Stop() (Recording, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.recording
	r.Events = slices.Clone(r.Events)
	return r, nil
}

func (s *source) see(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recording.Events = append(s.recording.Events, e)
}

// A kernel belongs to the step that launched it, whenever it ran; one of another step stays out.
func TestSourceEventsFollowTheirSteps(t *testing.T) {
	src := &source{}
	c, err := Start(Options{Dir: t.TempDir(), StartStep: 2, NumSteps: 2, Sources: []Source{src}})
	require.NoError(t, err)
	defer c.finish("")
	gpu := chrometrace.Track{PID: 2, TID: 7}
	// The source hands over at the end; its events are made while the steps run.
	all := steps(3, 1, decode)
	for _, s := range all {
		src.see(Event{Name: "gemv", Category: "kernel", Track: gpu, Start: s.Launched.Add(time.Millisecond), Length: time.Microsecond,
			Launched: s.Launched.Add(s.LaunchTime / 2), LaunchedFrom: Loop, Flow: s.ID})
	}
	src.recording.Processes = map[int]string{2: "GPU 0"}
	steps(1, 4, decode)
	files, err := c.Result()
	require.NoError(t, err)
	events, _ := read(t, files[0])
	var kernels []float64
	flows := 0
	for _, e := range events {
		if e.Cat == "kernel" {
			kernels = append(kernels, e.Args["step"].(float64))
		}
		if e.Ph == "s" || e.Ph == "f" {
			flows++
		}
	}
	assert.Equal(t, []float64{3}, kernels)
	assert.Equal(t, 2, flows)
}

func TestTwoSinksAtOnce(t *testing.T) {
	other := &counting{}
	AddSink(other)
	defer RemoveSink(other)
	c, err := Start(Options{Dir: t.TempDir(), NumSteps: 3})
	require.NoError(t, err)
	steps(5, 1, decode)
	_, err = c.Result()
	require.NoError(t, err)
	steps(5, 6, decode)
	assert.Equal(t, 10, other.steps)
	assert.Zero(t, other.open)
}

type counting struct{ steps, open int }

func (c *counting) Begin(string, trace.Category, uint64) uint64 { c.open++; return 0 }
func (c *counting) End(string, trace.Category, uint64)          { c.open-- }
func (c *counting) Counter(string, trace.Category, int64)       {}
func (c *counting) SpanBegin(string, trace.Category, uint64)    {}
func (c *counting) SpanEnd(string, trace.Category, uint64)      {}
func (c *counting) Step(trace.Step)                             { c.steps++ }

// A disk that fills up: the error is told, the half-written file is gone, and the next capture works.
func TestDiskFull(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small tmpfs needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", dir).CombinedOutput(); err != nil {
		t.Skipf("cannot mount a tmpfs here: %s", out)
	}
	defer exec.Command("umount", dir).Run()
	c, err := Start(Options{Dir: dir, NumSteps: 400})
	require.NoError(t, err)
	steps(400, 1, decode)
	_, err = c.Result()
	assert.ErrorContains(t, err, "no space left on device")
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
	assert.Nil(t, Running())
}

// onLoop is a source of the engine's thread that notes how many steps had been launched when it was called.
type onLoop struct {
	launched    *int
	began, left int
}

func (o *onLoop) OnLoop()      {}
func (o *onLoop) Start() error { o.began = *o.launched; return nil }
func (o *onLoop) Stop() (Recording, error) {
	o.left = *o.launched
	return Recording{}, nil
}

func TestASourceOfTheLoopsCoversTheChosenSteps(t *testing.T) {
	launched := 0
	s := &onLoop{launched: &launched}
	c, err := Start(Options{Dir: t.TempDir(), StartStep: 10, NumSteps: 4, Sources: []Source{s}})
	require.NoError(t, err)
	steps(20, 1, func(int) (trace.Phase, int) { launched++; return trace.Decode, 1 })
	_, err = c.Result()
	require.NoError(t, err)
	assert.GreaterOrEqual(t, s.began, 8, "not from the start")
	assert.LessOrEqual(t, s.began, 10, "before the first step that is kept")
	assert.GreaterOrEqual(t, s.left, 14, "until the last one was awaited")
	assert.LessOrEqual(t, s.left, 16)
}
