// Package telemetry samples a GPU while something runs: power, energy, clocks, temperature, memory, and why clocks were held down.
// Where there is no sensor — no GPU, no driver, a build without cgo — readings are absent, never 0.
package telemetry

import (
	"errors"
	"math"
	"slices"
	"sync"
	"time"
)

// ErrNoSensor is returned by Open where nothing can be read.
var ErrNoSensor = errors.New("no GPU sensor: it needs a build with -tags cuda, a driver and a card")

// Reading is one moment's sample of one card.
type Reading struct {
	At          time.Time
	Watts       float64
	Joules      float64 // drawn since the driver was loaded
	SMMHz       float64
	MemoryMHz   float64
	Celsius     float64
	MemoryUsed  uint64 // bytes
	Utilisation float64
	// Throttle holds the reasons, in words, that hold clocks down now; empty if none does. The power cap under load is told apart: see Summary.
	Throttle []string
}

// Sensor reads one card.
type Sensor interface {
	Read() (Reading, error)
	Close() error
}

// Summary is what readings over a time come to. A field is nil where nothing was read.
type Summary struct {
	Samples                          int
	Watts, SMMHz, MemoryMHz, Celsius *float64 // medians; Celsius: the highest
	MinSMMHz                         *float64
	Joules                           *float64 // drawn over the time
	// Throttled lists reasons that make a measurement unfit: heat, hardware slowdown, power brake.
	Throttled []string
	// ThrottledShare is the share of samples that have one of these.
	ThrottledShare float64
	// PowerCapped is the share of samples at which the software power cap held the clocks down: how a card behaves under full load.
	PowerCapped float64
}

// Recorder samples a sensor on a goroutine of its own.
type Recorder struct {
	sensor   Sensor
	stop     chan struct{}
	done     sync.WaitGroup
	mu       sync.Mutex
	readings []Reading
	err      error
}

// Interval is the default time between samples: 20 a second.
const Interval = 50 * time.Millisecond

// maxReadings bounds a recorder: an hour at the default interval.
const maxReadings = 72_000

// Record begins sampling; 0 takes the default interval.
func Record(s Sensor, every time.Duration) *Recorder {
	if every <= 0 {
		every = Interval
	}
	r := &Recorder{sensor: s, stop: make(chan struct{})}
	r.sample()
	r.done.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-r.stop:
				r.sample()
				return
			case <-tick.C:
				r.sample()
			}
		}
	})
	return r
}

func (r *Recorder) sample() {
	reading, err := r.sensor.Read()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.err = err
		return
	}
	if len(r.readings) < maxReadings {
		r.readings = append(r.readings, reading)
	}
}

// Stop ends sampling and returns the readings, oldest first. The sensor stays open. The error is the last failed reading's.
func (r *Recorder) Stop() ([]Reading, error) {
	close(r.stop)
	r.done.Wait()
	return r.readings, r.err
}

// Reasons that make a measurement unfit, and the one that does not.
const (
	PowerCap         = "power cap"
	ThermalSoftware  = "thermal (software)"
	ThermalHardware  = "thermal (hardware)"
	HardwareSlowdown = "hardware slowdown"
	PowerBrake       = "power brake"
)

// Summarise sums readings up.
func Summarise(readings []Reading) Summary {
	s := Summary{Samples: len(readings)}
	if len(readings) == 0 {
		return s
	}
	median := func(of func(Reading) float64) *float64 {
		values := make([]float64, len(readings))
		for i, r := range readings {
			values[i] = of(r)
		}
		slices.Sort(values)
		return &values[len(values)/2]
	}
	s.Watts = median(func(r Reading) float64 { return r.Watts })
	s.SMMHz = median(func(r Reading) float64 { return r.SMMHz })
	s.MemoryMHz = median(func(r Reading) float64 { return r.MemoryMHz })
	hottest, slowest, capped, throttled := 0.0, math.Inf(1), 0, 0
	for _, r := range readings {
		hottest, slowest = max(hottest, r.Celsius), min(slowest, r.SMMHz)
		unfit := false
		for _, why := range r.Throttle {
			if why == PowerCap {
				capped++
				continue
			}
			unfit = true
			if !slices.Contains(s.Throttled, why) {
				s.Throttled = append(s.Throttled, why)
			}
		}
		if unfit {
			throttled++
		}
	}
	s.ThrottledShare = float64(throttled) / float64(len(readings))
	s.Celsius, s.MinSMMHz = &hottest, &slowest
	joules := readings[len(readings)-1].Joules - readings[0].Joules
	s.Joules = &joules
	s.PowerCapped = float64(capped) / float64(len(readings))
	return s
}
