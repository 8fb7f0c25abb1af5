package engine

import (
	"context"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// ledger is a sink that keeps books instead of a trace.
type ledger struct {
	mu     sync.Mutex
	open   []string            // ranges, innermost last
	closed map[string]int      // ranges by name
	spans  map[uint64][]string // open spans by request
	seen   map[string]int      // spans by name
	steps  []trace.Step
	gauges map[string]int64
	wrong  []string
}

func (l *ledger) Begin(name string, _ trace.Category, _ uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, name)
	return uint64(len(l.open))
}

func (l *ledger) End(name string, _ trace.Category, token uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n := len(l.open); n == 0 || l.open[n-1] != name || token != uint64(n) {
		l.wrong = append(l.wrong, "range "+name+" ends out of order")
		return
	}
	l.open = l.open[:len(l.open)-1]
	l.closed[name]++
}

func (l *ledger) Counter(name string, _ trace.Category, value int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gauges[name] = value
}

func (l *ledger) SpanBegin(name string, _ trace.Category, id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.spans[id] = append(l.spans[id], name)
	l.seen[name]++
}

func (l *ledger) SpanEnd(name string, _ trace.Category, id uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if open := l.spans[id]; len(open) != 1 || open[0] != name {
		l.wrong = append(l.wrong, "span "+name+" was not open")
	}
	delete(l.spans, id)
}

func (l *ledger) Step(s trace.Step) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.steps = append(l.steps, s)
}

func TestTheTraceAddsUp(t *testing.T) {
	l := &ledger{closed: map[string]int{}, spans: map[uint64][]string{}, seen: map[string]int{}, gauges: map[string]int64{}}
	require.Nil(t, trace.SetSink(l))
	defer trace.SetSink(nil)
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	var wg sync.WaitGroup
	for i := range int32(12) {
		wg.Go(func() {
			_, err := e.Generate(context.Background(), request([]int32{i + 1, 2, 3}, 9))
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	settled(t, e)
	s := e.Stats()
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Empty(t, l.wrong)
	require.Empty(t, l.spans, "spans left open")
	require.Equal(t, 12, l.seen["waiting"])
	require.Equal(t, 12, l.seen["running"])
	require.Len(t, l.steps, int(s.StepsTotal))
	for _, name := range []string{"launch", "wait", "commit", "deliver"} {
		require.Equal(t, int(s.StepsTotal), l.closed[name], name)
	}
	tokens, sampled := 0, 0
	for i, step := range l.steps {
		require.Equal(t, uint64(i+1), step.ID)
		require.LessOrEqual(t, step.DecodeRows, step.Rows)
		require.LessOrEqual(t, step.InFlight, 2)
		require.Equal(t, step.Phase == trace.Decode, step.DecodeRows == step.Rows)
		require.False(t, step.WaitStart.Before(step.Launched))
		tokens += step.Tokens
		sampled += step.SampledTokens
	}
	require.Equal(t, int(s.OutputTokensTotal+s.SurplusTokensTotal), sampled)
	require.Equal(t, 12*(3+8), tokens, "each prompt, and each output but its last token")
	require.Contains(t, l.gauges, "batch rows")
}
