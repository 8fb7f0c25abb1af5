package load

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestScheduleGaps(t *testing.T) {
	const n = 40000
	for _, shape := range []float64{0.25, 1, 4, math.Inf(1)} {
		a := Arrivals{Rate: 50, Burstiness: shape, Seed: 3}
		schedule, err := a.Schedule(n)
		require.NoError(t, err)
		require.Zero(t, schedule[0])
		var sum, squares float64
		for i := 1; i < n; i++ {
			gap := (schedule[i] - schedule[i-1]).Seconds()
			require.GreaterOrEqual(t, gap, 0.0)
			sum += gap
			squares += gap * gap
		}
		mean := sum / (n - 1)
		cv2 := squares/(n-1)/(mean*mean) - 1
		// A gamma distribution's squared coefficient of variation is 1/shape. Five standard errors of the mean of n draws.
		assert.InEpsilon(t, 1.0/50, mean, 5/math.Sqrt(shape*n)+1e-6, "mean gap, shape %v", shape)
		assert.InDelta(t, 1/shape, cv2, 0.1/shape+1e-4, "squared variation, shape %v", shape)
	}
}

func TestScheduleRepeats(t *testing.T) {
	a := Arrivals{Rate: 10, Burstiness: 1, Seed: 1}
	one, err := a.Schedule(100)
	require.NoError(t, err)
	two, err := a.Schedule(100)
	require.NoError(t, err)
	assert.Equal(t, one, two)
	a.Seed = 2
	other, err := a.Schedule(100)
	require.NoError(t, err)
	assert.NotEqual(t, one, other)
}

func TestScheduleAtOnce(t *testing.T) {
	a := Arrivals{Rate: math.Inf(1), Burstiness: 1}
	schedule, err := a.Schedule(5)
	require.NoError(t, err)
	assert.Equal(t, make([]time.Duration, 5), schedule)
}

func TestScheduleRamp(t *testing.T) {
	for _, ramp := range []Ramp{RampLinear, RampExponential} {
		a := Arrivals{Burstiness: math.Inf(1), Ramp: ramp, StartRate: 1, EndRate: 100}
		schedule, err := a.Schedule(1000)
		require.NoError(t, err)
		assert.InDelta(t, 1, (schedule[1] - schedule[0]).Seconds(), 0.15, "first gap, %s", ramp)
		assert.InDelta(t, 0.01, (schedule[999] - schedule[998]).Seconds(), 0.001, "last gap, %s", ramp)
	}
}

func TestScheduleTrace(t *testing.T) {
	a := Arrivals{Trace: []time.Duration{0, 5, 7}}
	schedule, err := a.Schedule(2)
	require.NoError(t, err)
	assert.Equal(t, []time.Duration{0, 5}, schedule)
	_, err = a.Schedule(4)
	require.ErrorContains(t, err, "trace has 3 arrival times for 4 requests")
	a.Trace[2] = 1
	_, err = a.Schedule(3)
	require.ErrorContains(t, err, "arrival 2")
}

func TestScheduleRefuses(t *testing.T) {
	for _, a := range []Arrivals{
		{Rate: 0, Burstiness: 1}, {Rate: -1, Burstiness: 1}, {Rate: math.NaN(), Burstiness: 1}, {Rate: 1},
		{Rate: 1, Burstiness: math.NaN()}, {Ramp: RampLinear, StartRate: 1, Burstiness: 1},
		{Ramp: RampLinear, StartRate: 1, EndRate: math.Inf(1), Burstiness: 1}, {Rate: 1e-300, Burstiness: 1},
	} {
		_, err := a.Schedule(10)
		assert.Error(t, err, "%+v", a)
	}
}
