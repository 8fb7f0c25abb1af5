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
	steps := new(noted).during(t, func() {
		const step = 5_000_000
		s.note(ofStep(origin - 600_000_000)...) // a lap ago, and of nobody's interest
		for i := range uint64(4) {              // each is awaited when the one behind it is under way
			at := origin + step*(i+1)
			s.plans[i], s.plans[i+1] = aPlan(), aPlan()
			s.note(ofStep(at)...)
			s.note(ofStep(at + 50_000)[:3]...)
			s.reach(at + 60_000)
			s.tell(i)
		}
		lap := uint64(stampPlaces << stampShift)
		s.note(ofStep(origin + 3*lap - 20_000)...)   // over the ring's end, after a pause longer than a lap
		s.base = s.base.Add(-time.Duration(3 * lap)) // so much later
		s.reach(origin + 30_000)
		s.tell(4)
	})
	require.Len(t, steps, 4, "all but the first")
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
	assert.Empty(t, s.notes)
}

// TestTheFirstStepAfterAPause holds that a step is told of that was launched into a capture while nothing ran, even where the one behind it has
// ended, too, before it is read.
func TestTheFirstStepAfterAPause(t *testing.T) {
	s := testStamps()
	s.note(ofStep(origin - 300_000_000)...)
	steps := new(noted).during(t, func() {
		s.launch(0, aPlan())
		s.launch(1, aPlan())
		s.note(ofStep(origin + 50_000)...)
		s.note(ofStep(origin + 100_000)[:2]...)
		s.note(ofStep(origin + 130_000)[2:]...) // its first layer takes longer
		s.reach(origin + 180_000)
		s.tell(0)
		s.launch(2, aPlan())
		s.tell(1)
	})
	require.Len(t, steps, 2)
	assert.Equal(t, 17*time.Microsecond, steps[0][1].Length)
	assert.Equal(t, 47*time.Microsecond, steps[1][1].Length)
}

// TestAStepAlone holds that the first step is told of where none was launched behind it, and that a host that comes late to a step loses
// neither it nor those after it: the device's clock is known by nothing else.
func TestAStepAlone(t *testing.T) {
	s := testStamps()
	steps := new(noted).during(t, func() {
		for i, late := range []uint64{20_000_000, 0, 0} {
			at := origin + 30_000_000*uint64(i+1)
			s.note(ofStep(at)...)
			s.plans[uint64(i)] = aPlan()
			s.reach(at + 46_000 + late)
			s.tell(uint64(i))
		}
	})
	require.Len(t, steps, 3)
	// Drawn as long after its note as the host was quick at best: nearer to the truth step by step.
	for i, times := range steps {
		drawn := times[0].Start.Sub(s.base) - time.Duration(30_000_000*(i+1))
		assert.GreaterOrEqual(t, drawn, time.Duration(0), "no note is read before it was made")
	}
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

	_, later := stepNotes(plan, ofStep(0)[:4], false) // its end has not come
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
