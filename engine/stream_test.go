package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
)

func request(prompt []int32, n int) Request {
	r := Request{InputIDs: prompt, Sampling: DefaultSampling(n)}
	r.Sampling.IgnoreEOS = true
	return r
}

// collect reads a stream to its end and checks what every stream promises.
func collect(t require.TestingT, e *Engine, r Request) (*Output, []Event) {
	var events []Event
	var text strings.Builder
	var tokens []int32
	for ev, err := range e.Stream(context.Background(), r) {
		require.NoError(t, err)
		require.True(t, len(events) == 0 || events[len(events)-1].Done == nil, "an event after the last")
		require.True(t, utf8.ValidString(ev.Text), "half a character in %q", ev.Text)
		events = append(events, ev)
		text.WriteString(ev.Text)
		tokens = append(tokens, ev.TokenIDs...)
	}
	out := events[len(events)-1].Done
	require.NotNil(t, out, "the last event has no output")
	require.Equal(t, out.Text, text.String())
	require.Equal(t, out.TokenIDs, tokens)
	return out, events
}

func TestStreamAndGenerateAgree(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	for i := range int32(20) {
		r := request([]int32{i % 5, 2, i}, 40)
		r.Sampling.IgnoreEOS = i%2 == 0
		streamed, events := collect(t, e, r)
		whole, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		require.Equal(t, streamed.TokenIDs, whole.TokenIDs)
		require.Equal(t, streamed.Text, whole.Text)
		require.Equal(t, streamed.Finish, whole.Finish)

		var stop []int32
		if !r.Sampling.IgnoreEOS {
			stop = []int32{0}
		}
		want := fakebackend.Continue(r.InputIDs, 40, len(pieces), stop)
		require.Equal(t, want, whole.TokenIDs)
		if want[len(want)-1] == 0 && stop != nil {
			require.Equal(t, FinishStop, whole.Finish)
			require.Equal(t, int32(0), *whole.MatchedToken)
			want = want[:len(want)-1] // the token that stops has no text
		} else {
			require.Equal(t, FinishLength, whole.Finish)
			require.Nil(t, whole.MatchedToken)
		}
		require.Equal(t, e.Tokenizer().Decode(want, true), whole.Text)
		for k := 1; k < len(events); k++ {
			require.False(t, events[k].At.Before(events[k-1].At))
		}
		require.Equal(t, events[0].At, streamed.FirstToken)
		for _, pair := range [][2]int64{
			{whole.Arrived.UnixNano(), whole.Scheduled.UnixNano()}, {whole.Scheduled.UnixNano(), whole.FirstToken.UnixNano()},
			{whole.FirstToken.UnixNano(), whole.Finished.UnixNano()},
		} {
			require.LessOrEqual(t, pair[0], pair[1])
		}
	}
}

// TestStopStrings takes parts of what a request says as its stop strings: then it must say exactly what comes before, with no
// token more than it takes.
func TestStopStrings(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	matched := 0
	rapid.Check(t, func(t *rapid.T) {
		r := request([]int32{rapid.Int32Range(1, 38).Draw(t, "prompt"), 3}, 40)
		full, _ := collect(t, e, r)
		chars := []rune(full.Text)
		for range rapid.IntRange(1, 3).Draw(t, "stops") {
			from := rapid.IntRange(0, len(chars)-1).Draw(t, "from")
			to := min(len(chars), from+rapid.IntRange(1, 6).Draw(t, "length"))
			stop := string(chars[from:to])
			if rapid.Bool().Draw(t, "almost") {
				stop += "~" // never said: what looks like its beginning must come out in the end
			}
			r.Sampling.Stop = append(r.Sampling.Stop, stop)
		}
		r.Sampling.MinNewTokens = rapid.SampledFrom([]int{0, 0, 3}).Draw(t, "min")

		// The text after each token says which token completes a stop string.
		wantText, wantTokens, wantStop := full.Text, full.TokenIDs, ""
		settledLen := 0
		decoder := e.Tokenizer().NewDecoder(true)
		said := ""
	search:
		for n, token := range full.TokenIDs {
			said += decoder.Add(token)
			if n+1 == len(full.TokenIDs) {
				said += decoder.Flush()
			}
			if n+1 <= r.Sampling.MinNewTokens {
				settledLen = len(said)
				continue
			}
			at := -1
			for _, stop := range r.Sampling.Stop {
				if i := strings.Index(said[settledLen:], stop); i >= 0 && (at < 0 || i < at) {
					at, wantStop = i, stop
				}
			}
			if at >= 0 {
				wantText, wantTokens = said[:settledLen+at], full.TokenIDs[:n+1]
				break search
			}
		}
		out, events := collect(t, e, r)
		require.Equal(t, wantText, out.Text)
		require.Equal(t, wantTokens, out.TokenIDs)
		require.Equal(t, wantStop, out.MatchedString)
		if wantStop != "" {
			matched++
			require.Equal(t, FinishStop, out.Finish)
		} else {
			require.Equal(t, FinishLength, out.Finish)
		}
		require.Len(t, events, len(out.TokenIDs))
		whole, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		require.Equal(t, out.Text, whole.Text)
		require.Equal(t, out.TokenIDs, whole.TokenIDs)
	})
	require.NotZero(t, matched)
	settled(t, e)
}

func TestLogProbs(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	r := request([]int32{4, 5, 6, 7, 8, 9}, 5)
	r.Sampling.TopLogProbs = 3
	r.PromptLogProbs = true
	out, events := collect(t, e, r)
	require.Len(t, out.LogProbs, 5)
	chain := uint64(0)
	for i, token := range r.InputIDs {
		chain = fakebackend.Extend(chain, token)
		if i+1 < len(r.InputIDs) {
			next := r.InputIDs[i+1]
			require.Equal(t, TokenLogProb{Token: next, LogProb: fakebackend.LogProb(chain, next)}, out.PromptLogProbs[i])
		}
	}
	require.Len(t, out.PromptLogProbs, len(r.InputIDs)-1)
	for i, token := range out.TokenIDs {
		require.Equal(t, token, out.LogProbs[i].Token)
		require.Equal(t, fakebackend.LogProb(chain, token), out.LogProbs[i].LogProb)
		require.Len(t, out.LogProbs[i].Top, 3)
		require.Equal(t, out.LogProbs[i:i+1], events[i].LogProbs)
		chain = fakebackend.Extend(chain, token)
	}
}

func TestNoTokenAskedFor(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	r := request(slices.Repeat([]int32{3}, 100), 0)
	r.PromptLogProbs = true
	out, events := collect(t, e, r)
	require.Len(t, events, 1)
	require.Equal(t, FinishLength, out.Finish)
	require.Empty(t, out.TokenIDs)
	require.Len(t, out.PromptLogProbs, 99)
}

// gate holds steps back until the test lets them go, so that what happens meanwhile is known.
type gate chan struct{}

func (g gate) hold(b *fakebackend.Backend) { b.BeforeWait = func(backend.StepID) { <-g } }

func TestCancelFreesPages(t *testing.T) {
	g := make(gate)
	e := openFake(t, DefaultOptions(), fakeInfo(), g.hold)
	ctx, cancel := context.WithCancelCause(context.Background())
	gaveUp := errors.New("gave up")
	done := make(chan struct{})
	go func() {
		defer close(done)
		out, err := e.Generate(ctx, request([]int32{1, 2, 3}, 100))
		require.ErrorIs(t, err, gaveUp)
		require.Equal(t, FinishAbort, out.Finish)
		require.Equal(t, fakebackend.Continue([]int32{1, 2, 3}, len(out.TokenIDs), len(pieces), nil), out.TokenIDs)
	}()
	for range 5 {
		g <- struct{}{}
	}
	cancel(gaveUp)
	<-done // the caller does not wait for the device
	close(g)
	settled(t, e)
	require.Equal(t, uint64(1), e.Stats().FinishedTotal[FinishAbort])
}

func TestLeavingTheLoopAborts(t *testing.T) {
	g := make(gate)
	e := openFake(t, DefaultOptions(), fakeInfo(), g.hold)
	go func() {
		for range 3 {
			g <- struct{}{}
		}
	}()
	seen := 0
	for _, err := range e.Stream(context.Background(), request([]int32{1, 2, 3}, 150)) {
		require.NoError(t, err)
		if seen++; seen == 3 {
			break
		}
	}
	close(g)
	settled(t, e)
	require.Less(t, e.Stats().OutputTokensTotal, uint64(10), "it went on for nobody")
	require.Equal(t, map[FinishReason]uint64{FinishAbort: 1}, e.Stats().FinishedTotal)
}

func TestAStopStringEndsTheRequestInTheEngineToo(t *testing.T) {
	g := make(gate)
	e := openFake(t, DefaultOptions(), fakeInfo(), g.hold)
	prompt := []int32{1, 2, 3}
	first := fakebackend.Continue(prompt, 1, len(pieces), nil)[0]
	r := request(prompt, 150)
	r.Sampling.Stop = []string{e.Tokenizer().Decode([]int32{first}, true)}
	go func() { g <- struct{}{} }()
	out, err := e.Generate(context.Background(), r)
	require.NoError(t, err)
	require.Equal(t, FinishStop, out.Finish)
	require.Equal(t, []int32{first}, out.TokenIDs)
	close(g)
	eventually(t, func() bool { return len(e.Stats().FinishedTotal) > 0 }, "the engine has not heard of it")
	settled(t, e)
	require.Less(t, e.Stats().OutputTokensTotal, uint64(5), "it went on for nobody")
	require.Equal(t, map[FinishReason]uint64{FinishStop: 1}, e.Stats().FinishedTotal)
}

func TestAbort(t *testing.T) {
	g := make(gate)
	e := openFake(t, DefaultOptions(), fakeInfo(), g.hold)
	r := request([]int32{1, 2, 3}, 100)
	r.ID = "mine"
	done := make(chan error)
	go func() {
		_, err := e.Generate(context.Background(), r)
		done <- err
	}()
	g <- struct{}{} // it runs
	_, err := e.Generate(context.Background(), r)
	var bad *RequestError
	require.ErrorAs(t, err, &bad, "an ID may be used by one request at a time")
	require.Equal(t, "id", bad.Field)
	require.False(t, e.Abort("another"))
	require.True(t, e.Abort("mine"))
	close(g)
	require.ErrorIs(t, <-done, ErrAborted)
	settled(t, e)
	r.Sampling.MaxNewTokens = 1
	_, err = e.Generate(context.Background(), r)
	require.NoError(t, err, "an ID can be used again")
}

// TestASlowReaderLosesNothing lets a request end long before its reader looks.
func TestASlowReaderLosesNothing(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	r := request([]int32{9, 9}, 60)
	n := 0
	for ev, err := range e.Stream(context.Background(), r) {
		require.NoError(t, err)
		if n == 0 {
			eventually(t, func() bool { return e.Stats().FinishedTotal[FinishLength] == 1 }, "the engine waits for the reader")
		}
		require.Len(t, ev.TokenIDs, 1)
		require.Equal(t, n == 59, ev.Done != nil)
		n++
	}
	require.Equal(t, 60, n)
}

func TestManyAtOnce(t *testing.T) {
	for _, overlap := range []bool{true, false} {
		t.Run(fmt.Sprintf("overlap=%t", overlap), func(t *testing.T) {
			o := DefaultOptions()
			o.DisableOverlap = !overlap
			info := fakeInfo()
			info.NumPages = 60 // some are preempted
			e := openFake(t, o, info, nil)
			var wg sync.WaitGroup
			for i := range int32(40) {
				wg.Go(func() {
					prompt := slices.Repeat([]int32{1 + i%3}, int(1+i))
					out, err := e.Generate(context.Background(), request(prompt, int(1+i*3)))
					if err != nil || !slices.Equal(fakebackend.Continue(prompt, int(1+i*3), len(pieces), nil), out.TokenIDs) {
						t.Errorf("request %d: %v, %v", i, err, out)
					}
				})
			}
			wg.Wait()
			settled(t, e)
			s := e.Stats()
			require.Equal(t, uint64(40), s.FinishedTotal[FinishLength])
			require.NotZero(t, s.CachedTokensTotal)
			require.NoError(t, e.FlushCache())
			eventually(t, func() bool { return e.Stats().CachedPages == 0 }, "pages stay in the flushed cache")
		})
	}
}

func TestSaltsDoNotShare(t *testing.T) {
	e := openFake(t, DefaultOptions(), fakeInfo(), nil)
	cached := func(salt string) int {
		r := request(slices.Repeat([]int32{8}, 41), 2)
		r.CacheSalt = salt
		out, err := e.Generate(context.Background(), r)
		require.NoError(t, err)
		return out.CachedTokens
	}
	for _, salt := range []string{"", "tenant a", "tenant b"} {
		require.Zero(t, cached(salt), "%q found another's pages", salt)
		require.Equal(t, 40, cached(salt))
	}
}

func TestCloseEndsRequests(t *testing.T) {
	g := make(gate)
	e := openFake(t, DefaultOptions(), fakeInfo(), g.hold)
	results := make(chan error)
	for i := range int32(6) {
		go func() {
			out, err := e.Generate(context.Background(), request([]int32{1 + i}, 100))
			if err != nil && out != nil && out.Finish != FinishAbort {
				err = fmt.Errorf("finish %q", out.Finish)
			}
			results <- err
		}()
	}
	eventually(t, func() bool {
		select {
		case g <- struct{}{}:
		default:
			runtime.Gosched()
		}
		return e.Stats().Running == 4
	}, "not all run")
	closed := make(chan error)
	go func() { closed <- e.Close() }()
	eventually(t, func() bool {
		in := &e.loop.inbox
		in.mu.Lock()
		defer in.mu.Unlock()
		return in.closed
	}, "not closing")
	close(g)
	for range 6 {
		require.ErrorIs(t, <-results, ErrClosed)
	}
	require.NoError(t, <-closed)
	require.NoError(t, e.Close(), "twice is fine")
	_, err := e.Generate(context.Background(), request([]int32{1}, 1))
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, e.FlushCache(), ErrClosed)
	_, err = e.StaticBatch([][]int32{{1}}, 1, 0)
	require.ErrorIs(t, err, ErrClosed)
}
