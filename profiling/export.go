package profiling

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// Recording is what a source hands over, on this process's clock.
type Recording struct {
	Events []Event
	// Names gives tracks their names: processes above 1 belong to sources.
	Processes map[int]string
	Threads   map[chrometrace.Track]string
	Meta      map[string]string
}

// Event is one thing a source saw.
type Event struct {
	Name, Category string
	Track          chrometrace.Track
	Start          time.Time
	Length         time.Duration
	Args           []chrometrace.Arg
	// Counter makes it a gauge with Value from Start on.
	Counter bool
	Value   float64
	// Launched is when the host asked for it, and by which track; zero where nobody did. It ties a kernel to its step.
	Launched     time.Time
	LaunchedFrom chrometrace.Track
	Flow         uint64
}

// Tracks of the engine's own process.
const (
	hostPID     = 1
	loopTID     = 1
	stepTID     = 2 // and 3: two steps may be in flight at once
	counterTID  = 4
	requestsTID = 5
	callsTID    = 6
	callersTID  = 7
)

// Loop is the track of the engine's loop.
var Loop = chrometrace.Track{PID: hostPID, TID: loopTID}

var callersTrack = chrometrace.Track{PID: hostPID, TID: callersTID}

// Calls is the track of the loop's calls of a device's driver, from which sources draw arrows. They lie within launches and waits, but
// another clock timed them, so that they get a track of their own.
var Calls = chrometrace.Track{PID: hostPID, TID: callsTID}

// write asks the sources for what they recorded and writes a file for each stage, under a temporary name first. A file that could not
// be written whole is removed.
func (c *Capture) write() (files []string, err error) {
	recordings, err := c.taken, c.sourceErr
	for _, s := range c.started { // nothing is added once the capture has ended
		r, stopErr := s.Stop()
		err = errors.Join(err, stopErr)
		recordings = append(recordings, r)
	}
	for _, st := range c.stages {
		c.kernels = append(c.kernels, join(st.steps, c.ops, recordings)...)
	}
	if len(c.kernels) > 0 {
		recordings = append(recordings, bandwidth(c.kernels))
	}
	if len(c.times) > 0 {
		for _, st := range c.stages {
			recordings = append(recordings, timesRecording(st.steps, c.times))
		}
		if len(c.kernels) == 0 {
			for _, st := range c.stages {
				c.kernels = append(c.kernels, timedKernels(st.steps, c.times)...)
			}
		}
	}
	for i, path := range c.Paths() {
		if len(c.stages[i].steps) == 0 {
			err = errors.Join(err, fmt.Errorf("no step was captured%s: nothing to write for %s", because(c.cut), filepath.Base(path)))
			continue
		}
		if writeErr := whole(path, func(f *os.File) error { return c.writeFile(f, c.stages[i], recordings) }); writeErr != nil {
			err = errors.Join(err, writeErr)
			continue
		}
		files = append(files, path)
	}
	if slices.ContainsFunc(c.kernels, func(k Kernel) bool { return len(k.Stack) > 0 }) {
		path := c.stem() + ".gpu.pb.gz"
		if writeErr := whole(path, func(f *os.File) error { return WritePprof(f, c.kernels) }); writeErr != nil {
			err = errors.Join(err, writeErr)
		} else {
			files = append(files, path)
		}
	}
	return files, err
}

// whole writes a file under a temporary name first; one that could not be written whole is removed.
func whole(path string, write func(*os.File) error) error {
	tmp := path + ".part"
	f, err := os.Create(tmp)
	if err == nil {
		err = errors.Join(write(f), f.Close())
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		os.Remove(tmp)
		return fmt.Errorf("write profile: %w", err)
	}
	return nil
}

func because(why string) string {
	if why == "" {
		return ""
	}
	return " (" + strings.TrimSpace(why) + ")"
}

func (c *Capture) writeFile(f io.Writer, s *stage, recordings []Recording) error {
	w := chrometrace.NewWriter(f)
	w.Meta("steps", fmt.Sprint(len(s.steps)))
	w.Meta("begun", c.begun.UTC().Format(time.RFC3339Nano))
	if c.cut != "" {
		w.Meta("ended_early", c.cut)
	}
	w.Process(hostPID, "tokamak", 0)
	w.Thread(chrometrace.Track{PID: hostPID, TID: loopTID}, "engine loop", 0)
	w.Thread(chrometrace.Track{PID: hostPID, TID: stepTID}, "steps (even)", 1)
	w.Thread(chrometrace.Track{PID: hostPID, TID: stepTID + 1}, "steps (odd)", 2)

	from, to := s.steps[0].Launched, time.Time{}
	for _, m := range s.marks {
		if m.start.Before(from) {
			from = m.start
		}
	}
	at := func(t time.Time) time.Duration { return t.Sub(from) }
	for _, step := range s.steps {
		end := step.WaitStart.Add(step.WaitTime)
		if end.After(to) {
			to = end
		}
		w.Complete(fmt.Sprintf("%s batch=%d tokens=%d", step.Phase, step.Rows, step.Tokens), "step",
			chrometrace.Track{PID: hostPID, TID: stepTID + int(step.ID%2)}, at(step.Launched), end.Sub(step.Launched),
			chrometrace.Arg{Key: "step", Value: step.ID}, chrometrace.Arg{Key: "rows", Value: step.Rows}, chrometrace.Arg{Key: "decode_rows", Value: step.DecodeRows},
			chrometrace.Arg{Key: "tokens", Value: step.Tokens}, chrometrace.Arg{Key: "sampled_tokens", Value: step.SampledTokens}, chrometrace.Arg{Key: "in_flight", Value: step.InFlight})
	}
	slices.SortStableFunc(s.marks, func(a, b mark) int { return a.start.Compare(b.start) })
	for _, m := range s.marks {
		w.Complete(m.name, string(m.category), Loop, at(m.start), m.length, chrometrace.Arg{Key: "step", Value: m.step})
	}
	callers := lanes{w: w, names: map[chrometrace.Track]string{callersTrack: "callers"}}
	slices.SortStableFunc(c.kept.callers, func(a, b mark) int { return a.start.Compare(b.start) })
	for _, m := range c.kept.callers {
		if end := m.start.Add(m.length); !m.start.Before(from) && !end.After(to) {
			w.Complete(m.name, string(m.category), callers.place(callersTrack, m.start, end), at(m.start), m.length)
		}
	}
	for _, sp := range c.kept.spans {
		if start, finish := later(sp.start, from), earlier(sp.finish, to); finish.After(start) {
			w.Async(sp.name, "request", chrometrace.Track{PID: hostPID, TID: requestsTID}, sp.id, at(start), finish.Sub(start), chrometrace.Arg{Key: "request", Value: sp.id})
		}
	}
	for _, v := range c.kept.counters {
		if !v.at.Before(from) && !v.at.After(to.Add(time.Millisecond)) {
			w.Counter(v.name, chrometrace.Track{PID: hostPID, TID: counterTID}, at(v.at), float64(v.value))
		}
	}
	for _, r := range recordings {
		r.write(w, s.steps, from, to)
	}
	return w.Close()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// write adds a source's events that belong to the steps kept: those launched within a step's launch, and those without a launch that lie
// between the first step and the last.
func (r *Recording) write(w *chrometrace.Writer, steps []trace.Step, from, to time.Time) {
	for _, pid := range sortedKeys(r.Processes) {
		w.Process(pid, r.Processes[pid], pid)
	}
	for key, value := range r.Meta {
		w.Meta(key, value)
	}
	lanes := lanes{w: w, names: r.Threads}
	flow := uint64(0)
	for _, e := range r.Events { // in the order of their start
		args := e.Args
		if e.Launched.IsZero() {
			if e.Start.Before(from) || e.Start.After(to) {
				continue
			}
		} else {
			step, ok := stepLaunching(steps, e.Launched)
			if !ok {
				continue
			}
			args = append(args[:len(args):len(args)], chrometrace.Arg{Key: "step", Value: step})
		}
		if e.Counter {
			w.Counter(e.Name, e.Track, e.Start.Sub(from), e.Value)
			continue
		}
		at := lanes.place(e.Track, e.Start, e.Start.Add(e.Length))
		w.Complete(e.Name, e.Category, at, e.Start.Sub(from), e.Length, args...)
		if e.Flow != 0 { // a graph's kernels share a launch, and no two arrows may share a number
			flow++
			w.Flow("launch", "launch", flow, laneOf(e.LaunchedFrom, 0), e.Launched.Sub(from), at, e.Start.Sub(from))
		}
	}
}

// lanes draws a track as several threads where its events overlap: those of one thread must nest or follow each other, and with dependent
// launches a kernel begins before the one ahead of it on its stream has ended.
type lanes struct {
	w     *chrometrace.Writer
	names map[chrometrace.Track]string
	ends  map[chrometrace.Track][]time.Time // of a track: when each lane's last event ends
}

// maxLanes is more than the events that ever overlap on a track.
const maxLanes = 4096

func laneOf(t chrometrace.Track, lane int) chrometrace.Track {
	return chrometrace.Track{PID: t.PID, TID: t.TID*maxLanes + lane}
}

// place gives an event's thread. Events come in the order of their start.
func (l *lanes) place(t chrometrace.Track, start, end time.Time) chrometrace.Track {
	if l.ends == nil {
		l.ends = map[chrometrace.Track][]time.Time{}
	}
	lane := slices.IndexFunc(l.ends[t], func(end time.Time) bool { return !end.After(start) })
	if lane < 0 {
		lane = len(l.ends[t])
		l.ends[t] = append(l.ends[t], end)
		name := l.names[t]
		if name == "" { // Perfetto takes no empty one
			name = fmt.Sprintf("track %d", t.TID)
		}
		if lane > 0 {
			name += fmt.Sprintf(" (overlapping %d)", lane)
		}
		l.w.Thread(laneOf(t, lane), name, laneOf(t, lane).TID)
	}
	l.ends[t][lane] = end
	return laneOf(t, lane)
}

// stepLaunching finds the step during whose launch t lies.
func stepLaunching(steps []trace.Step, t time.Time) (uint64, bool) {
	i, _ := slices.BinarySearchFunc(steps, t, func(s trace.Step, t time.Time) int { return s.Launched.Compare(t) })
	for _, j := range []int{i, i - 1} {
		if j >= 0 && j < len(steps) && !t.Before(steps[j].Launched) && !t.After(steps[j].Launched.Add(steps[j].LaunchTime)) {
			return steps[j].ID, true
		}
	}
	return 0, false
}

func sortedKeys(m map[int]string) []int {
	var keys []int
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
