package engine

import (
	"maps"
	"sync"
	"time"

	"github.com/tokamak-engine/tokamak/engine/scheduler"
)

// rateWindow is how long tokens are counted for a rate.
const rateWindow = time.Second

// meter keeps the loop's figures. Only the loop changes them; snapshot copies what it published last.
type meter struct {
	lastRows, lastTokens int
	launchTime, waitTime time.Duration
	finishes             map[FinishReason]uint64

	windowStart           time.Time
	windowCounts          scheduler.Counts
	outputRate, inputRate float64

	mu        sync.Mutex
	published Stats
}

func (m *meter) launched(p *scheduler.Plan, took time.Duration) {
	m.lastRows, m.lastTokens = p.Rows, p.Tokens
	m.launchTime += took
}

func (m *meter) awaited(at time.Time, took time.Duration, c scheduler.Counts) {
	m.waitTime += took
	elapsed := at.Sub(m.windowStart)
	switch {
	case elapsed > 2*rateWindow: // the engine was idle for a while: count anew
	case elapsed < rateWindow:
		return
	default:
		m.outputRate = float64(c.OutputTokens-m.windowCounts.OutputTokens) / elapsed.Seconds()
		m.inputRate = float64(c.PrefillTokens-m.windowCounts.PrefillTokens) / elapsed.Seconds()
	}
	m.windowStart, m.windowCounts = at, c
}

func (m *meter) finished(f FinishReason) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.finishes == nil {
		m.finishes = map[FinishReason]uint64{}
	}
	m.finishes[f]++
}

// publish makes the loop's state visible to Stats.
func (l *loop) publish() {
	m, c, cache := &l.meter, l.sched.Counts(), l.sched.Cache()
	used := cache.NumPages() - cache.Available()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.published = Stats{
		Healthy: l.failure == nil,
		Err:     l.failure,
		Running: len(l.streams) - l.sched.NumWaiting(), Waiting: l.sched.NumWaiting(),
		NumPages: cache.NumPages(), UsedPages: used, CachedPages: cache.Cached(), PageSize: cache.PageSize(),
		UsedTokens: used * cache.PageSize(), CachedTokens: cache.Cached() * cache.PageSize(),
		OutputTokRate: m.outputRate, PromptTokRate: m.inputRate,
		StepsInFlight: l.flying, LastBatchRows: m.lastRows, LastStepTokens: m.lastTokens,
		StepsTotal: c.Steps, PromptTokensTotal: c.PromptTokens, CachedTokensTotal: c.CachedTokens,
		PrefillTokensTotal: c.PrefillTokens, OutputTokensTotal: c.OutputTokens, SurplusTokensTotal: c.SurplusTokens,
		DraftedRowsTotal: c.DraftRows, DraftTokensTotal: c.DraftTokens, AcceptedTotal: c.AcceptedTokens,
		PreemptionsTotal: c.Preemptions, EvictedPagesTotal: cache.Evictions(),
		LaunchTimeTotal: m.launchTime, WaitTimeTotal: m.waitTime,
	}
	if l.failure != nil {
		m.published.Running, m.published.Waiting = 0, 0
	}
}

func (l *loop) snapshot() Stats {
	m := &l.meter
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.published
	s.FinishedTotal = maps.Clone(m.finishes)
	if s.Running == 0 && s.Waiting == 0 {
		s.OutputTokRate, s.PromptTokRate = 0, 0
	}
	return s
}
