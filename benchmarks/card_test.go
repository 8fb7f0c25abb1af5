package benchmarks

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/tokamak-engine/tokamak/profiling/telemetry"
)

// cardMetrics are absent where there is no sensor, and where a run is too short for one.
var cardMetrics = []metric{
	{"J/tok", "lower", "energy that the card drew over the run, for each output token"},
	{"throttled-pct", "lower", "samples at which heat, a hardware slowdown or the power brake held the clocks down; absent if there were none"},
}

// shortestEnergy is the time below which a card's energy counter, renewed some ten times a second, says little.
const shortestEnergy = 500 * time.Millisecond

// cardMeter samples the card while a run is measured. The zero cardMeter has no card.
type cardMeter struct {
	sensor   telemetry.Sensor
	recorder *telemetry.Recorder
}

// cardRun is what was sampled in one run.
type cardRun struct {
	readings []telemetry.Reading
	tokens   int // that it gave
}

// theSensor reads the first card; nil if there is none.
var theSensor = sync.OnceValue(func() telemetry.Sensor {
	s, err := telemetry.Open(0)
	if err != nil {
		if !errors.Is(err, telemetry.ErrNoSensor) {
			term.note("telemetry: %v", err)
		}
		return nil
	}
	return s
})

// newCardMeter is given true where the engine runs on this machine's card.
func newCardMeter(onCard bool) *cardMeter {
	if !onCard {
		return &cardMeter{}
	}
	return &cardMeter{sensor: theSensor()}
}

func (m *cardMeter) start() {
	if m.sensor != nil {
		m.recorder = telemetry.Record(m.sensor, 0)
	}
}

// stop ends what start began: a run that gave so many output tokens.
func (m *cardMeter) stop(tokens int) cardRun {
	if m.recorder == nil {
		return cardRun{}
	}
	readings, err := m.recorder.Stop()
	m.recorder = nil
	if err != nil {
		term.note("telemetry: %v", err)
	}
	return cardRun{readings, tokens}
}

// cardFigures are those of a row that was measured in runs, and tell the rest on stderr.
func cardFigures(row string, runs []cardRun) []figure {
	var all []telemetry.Reading
	joules, tokens := 0.0, 0
	for _, r := range runs {
		all = append(all, r.readings...)
		if n := len(r.readings); n > 1 && r.readings[n-1].At.Sub(r.readings[0].At) >= shortestEnergy {
			joules += r.readings[n-1].Joules - r.readings[0].Joules
			tokens += r.tokens
		}
	}
	if len(all) == 0 {
		return nil
	}
	s := telemetry.Summarise(all)
	var figures []figure
	text := fmt.Sprintf("card in %d samples: %.0f W, SM %.0f MHz (at least %.0f), memory %.0f MHz, at most %.0f C, %.1f GiB in use, %.0f %% at the power cap", s.Samples, *s.Watts,
		*s.SMMHz, *s.MinSMMHz, *s.MemoryMHz, *s.Celsius, float64(all[len(all)-1].MemoryUsed)/(1<<30), 100*s.PowerCapped)
	if tokens > 0 {
		perToken := joules / float64(tokens)
		figures = append(figures, figure{"J/tok", perToken})
		text += fmt.Sprintf(", %.3g J a token", perToken)
	}
	if s.ThrottledShare > 0 {
		figures = append(figures, figure{"throttled-pct", 100 * s.ThrottledShare})
		text += ", THROTTLED: " + strings.Join(s.Throttled, ", ")
	}
	term.note("%s: %s", row, text)
	return figures
}

// heated is a card that draws 100 W and gets too hot.
type heated struct{ began time.Time }

func (h heated) Read() (telemetry.Reading, error) {
	r := telemetry.Reading{At: time.Now(), Watts: 100, Joules: 100 * time.Since(h.began).Seconds(), SMMHz: 1000}
	if time.Since(h.began) > shortestEnergy/2 {
		r.Throttle = []string{telemetry.ThermalHardware, telemetry.PowerCap}
	}
	return r, nil
}
func (heated) Close() error { return nil }

func TestCardFigures(t *testing.T) {
	run := func(m *cardMeter, long time.Duration) cardRun {
		m.start()
		time.Sleep(long)
		return m.stop(10)
	}
	figures := map[string]float64{}
	for _, f := range cardFigures("row", []cardRun{run(&cardMeter{sensor: heated{time.Now()}}, shortestEnergy+50*time.Millisecond)}) {
		figures[f.unit] = f.value
	}
	assert.InDelta(t, 5.5, figures["J/tok"], 2)
	assert.InDelta(t, 50, figures["throttled-pct"], 25, "it says so")
	assert.Empty(t, cardFigures("row", []cardRun{run(&cardMeter{sensor: heated{time.Now()}}, 0)}), "too short: absent")
	assert.Empty(t, cardFigures("row", []cardRun{run(newCardMeter(false), 0)}), "no sensor: absent")
}
