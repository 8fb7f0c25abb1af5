package load

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const ms = time.Millisecond

func TestDistIsNumpys(t *testing.T) {
	// numpy.percentile([3, 1, 4, 1, 5, 9, 2, 6], [50, 90, 95, 99]) = 3.5, 6.9, 7.95, 8.79; mean 3.875, std 2.5708705
	d := NewDist([]time.Duration{3000, 1000, 4000, 1000, 5000, 9000, 2000, 6000})
	assert.Equal(t, []time.Duration{3500, 6900, 7950, 8790, 9000, 1000}, []time.Duration{d.P50, d.P90, d.P95, d.P99, d.Max, d.Min})
	assert.Equal(t, []time.Duration{3875, 2570}, []time.Duration{d.Mean, d.Std})
	assert.Zero(t, NewDist(nil).N)
}

// result makes a request that ran from sent, with one token each itl from first on.
func result(sent, first, itl time.Duration, tokens int) Result {
	r := Result{Scheduled: sent, Granted: sent, Sent: sent, FirstToken: first, OutputTokens: known(tokens), PromptTokens: known(10), WantOutput: tokens}
	for i := range tokens {
		r.Chunks = append(r.Chunks, Chunk{At: first + time.Duration(i)*itl, Tokens: 1})
	}
	r.End = r.Chunks[tokens-1].At
	return r
}

func TestSummarize(t *testing.T) {
	failed := Result{Sent: 1 * ms, End: 2 * ms, Failure: failf(FailTimeout, "")}
	report := &Report{Duration: time.Second, Results: []Result{result(0, 100*ms, 10*ms, 11), result(50*ms, 100*ms, 20*ms, 6), failed}}
	report.Results[0].CachedTokens = known(4)
	report.Results[1].CachedTokens = known(0)
	s := Summarize(report, Objectives{"ttft": 60, "tpot": 25})
	assert.Equal(t, 2, s.Completed)
	assert.Equal(t, 1, s.Failed())
	assert.Equal(t, "1 timeout", s.FailureText())
	assert.Equal(t, []int{20, 17, 4}, []int{s.InputTokens, s.OutputTokens, s.CachedTokens})
	assert.True(t, s.CachedKnown)
	assert.Equal(t, []time.Duration{75 * ms, 15 * ms, 175 * ms}, []time.Duration{s.TTFT.P50, s.TPOT.P50, s.E2E.P50})
	assert.Equal(t, 15, s.ITL.N)
	assert.Equal(t, 2, s.PeakConcurrency)
	require.NotNil(t, s.Good)
	assert.Equal(t, 1, *s.Good)
	share, ok := s.Share()
	assert.True(t, ok)
	assert.InDelta(t, 1.0/3, share, 1e-9, "a failed request is not good")
}

// TestSteadyLeavesRampAndDrainOut: ten requests come one a second, run together for ten seconds, and end one a second.
func TestSteadyLeavesRampAndDrainOut(t *testing.T) {
	var results []Result
	for i := range 10 {
		start := time.Duration(i) * time.Second
		results = append(results, result(start, start, 100*ms, 200))
	}
	s := steady(results)
	require.NotNil(t, s)
	assert.Equal(t, 8*time.Second, s.From, "nine of ten run")
	assert.Equal(t, 20*time.Second+900*ms, s.To)
	assert.InDelta(t, 100, s.OutputRate(), 2, "ten requests of ten tokens a second")
}

// TestSteadyBridgesTheChangeOfRequests: two places, taken anew one step after they become free.
func TestSteadyBridgesTheChangeOfRequests(t *testing.T) {
	var results []Result
	for i := range 10 {
		start := time.Duration(i/2)*time.Second + time.Duration(i%2)*500*ms
		results = append(results, result(start, start+10*ms, 10*ms, 99))
	}
	s := steady(results)
	require.NotNil(t, s)
	assert.Greater(t, s.To-s.From, 4*time.Second)
}

func TestSteadyAbsent(t *testing.T) {
	assert.Nil(t, steady(nil))
	assert.Nil(t, steady([]Result{result(0, ms, ms, 5)}), "one request has no steady state")
	assert.Nil(t, steady([]Result{result(0, ms, ms, 1), result(0, ms, ms, 1)}), "no decoding")
}

func TestObjectives(t *testing.T) {
	o, err := ParseObjectives([]string{"ttft:200", "tpot:20,e2el:1000"})
	require.NoError(t, err)
	assert.Equal(t, Objectives{"ttft": 200, "tpot": 20, "e2el": 1000}, o)
	for _, bad := range []string{"ttft", "itl:3", "ttft:-1", "ttft:x", "ttft:NaN", "ttft:1,ttft:2"} {
		_, err := ParseObjectives([]string{bad})
		assert.ErrorContains(t, err, "goodput", bad)
	}
}

func TestLimits(t *testing.T) {
	l := Limits{Lag: 5 * ms, LagPart: 0.02, CPU: 0.9}
	s := &Summary{E2E: NewDist([]time.Duration{100 * ms}), Lag: NewDist([]time.Duration{6 * ms})}
	require.ErrorContains(t, l.Check(s), "invalid run: the client itself sent 1 % of requests more than 6ms late")
	s.E2E = NewDist([]time.Duration{time.Second})
	require.NoError(t, l.Check(s), "6 ms of a second")
	cpu := 0.95
	s.ClientCPU = &cpu
	require.ErrorContains(t, l.Check(s), "the client took 95 % of all processors")
}

// TestSettleKeepsTheSum: whatever the chunks, the tokens laid on them add up to what the server reports.
func TestSettleKeepsTheSum(t *testing.T) {
	for _, test := range []struct {
		total     int
		bytes     []int
		want      []int
		estimated bool
	}{
		{3, []int{2, 2, 2}, []int{1, 1, 1}, false},
		{6, []int{2, 4, 6}, []int{1, 2, 3}, true},
		{5, []int{0, 0}, []int{2, 3}, true},
		{2, []int{3, 3, 3}, []int{0, 1, 1}, true},
	} {
		r := Result{OutputTokens: known(test.total)}
		for _, n := range test.bytes {
			r.Chunks = append(r.Chunks, Chunk{bytes: n})
		}
		r.settle()
		var got []int
		for _, c := range r.Chunks {
			got = append(got, c.Tokens)
		}
		assert.Equal(t, test.want, got)
		assert.Equal(t, test.estimated, r.CountsEstimated)
	}
}
