package load

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Objectives are the service levels a request must meet to count as good: milliseconds by metric.
type Objectives map[string]float64

// objectiveMetrics are the metrics that can be bounded, in vLLM's words.
var objectiveMetrics = []string{"ttft", "tpot", "e2el"}

// ParseObjectives reads "ttft:200" and the like; several may be separated by commas or spaces.
func ParseObjectives(values []string) (Objectives, error) {
	o := Objectives{}
	for _, value := range values {
		for _, part := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' }) {
			name, limit, _ := strings.Cut(part, ":")
			known := false
			for _, metric := range objectiveMetrics {
				known = known || metric == name
			}
			ms, err := strconv.ParseFloat(limit, 64)
			if !known || err != nil || !(ms > 0) {
				return nil, fmt.Errorf("goodput %q: want METRIC:MILLISECONDS, METRIC one of %s", part, strings.Join(objectiveMetrics, ", "))
			}
			if _, twice := o[name]; twice {
				return nil, fmt.Errorf("goodput %q: %s is bounded twice", part, name)
			}
			o[name] = ms
		}
	}
	return o, nil
}

// met tells whether a request that succeeded is good. A metric that the request does not have, such as the TPOT of one token,
// cannot be missed.
func (o Objectives) met(r *Result) bool {
	within := func(name string, d time.Duration, has bool) bool {
		limit, bounded := o[name]
		return !bounded || !has || float64(d)/float64(time.Millisecond) <= limit
	}
	ttft, hasTTFT := r.TTFT()
	tpot, hasTPOT := r.TPOT()
	return within("ttft", ttft, hasTTFT) && within("tpot", tpot, hasTPOT) && within("e2el", r.E2E(), true)
}

// Share is the part of all requests, failed ones included, that met the objectives.
func (s *Summary) Share() (float64, bool) {
	if s.Good == nil || s.Completed+s.Failed() == 0 {
		return 0, false
	}
	return float64(*s.Good) / float64(s.Completed+s.Failed()), true
}

// Limits say how far a run may be distorted by its own client.
type Limits struct {
	// Lag is how late the 99th percentile of requests may be sent. Up to LagPart of the median latency is taken, too: a client
	// that is 20 ms late does not spoil a measurement of ten seconds.
	Lag     time.Duration
	LagPart float64
	// CPU is the part of the machine's processors that the client may take, 0 to 1.
	CPU float64
}

// Check returns an error in words if the client was the bottleneck.
func (l Limits) Check(s *Summary) error {
	if limit := max(l.Lag, time.Duration(l.LagPart*float64(s.E2E.P50))); s.E2E.N > 0 && s.Lag.P99 > limit {
		return fmt.Errorf("invalid run: the client itself sent 1 %% of requests more than %v late (limit %v): "+
			"lower --request-rate, or run the client on a machine with idle processors", s.Lag.P99.Round(10*time.Microsecond), limit)
	}
	if s.ClientCPU != nil && *s.ClientCPU > l.CPU {
		return fmt.Errorf("invalid run: the client took %.0f %% of all processors (limit %.0f %%): it was the bottleneck, not the server",
			100**s.ClientCPU, 100*l.CPU)
	}
	return nil
}
