package metrics

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Outcomes of requests: the values of the label "outcome" of tokamak_requests_total.
const (
	OutcomeOK           = "ok"
	OutcomeInvalid      = "invalid"      // 4xx: the client's fault
	OutcomeRejected     = "rejected"     // 429: queue full
	OutcomeUnavailable  = "unavailable"  // 503: loading, draining, backend failed
	OutcomeTimeout      = "timeout"      // its deadline passed
	OutcomeDisconnected = "disconnected" // the client left
	OutcomeSlowReader   = "slow_reader"  // cut off
	OutcomeAborted      = "aborted"      // by /abort_request
	OutcomeFailed       = "failed"       // 500
)

var outcomes = []string{OutcomeOK, OutcomeInvalid, OutcomeRejected, OutcomeUnavailable, OutcomeTimeout, OutcomeDisconnected,
	OutcomeSlowReader, OutcomeAborted, OutcomeFailed}

// Metrics is what one server counts. All methods may be called by many goroutines at once.
type Metrics struct {
	gatherer prometheus.Gatherer

	requests *prometheus.CounterVec // outcome
	ttft     prometheus.Histogram
	itl      prometheus.Histogram
	tpot     prometheus.Histogram
	e2e      prometheus.Histogram
	queue    prometheus.Histogram
	prompt   prometheus.Histogram
	output   prometheus.Histogram
}

// Options says how metrics are labelled.
type Options struct {
	ModelName string // label model_name of every series
	// Aliases adds the names of another engine: "vllm", "sglang" or "" for none.
	Aliases string
	// Engine returns the engine's state; it is called once a scrape. While it is nil, or its ok is false, engine series are absent.
	Engine func() (e Engine, ok bool)
}

// New returns metrics on a registry of their own.
func New(o Options) *Metrics {
	m := &Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tokamak_requests_total",
			Help: "Generation requests that ended, by outcome."}, []string{"outcome"}),
		ttft: histogram("tokamak_ttft_seconds", "Time from a request's arrival to its first token.",
			.001, .0025, .005, .01, .02, .04, .06, .08, .1, .15, .2, .3, .4, .6, .8, 1, 1.5, 2.5, 5, 10, 20, 40, 80, 160),
		itl: histogram("tokamak_itl_seconds", "Time between two tokens of a request, each token counted.",
			.0005, .001, .002, .003, .004, .005, .006, .008, .01, .015, .02, .025, .03, .04, .05, .075, .1, .2, .4, .8, 1.6, 5),
		tpot: histogram("tokamak_tpot_seconds", "Mean time per output token of a request, the first token left out.",
			.0005, .001, .002, .003, .004, .005, .006, .008, .01, .015, .02, .025, .03, .04, .05, .075, .1, .2, .4, .8, 1.6, 5),
		e2e: histogram("tokamak_e2e_seconds", "Time from a request's arrival to its last token.",
			.01, .025, .05, .1, .2, .4, .8, 1.5, 2.5, 5, 10, 15, 20, 30, 40, 60, 120, 240, 480, 960, 1920),
		queue: histogram("tokamak_queue_seconds", "Time a request waited before its first step.",
			.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 20, 40, 80, 160),
		prompt: histogram("tokamak_request_prompt_tokens", "Prompt tokens of a request.", tokenBuckets...),
		output: histogram("tokamak_request_generation_tokens", "Output tokens of a request.", tokenBuckets...),
	}
	for _, outcome := range outcomes {
		m.requests.WithLabelValues(outcome)
	}
	registry := prometheus.NewRegistry()
	own := prometheus.WrapRegistererWith(prometheus.Labels{"model_name": o.ModelName}, registry)
	own.MustRegister(m.requests, m.ttft, m.itl, m.tpot, m.e2e, m.queue, m.prompt, m.output)
	if o.Engine != nil {
		own.MustRegister(&engineCollector{o.Engine})
	}
	registry.MustRegister(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics()))
	m.gatherer = registry
	if table := aliases[o.Aliases]; table != nil {
		m.gatherer = &aliasGatherer{registry, table}
	}
	return m
}

var tokenBuckets = []float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072}

func histogram(name, help string, buckets ...float64) prometheus.Histogram {
	return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
}

// Handler answers scrapes.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.gatherer, promhttp.HandlerOpts{})
}

// Gatherer gives the metrics to tests and to other exporters.
func (m *Metrics) Gatherer() prometheus.Gatherer { return m.gatherer }

// Ended counts a request by how it ended: one of the Outcome constants.
func (m *Metrics) Ended(outcome string) { m.requests.WithLabelValues(outcome).Inc() }

// InterToken observes a gap of d before n tokens that came together: n observations of d/n.
func (m *Metrics) InterToken(d time.Duration, n int) {
	if n <= 0 {
		return
	}
	each := d.Seconds() / float64(n)
	for range n {
		m.itl.Observe(each)
	}
}

// Finished is a request that got all its tokens.
type Finished struct {
	Queue, TTFT, E2E           time.Duration
	PromptTokens, OutputTokens int
}

// Finish observes a finished request's latencies and sizes.
func (m *Metrics) Finish(f Finished) {
	m.queue.Observe(f.Queue.Seconds())
	m.e2e.Observe(f.E2E.Seconds())
	m.prompt.Observe(float64(f.PromptTokens))
	m.output.Observe(float64(f.OutputTokens))
	if f.OutputTokens > 0 {
		m.ttft.Observe(f.TTFT.Seconds())
	}
	if f.OutputTokens > 1 {
		m.tpot.Observe((f.E2E - f.TTFT).Seconds() / float64(f.OutputTokens-1))
	}
}
