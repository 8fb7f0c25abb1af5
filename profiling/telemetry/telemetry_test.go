package telemetry

import (
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// scripted is a card whose readings are written down.
type scripted struct {
	mu    sync.Mutex
	reads int
	fail  bool
}

func (s *scripted) Read() (Reading, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reads++
	if s.fail {
		return Reading{}, errors.New("the card has gone")
	}
	r := Reading{At: time.Now(), Watts: 600, Joules: 1000 + 30*float64(s.reads), SMMHz: 1980, Celsius: 60}
	if s.reads > 2 {
		r.SMMHz, r.Throttle = 1400, []string{PowerCap}
	}
	if s.reads == 4 {
		r.Celsius, r.Throttle = 88, []string{PowerCap, ThermalSoftware}
	}
	return r, nil
}
func (s *scripted) Close() error { return nil }

func TestRecorder(t *testing.T) {
	sensor := &scripted{}
	r := Record(sensor, time.Millisecond)
	require.Eventually(t, func() bool { sensor.mu.Lock(); defer sensor.mu.Unlock(); return sensor.reads >= 8 }, 5*time.Second, time.Millisecond)
	readings, err := r.Stop()
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(readings), 8)
	s := Summarise(readings)
	assert.Equal(t, len(readings), s.Samples)
	assert.Equal(t, 88.0, *s.Celsius)
	assert.Equal(t, 1400.0, *s.MinSMMHz)
	assert.Equal(t, 30*float64(len(readings)-1), *s.Joules)
	assert.Equal(t, []string{ThermalSoftware}, s.Throttled, "the power cap alone is no fault")
	assert.InDelta(t, float64(len(readings)-2)/float64(len(readings)), s.PowerCapped, 1e-9)
}

func TestAFailingSensor(t *testing.T) {
	readings, err := Record(&scripted{fail: true}, time.Millisecond).Stop()
	assert.ErrorContains(t, err, "the card has gone")
	s := Summarise(readings)
	assert.Nil(t, s.Watts, "absent, not zero")
	assert.Nil(t, s.Joules)
}

func TestNoCard(t *testing.T) {
	s, err := Open(0)
	if err == nil { // there is one
		defer s.Close()
		r, err := s.Read()
		require.NoError(t, err)
		assert.Positive(t, r.Watts)
		return
	}
	assert.ErrorIs(t, err, ErrNoSensor)
}
