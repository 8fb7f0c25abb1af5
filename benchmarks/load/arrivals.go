package load

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Arrivals is a process that says when requests arrive. The same values give the same schedule on every machine, so that two
// servers can be offered the very same traffic.
type Arrivals struct {
	// Rate is in requests a second; +Inf has all arrive at once.
	Rate float64
	// Burstiness is the shape of the gamma distribution that gaps are drawn from, with mean 1/Rate: 1 is a Poisson process,
	// less is burstier, +Inf is a constant gap.
	Burstiness float64
	// Ramp, if not none, changes the rate over the run from StartRate to EndRate; Rate is then not used.
	Ramp               Ramp
	StartRate, EndRate float64
	// Trace, if set, holds the arrival times themselves, ascending.
	Trace []time.Duration
	Seed  uint64
}

// Ramp is the way a rate changes over a run.
type Ramp string

const (
	RampNone        Ramp = ""
	RampLinear      Ramp = "linear"
	RampExponential Ramp = "exponential"
)

// Schedule gives n arrival times from the start of the run, ascending. The first request arrives at 0.
func (a *Arrivals) Schedule(n int) ([]time.Duration, error) {
	if a.Trace != nil {
		return a.trace(n)
	}
	rates := []float64{a.Rate}
	if a.Ramp != RampNone {
		rates = []float64{a.StartRate, a.EndRate}
	}
	for _, rate := range rates {
		if !(rate > 0) {
			return nil, fmt.Errorf("request rate %v: want more than 0, or inf", rate)
		}
		if a.Ramp != RampNone && math.IsInf(rate, 0) {
			return nil, fmt.Errorf("a ramp needs two finite rates, have %v", rate)
		}
	}
	if !(a.Burstiness > 0) {
		return nil, fmt.Errorf("burstiness %v: want more than 0; 1 is Poisson, inf is constant", a.Burstiness)
	}
	rng := rand.New(rand.NewPCG(a.Seed, 0x6172726976616c73))
	schedule := make([]time.Duration, n)
	seconds := 0.0
	for i := 1; i < n; i++ {
		rate := a.rateAt(float64(i) / float64(n))
		if !math.IsInf(rate, 0) {
			seconds += gap(rng, a.Burstiness) / rate
		}
		if seconds > math.MaxInt64/1e9/2 {
			return nil, fmt.Errorf("request %d would arrive after %.0f s: raise the rate", i, seconds)
		}
		schedule[i] = time.Duration(seconds * float64(time.Second))
	}
	return schedule, nil
}

// rateAt is the rate when part, 0 to 1, of the requests has arrived.
func (a *Arrivals) rateAt(part float64) float64 {
	switch a.Ramp {
	case RampLinear:
		return a.StartRate + (a.EndRate-a.StartRate)*part
	case RampExponential:
		return a.StartRate * math.Pow(a.EndRate/a.StartRate, part)
	default:
		return a.Rate
	}
}

func (a *Arrivals) trace(n int) ([]time.Duration, error) {
	if len(a.Trace) < n {
		return nil, fmt.Errorf("trace has %d arrival times for %d requests", len(a.Trace), n)
	}
	for i, at := range a.Trace[:n] {
		if at < 0 || (i > 0 && at < a.Trace[i-1]) {
			return nil, fmt.Errorf("trace: arrival %d at %v is before the one ahead of it", i, at)
		}
	}
	return a.Trace[:n:n], nil
}

// gap draws from a gamma distribution of the given shape and mean 1.
func gap(rng *rand.Rand, shape float64) float64 {
	switch {
	case math.IsInf(shape, 1):
		return 1
	case shape == 1:
		return rng.ExpFloat64()
	case shape < 1: // Gamma(k) = Gamma(k+1) * U^(1/k)
		return gamma(rng, shape+1) * math.Pow(1-rng.Float64(), 1/shape) / shape
	default:
		return gamma(rng, shape) / shape
	}
}

// gamma draws from Gamma(shape, 1), shape >= 1: Marsaglia and Tsang, "A Simple Method for Generating Gamma Variables" (2000).
func gamma(rng *rand.Rand, shape float64) float64 {
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := rng.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-rng.Float64()) < 0.5*x*x+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}
