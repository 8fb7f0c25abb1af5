package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fullLoad is what keeps an engine at its limits: more clients than rows, prompts that share prefixes under several salts, every way to
// leave early. Each client demands what its request promises.
type fullLoad struct {
	*testing.T
	e                             *Engine
	clients, longPrompt, longText int
	asked, whole, left, aborted   atomic.Int64
	refused, unread, tokens       atomic.Int64 // unread: left before a token came, of them those that left before the engine had them
}

// run loads e for a time in six rounds. After each round nothing runs, and the books must be exact: every request counted once, no
// page in use, after a flush none cached, and no goroutine left of its requests. Memory of the last rounds is that of the rounds before.
func (l *fullLoad) run(length time.Duration) {
	const rounds = 6
	var rows, samples, goroutines int
	var resident [rounds]int64
	began := time.Now()
	for round := range rounds {
		ctx, cancel := context.WithTimeout(context.Background(), length/rounds)
		var clients sync.WaitGroup
		for c := range l.clients {
			clients.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(round), uint64(c)))
				for ctx.Err() == nil && !l.Failed() {
					l.ask(ctx, rng)
				}
			})
		}
		for ctx.Err() == nil {
			time.Sleep(min(100*time.Millisecond, length/rounds/20))
			rows, samples = rows+l.e.Stats().LastBatchRows, samples+1
		}
		clients.Wait()
		cancel()
		accepted := l.e.requests.Load()
		eventually(l, func() bool { return ends(l.e) == accepted }, "each request ends once")
		settled(l, l.e)
		require.LessOrEqual(l, accepted, uint64(l.asked.Load()), "requests that nobody sent")
		require.GreaterOrEqual(l, accepted, uint64(l.asked.Load()-l.unread.Load()), "requests were lost")
		s := l.e.Stats()
		require.LessOrEqual(l, uint64(l.tokens.Load()), s.OutputTokensTotal, "clients got tokens that nobody sampled")
		require.NoError(l, l.e.FlushCache())
		eventually(l, func() bool { return l.e.Stats().CachedPages == 0 }, "pages are cached that nothing can find")
		require.Zero(l, l.e.Stats().UsedPages)
		require.NoError(l, l.e.Err())
		if round == 0 {
			goroutines = runtime.NumGoroutine()
		}
		eventually(l, func() bool { return runtime.NumGoroutine() <= goroutines }, "goroutines stay behind requests")
		runtime.GC()
		resident[round] = residentBytes(l)
	}
	s := l.e.Stats()
	took := time.Since(began)
	l.Logf("%.0f s on %s: %d requests, %d whole, %d left, %d aborted, %d refused; %d tokens sampled (%.0f a second), %d read, %d surplus; %d preemptions, %d pages reclaimed; %.0f rows in a step of %d",
		took.Seconds(), l.e.Info().Device, l.asked.Load(), l.whole.Load(), l.left.Load(), l.aborted.Load(), l.refused.Load(), s.OutputTokensTotal,
		float64(s.OutputTokensTotal)/took.Seconds(), l.tokens.Load(), s.SurplusTokensTotal, s.PreemptionsTotal, s.EvictedPagesTotal, float64(rows)/float64(samples), l.e.Info().MaxRows)
	l.Logf("resident after each round, MB: %v", slices.Collect(func(yield func(string) bool) {
		for _, b := range resident {
			if !yield(fmt.Sprintf("%.1f", float64(b)/1e6)) {
				return
			}
		}
	}))
	for what, n := range map[string]int64{"whole": l.whole.Load(), "left": l.left.Load(), "aborted": l.aborted.Load(), "preempted": int64(s.PreemptionsTotal), "reclaimed": int64(s.EvictedPagesTotal)} {
		require.Positive(l, n, "the load is too tame: none %s", what)
	}
	require.Greater(l, rows, samples*l.e.Info().MaxRows/2, "less than half a batch is no full load")
	require.Less(l, resident[rounds-1], resident[rounds/2]+resident[rounds/2]/20+16<<20, "memory grows: %v", resident)
}

// ends is the number of requests that have ended.
func ends(e *Engine) (n uint64) {
	for _, of := range e.Stats().FinishedTotal {
		n += of
	}
	return n
}

// ask sends one request and checks what comes of it.
func (l *fullLoad) ask(ctx context.Context, rng *rand.Rand) {
	vocabulary := l.e.Info().VocabSize
	group, shared := rng.IntN(8), rng.IntN(l.longPrompt/2)
	r := Request{ID: fmt.Sprintf("soak-%d", rng.Uint64()), Sampling: DefaultSampling(1 + rng.IntN(l.longText)), CacheSalt: fmt.Sprint(rng.IntN(2))}
	for i := range shared + 1 + rng.IntN(l.longPrompt/2) {
		token := (group*7919 + i*104729) % vocabulary
		if i >= shared {
			token = rng.IntN(vocabulary)
		}
		r.InputIDs = append(r.InputIDs, int32(token))
	}
	p := &r.Sampling
	p.IgnoreEOS = true
	switch rng.IntN(8) {
	case 0:
		p.Temperature, p.TopP, p.TopK = 0.8, 0.95, 50
	case 1:
		p.Temperature, p.RepetitionPenalty = 1, 1.1
	case 2:
		p.TopLogProbs = 3
	}
	leaveAfter := p.MaxNewTokens // tokens
	way := rng.IntN(10)
	if way < 3 {
		leaveAfter = rng.IntN(p.MaxNewTokens)
	}
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	if way == 0 && leaveAfter == 0 {
		time.AfterFunc(time.Duration(rng.IntN(int(5*time.Millisecond))), cancel) // perhaps while it waits
	}
	l.asked.Add(1)
	got := 0
	for ev, err := range l.e.Stream(own, r) {
		switch {
		case errors.Is(err, ErrQueueFull):
			l.refused.Add(1)
			return
		case err != nil && (errors.Is(err, context.Canceled) && way == 0 || errors.Is(err, ErrAborted) && way == 1):
			l.left.Add(int64(1 - way))
			l.aborted.Add(int64(way))
			if got == 0 {
				l.unread.Add(1)
			}
			return
		case err != nil:
			l.Errorf("request of %d and %d tokens, after %d: %v", len(r.InputIDs), p.MaxNewTokens, got, err)
			return
		}
		got += len(ev.TokenIDs)
		l.tokens.Add(int64(len(ev.TokenIDs)))
		for _, token := range ev.TokenIDs {
			if token < 0 || int(token) >= vocabulary {
				l.Errorf("token %d of a vocabulary of %d", token, vocabulary)
			}
		}
		if ev.Done != nil {
			if got != p.MaxNewTokens || len(ev.Done.TokenIDs) != got || ev.Done.Finish != FinishLength {
				l.Errorf("%d tokens read, %d in the output, %d asked for; finish %s", got, len(ev.Done.TokenIDs), p.MaxNewTokens, ev.Done.Finish)
			}
			l.whole.Add(1)
			continue
		}
		if got < leaveAfter || way > 2 {
			continue
		}
		switch way {
		case 0:
			cancel()
		case 1:
			l.e.Abort(r.ID)
		case 2:
			l.left.Add(1)
			return
		}
	}
}

func residentBytes(t testing.TB) int64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0 // not Linux: the rest holds
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	require.NoError(t, err)
	return pages * int64(os.Getpagesize())
}

// TestFullLoad is the soak of the engine for a moment, on the CPU: see TestSoakOnTheGPU.
func TestFullLoad(t *testing.T) {
	o := tinyOptions()
	o.Threads, o.MaxRunningRequests, o.MaxTotalTokens, o.PageSize = 2, 16, 16*40, 16
	l := &fullLoad{T: t, e: openTiny(t, o), clients: 24, longPrompt: 60, longText: 40}
	l.run(1200 * time.Millisecond)
}
