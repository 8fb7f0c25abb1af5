//go:build cuda

package cuda

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

const (
	stampPlaces = 1 << 19
	stampShift  = 10 // of a time in ns, to its place
	// stampSlack places, 4 ms, are read beyond the newest note and beyond where the device's clock should be, which is known no better than
	// the host was late for the steps so far.
	stampSlack = 1 << 12
)

// clockUnknown stands for an offset that nothing is known of: all of the ring is read.
const clockUnknown time.Duration = math.MinInt64 / 2

// stamp is a note of a kernel: its wait returned at this time, so that the kernel before it had ended. See ptx.cuh.
type stamp struct {
	At   uint64 // ns of the device's global timer
	Unit uint64 // from 1
}

// stamps reads what the kernels note of each step, with no call of the driver: the ring is host memory that the kernels write.
type stamps struct {
	memory *driver.Pinned
	ring   []stamp
	units  map[unit]uint64
	base   time.Time
	plans  map[uint64][]plannedOp // of steps in flight, by the device's number

	last   uint64        // device time of the newest note that was read; 0: nobody asked of late
	offset time.Duration // host time since base less device time: the least seen, which is the device's clock and the quickest answer
	notes  []stamp       // read, in order, and maybe of a later step
	bound  bool          // notes begin with those of the step that is awaited next
}

func newStamps() (*stamps, error) {
	m, err := driver.AllocPinned(stampPlaces * int(unsafe.Sizeof(stamp{})))
	if err != nil {
		return nil, fmt.Errorf("ring of time stamps: %w", err)
	}
	clear(m.Bytes)
	return &stamps{memory: m, ring: view[stamp](m, 0, stampPlaces), units: map[unit]uint64{}, base: time.Now(), plans: map[uint64][]plannedOp{}}, nil
}

func (s *stamps) free() {
	if s != nil {
		s.memory.Free()
	}
}

// attach tells a module that was loaded where to write, and as whom.
func (s *stamps) attach(u unit, m driver.Module) error {
	ring, _, err := m.Global("stamp_ring")
	if err != nil {
		return nil // a kernel that includes no wait
	}
	name, _, err := m.Global("stamp_unit")
	if err != nil {
		return nil
	}
	s.units[u] = uint64(len(s.units) + 1)
	if err := driver.Write(ring, bytesOf([]ptr{s.memory.Device})); err != nil {
		return err
	}
	return driver.Write(name, bytesOf([]uint64{s.units[u]}))
}

// launch notes the plan of a step that is launched next.
func (s *stamps) launch(index uint64, plan []plannedOp) {
	if len(s.plans) == 0 && s.last == 0 && trace.WantTimes() {
		s.read(0)
		s.notes, s.bound, s.offset = s.notes[:0], true, clockUnknown // nothing runs: what follows is this step's
	}
	s.plans[index] = plan
}

// tell gives a profiler, if there is one, the times of a step that was awaited just now. The first step after a profiler came is not told of
// where it was launched before.
func (s *stamps) tell(index uint64) {
	plan := s.plans[index]
	delete(s.plans, index)
	if !trace.WantTimes() || len(plan) == 0 {
		s.forget()
		return
	}
	now, fresh, before := time.Since(s.base), s.last == 0, s.last
	s.read(now)
	mine, later := stepNotes(plan, s.notes, s.bound)
	if !fresh && (len(mine) == 0 || !s.bound && s.last == before) { // the host was later for all steps before, by more than the slack
		s.offset = clockUnknown
		s.read(now)
		mine, later = stepNotes(plan, s.notes, s.bound)
	}
	if fresh && len(s.plans) > 0 {
		// To read all of the ring takes so long that the step behind may have ended, too, and which of both is the latest cannot be told.
		s.offset = time.Since(s.base) - time.Duration(s.last)
		return
	}
	if len(mine) == 0 {
		s.forget()
		return
	}
	if offset := now - time.Duration(mine[len(mine)-1].At); fresh || s.offset == clockUnknown || offset < s.offset {
		s.offset = offset
	}
	s.bound = true
	times := timesOf(plan, mine, func(at uint64) time.Time { return s.base.Add(s.offset + time.Duration(at)) })
	s.notes = slices.Delete(s.notes, 0, len(s.notes)-len(later))
	if len(times) > 0 {
		trace.StepTimes(times)
	}
}

// forget begins anew.
func (s *stamps) forget() { s.last, s.notes, s.bound = 0, s.notes[:0], false }

// read appends to notes what the kernels noted since the last call. now is the host's time since base.
func (s *stamps) read(now time.Duration) {
	first, count := s.last>>stampShift+1, uint64(stampPlaces)
	if until := max(uint64(now-s.offset), s.last); s.last > 0 && (until-s.last)>>stampShift+stampSlack < count {
		count = (until-s.last)>>stampShift + stampSlack
	}
	from, all := len(s.notes), count == stampPlaces
	for i := uint64(0); i < count; i++ {
		p := &s.ring[(first+i)%stampPlaces]
		if at := atomic.LoadUint64(&p.At); at > s.last {
			s.notes = append(s.notes, stamp{at, p.Unit})
			count = min(max(count, i+stampSlack), stampPlaces)
		}
	}
	if all { // the newest note may be anywhere
		slices.SortFunc(s.notes[from:], func(a, b stamp) int { return cmp.Compare(a.At, b.At) })
	}
	if len(s.notes) > from {
		s.last = s.notes[len(s.notes)-1].At
	}
}

// stepNotes finds the notes of a step that has ended among notes, which are in order and may be of steps before and after it: it is a stretch
// that begins with the plan's first kernel and holds its last one, the earliest such or the latest.
func stepNotes(plan []plannedOp, notes []stamp, earliest bool) (mine, later []stamp) {
	first, last := uint64(0), uint64(0)
	for i := range plan {
		if u := plan[i].unit; u != 0 {
			if first == 0 {
				first = u
			}
			last = u
		}
	}
	end := len(notes)
	for at := len(notes) - 1; at >= 0; at-- {
		if notes[at].Unit != first {
			continue
		}
		if slices.ContainsFunc(notes[at:end], func(n stamp) bool { return n.Unit == last }) {
			mine, later = notes[at:end], notes[end:]
			if !earliest {
				return mine, later
			}
		}
		end = at
	}
	if mine == nil {
		return nil, notes
	}
	return mine, later
}

// timesOf joins a step's plan with its notes. An operation lasts until the next one that notes its beginning, and what cannot be told from
// it is joined to it. The end of the last one nobody notes, so that it is left out.
func timesOf(plan []plannedOp, notes []stamp, host func(uint64) time.Time) []trace.Time {
	var times []trace.Time
	next := 0 // operation
	for _, n := range notes {
		at := next
		for at < len(plan) && plan[at].unit != n.Unit {
			at++
		}
		if at == len(plan) {
			continue // noted twice, or by a kernel that is in no plan
		}
		for ; next < at; next++ { // these noted nothing: a library's
			if len(times) > 0 {
				t := &times[len(times)-1]
				t.Name, t.Bytes, t.FLOPs = t.Name+"+"+plan[next].op.Name, t.Bytes+plan[next].op.Bytes, t.FLOPs+plan[next].op.FLOPs
			}
		}
		if len(times) > 0 {
			t := &times[len(times)-1]
			t.Length = host(n.At).Sub(t.Start)
		}
		o := &plan[at].op
		times = append(times, trace.Time{Name: o.Name, Layer: o.Layer, Start: host(n.At), Bytes: o.Bytes, FLOPs: o.FLOPs, FP8: o.FP8})
		next = at + 1
	}
	if len(times) > 0 {
		times = times[:len(times)-1]
	}
	return times
}
