//go:build cuda

package cuda

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/kernels"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// aPlan is two layers of a small step: unit 2 is in every layer, unit 0 a library's product.
func aPlan() []plannedOp {
	o := func(name string, layer int, unit uint64) plannedOp {
		return plannedOp{op: trace.Op{Name: name, Layer: layer, Bytes: 10, FLOPs: 3}, unit: unit}
	}
	return []plannedOp{o("advance", -1, 1), o("norm", 0, 2), o("gemm", 0, 0), o("attention", 0, 3), o("norm", 1, 2), o("gemm", 1, 0), o("attention", 1, 3), o("publish", -1, 4)}
}

// ofStep are the notes of such a step that begins at the time given.
func ofStep(at uint64) []stamp {
	return []stamp{{at, 1}, {at + 3000, 2}, {at + 20000, 3}, {at + 25000, 2}, {at + 40000, 3}, {at + 46000, 4}}
}

// testStamps has a ring in ordinary memory.
func testStamps() *stamps {
	return &stamps{ring: make([]stamp, stampPlaces), base: time.Now(), plans: map[uint64][]plannedOp{}}
}

func (s *stamps) note(notes ...stamp) {
	for _, n := range notes {
		s.ring[n.At>>stampShift%stampPlaces] = n
	}
}

// reach waits until the host's clock is as far as the device's.
func (s *stamps) reach(at uint64) {
	for time.Since(s.base) < time.Duration(at-origin) {
	}
}

const origin = 1_790_000_000_000_000_000 // a device's clock counts from somewhere

func TestTimesOfSteps(t *testing.T) {
	s := testStamps()
	n := &noted{}
	steps := n.during(t, func() {
		s.note(ofStep(origin - 600_000_000)...) // a lap ago, and of nobody's interest
		s.note(ofStep(origin + 100_000)...)
		s.note(ofStep(origin + 150_000)[:3]...) // the next one is under way
		for i := range uint64(4) {
			s.plans[i] = aPlan()
		}
		s.reach(origin + 200_000)
		s.tell(0)
		s.note(ofStep(origin + 150_000)...)
		s.reach(origin + 250_000)
		s.tell(1)
		lap := uint64(stampPlaces << stampShift)
		s.note(ofStep(origin + 3*lap - 20_000)...)   // over the ring's end, after a pause longer than a lap
		s.base = s.base.Add(-time.Duration(3 * lap)) // so much later
		s.reach(origin + 100_000)
		s.tell(2)
	})
	require.Len(t, steps, 3)
	for i, times := range steps {
		var names []string
		for _, at := range times {
			names = append(names, at.Name)
		}
		require.Equal(t, []string{"advance", "norm+gemm", "attention", "norm+gemm", "attention"}, names, "step %d", i)
		assert.Equal(t, []int{-1, 0, 0, 1, 1}, []int{times[0].Layer, times[1].Layer, times[2].Layer, times[3].Layer, times[4].Layer})
		assert.Equal(t, 17*time.Microsecond, times[1].Length)
		assert.Equal(t, 6*time.Microsecond, times[4].Length)
		assert.EqualValues(t, 20, times[1].Bytes)
		assert.EqualValues(t, 6, times[1].FLOPs)
	}
	assert.Equal(t, 50*time.Microsecond, steps[1][0].Start.Sub(steps[0][0].Start))
	assert.Empty(t, s.notes)
}

// TestAnAnswerThatIsQuickerThanTheFirst holds that a step is not lost because the host came late to the ones before it, which is all it has
// to tell the device's clock by.
func TestAnAnswerThatIsQuickerThanTheFirst(t *testing.T) {
	s := testStamps()
	steps := new(noted).during(t, func() {
		for i := range uint64(3) {
			at := origin + 1000_000*(i+1)
			s.note(ofStep(at)...)
			s.plans[i] = aPlan()
			s.reach(at + 46_000)
			if i == 0 {
				s.reach(at + 246_000)
			}
			s.tell(i)
		}
	})
	assert.Len(t, steps, 3)
}

func TestNotesThatAreMissing(t *testing.T) {
	at := func(ns uint64) time.Time { return time.Unix(0, int64(ns)) }
	plan, notes := aPlan(), ofStep(1000)
	notes = append(notes[:2:2], notes[3:]...) // the first layer's attention
	notes = append(notes, stamp{50_000, 9})   // and one of a kernel that nobody planned
	times := timesOf(plan, notes, at)
	require.Len(t, times, 4)
	assert.Equal(t, "norm+gemm+attention", times[1].Name)
	assert.Equal(t, 22*time.Microsecond, times[1].Length)
	assert.Equal(t, "norm+gemm", times[2].Name)
	assert.Equal(t, 1, times[2].Layer)

	_, later := stepNotes(plan, ofStep(0)[:4]) // its end has not come
	assert.Len(t, later, 4)
	assert.Empty(t, timesOf(plan, nil, at))
}

func TestWithoutAProfilerNothingIsRead(t *testing.T) {
	s := testStamps()
	s.plans[0] = aPlan()
	s.note(ofStep(origin)...)
	s.tell(0)
	assert.Empty(t, s.notes)
	assert.Zero(t, s.last)
	assert.Empty(t, s.plans)
}

// TestStampedKernelsCompile holds that every kernel of a model compiles with stamps, and that a module says where they go if it waits.
func TestStampedKernelsCompile(t *testing.T) {
	if _, err := driver.OpenCompiler(); err != nil {
		t.Skipf("no compiler: %v", err)
	}
	d, s := testDevices["sm_90"], testShapes()["smollm2-135m"]
	c := newCompiler(d, s, nil)
	c.defines = append(c.defines, "STAMPS=1")
	units := allUnits(d, s)
	code, err := c.all(units, nil)
	require.NoError(t, err)
	for _, u := range units {
		source, err := kernels.Source(u.File)
		require.NoError(t, err)
		if strings.Contains(source, "PDL_WAIT()") {
			assert.Contains(t, string(code[u]), "stamp_ring", u)
			assert.Contains(t, string(code[u]), "stamp_unit", u)
		}
	}
}
