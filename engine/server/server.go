package server

import (
	"context"
	"iter"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/metrics"
	"github.com/tokamak-engine/tokamak/engine/tokenizer"
)

// generator is the engine as the server uses it. Tests put one with a script behind it.
type generator interface {
	Generate(context.Context, engine.Request) (*engine.Output, error)
	Stream(context.Context, engine.Request) iter.Seq2[engine.Event, error]
	Abort(id string) bool
	FlushCache() error
	Stats() engine.Stats
	Err() error
}

// codec is the tokenizer as the server uses it.
type codec interface {
	Encode(text string, addSpecial bool) []int32
	Decode(ids []int32, skipSpecial bool) string
	TokenBytes(id int32) []byte
	ApplyChatTemplate(messages []tokenizer.Message, o tokenizer.ChatOptions) (string, error)
}

// modelInfo is what requests are checked against. It does not change.
type modelInfo struct {
	name          string // as clients name it
	path          string
	tokenizerPath string
	vocabSize     int
	maxContext    int   // tokens of prompt and output together
	maxToken      int   // bytes of the longest token
	codec         codec // nil: token ids only
	options       engine.Options
	maxRunning    int
	capacity      int // tokens of the KV cache
	backend       string
	device        string
	loaded        time.Time
}

// live is the engine once it is there.
type live struct {
	gen   generator
	model *modelInfo
}

// Server answers HTTP for one engine. Make it with [New], give it an engine with [Server.Start] and a listener with
// [Server.Serve], in any order; end it with [Server.Shutdown].
type Server struct {
	options  Options
	log      *slog.Logger
	profiler Profiler
	metrics  *metrics.Metrics
	routes   map[string]*route

	live     atomic.Pointer[live]
	draining atomic.Bool
	failed   chan struct{} // closed when the backend has failed
	failOnce sync.Once

	base   context.Context // of every request
	cancel context.CancelCauseFunc
	http   *http.Server
	watch  sync.WaitGroup // goroutines of Start

	bodyBytes atomic.Int64   // of bodies in memory
	active    activeRequests // by the id that /abort_request knows

	now   func() time.Time
	newID func() string
}

// New returns a server that answers 503 until an engine is given to it. profiler may be nil.
func New(o Options, profiler Profiler, log *slog.Logger) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	s := &Server{options: o, profiler: profiler, log: log, failed: make(chan struct{}), now: time.Now, newID: randomID}
	s.base, s.cancel = context.WithCancelCause(context.Background())
	s.metrics = metrics.New(metrics.Options{ModelName: o.ServedModelName, Aliases: o.MetricsAliases, Engine: s.engineMetrics})
	s.routes = routeTable()
	s.http = s.httpServer()
	return s, nil
}

// ServedName is the model name for clients of a model at path: o.ServedModelName, or the path's last element.
func ServedName(o Options, path string) string {
	if o.ServedModelName != "" {
		return o.ServedModelName
	}
	name := filepath.Base(filepath.Clean(path))
	return strings.TrimSuffix(name, ".gguf")
}

// Start gives the server its engine and makes it ready. It watches the engine's health until Shutdown.
func (s *Server) Start(e *engine.Engine) {
	info, options := e.Info(), e.Options()
	m := &modelInfo{
		name: ServedName(s.options, options.ModelPath), path: options.ModelPath, tokenizerPath: options.TokenizerPath,
		vocabSize: info.VocabSize, maxContext: info.MaxContext, options: options,
		maxRunning: info.MaxRows, capacity: info.NumPages * info.PageSize, backend: info.Name, device: info.Device, loaded: s.now(),
	}
	if m.tokenizerPath == "" {
		m.tokenizerPath = m.path
	}
	if t := e.Tokenizer(); t != nil {
		m.codec = t
		for id := range t.VocabSize() {
			m.maxToken = max(m.maxToken, len(t.TokenBytes(int32(id))))
		}
	}
	s.start(e, m)
}

func (s *Server) start(gen generator, m *modelInfo) {
	s.live.Store(&live{gen, m})
	s.watch.Go(s.watchHealth)
	if s.options.LogInterval > 0 {
		s.watch.Go(s.logLoad)
	}
}

// Failed is closed when the backend has failed: nothing will be generated any more, and the process should exit.
func (s *Server) Failed() <-chan struct{} { return s.failed }

// Metrics gives what the server counts.
func (s *Server) Metrics() *metrics.Metrics { return s.metrics }

// watchHealth looks for a backend that failed while no request was there to notice.
func (s *Server) watchHealth() {
	const period = 250 * time.Millisecond
	tick := time.NewTicker(period)
	defer tick.Stop()
	for {
		select {
		case <-s.base.Done():
			return
		case <-tick.C:
			if s.unhealthy() {
				return
			}
		}
	}
}

// unhealthy tells that the backend failed, and makes it known once.
func (s *Server) unhealthy() bool {
	l := s.live.Load()
	if l == nil {
		return false
	}
	err := l.gen.Err()
	if err == nil || s.draining.Load() {
		return false
	}
	s.failOnce.Do(func() {
		s.log.Error("backend failed", "error", err)
		close(s.failed)
	})
	return true
}

// logLoad writes one line an interval while there is work.
func (s *Server) logLoad() {
	tick := time.NewTicker(s.options.LogInterval)
	defer tick.Stop()
	before := s.live.Load().gen.Stats()
	lastOutput, lastPrefill, last := before.OutputTokensTotal, before.PrefillTokensTotal, s.now()
	for {
		select {
		case <-s.base.Done():
			return
		case <-tick.C:
		}
		st := s.live.Load().gen.Stats()
		now := s.now()
		output, prefill := st.OutputTokensTotal-lastOutput, st.PrefillTokensTotal-lastPrefill
		elapsed := now.Sub(last).Seconds()
		lastOutput, lastPrefill, last = st.OutputTokensTotal, st.PrefillTokensTotal, now
		if st.Running+st.Waiting == 0 && output+prefill == 0 {
			continue
		}
		s.log.Info("load", "running", st.Running, "queued", st.Waiting,
			"kv_usage", round(float64(st.UsedPages)/float64(max(1, st.NumPages)), 1000),
			"gen_tok_s", round(float64(output)/elapsed, 10), "prefill_tok_s", round(float64(prefill)/elapsed, 10),
			"preempted", st.PreemptionsTotal)
	}
}

func round(v float64, parts float64) float64 { return float64(int64(v*parts+0.5)) / parts }

// engineMetrics is the engine's state for a scrape.
func (s *Server) engineMetrics() (metrics.Engine, bool) {
	l := s.live.Load()
	if l == nil {
		return metrics.Engine{}, false
	}
	st := l.gen.Stats()
	return metrics.Engine{
		Healthy: l.gen.Err() == nil, Running: st.Running, Waiting: st.Waiting,
		UsedPages: st.UsedPages, CachedPages: st.CachedPages, NumPages: st.NumPages, PageSize: st.PageSize, MaxRunning: l.model.maxRunning,
		OutputRate: st.OutputTokRate, PromptRate: st.PromptTokRate,
		PromptTokens: st.PromptTokensTotal, CachedTokens: st.CachedTokensTotal, PrefillTokens: st.PrefillTokensTotal,
		OutputTokens: st.OutputTokensTotal, SurplusTokens: st.SurplusTokensTotal,
		DraftedRows: st.DraftedRowsTotal, DraftTokens: st.DraftTokensTotal, AcceptedTokens: st.AcceptedTotal,
		Preemptions: st.PreemptionsTotal, EvictedPages: st.EvictedPagesTotal, Steps: st.StepsTotal,
		LaunchSeconds: st.LaunchTimeTotal.Seconds(), WaitSeconds: st.WaitTimeTotal.Seconds(),
	}, true
}
