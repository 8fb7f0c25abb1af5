package engine

import "time"

// Stats is a snapshot of the engine between two steps. Counts named ...Total only grow.
type Stats struct {
	Healthy bool
	Err     error // why it is not
	Running int   // requests that hold a slot
	Waiting int   // requests queued for one, preempted ones included

	NumPages       int
	UsedPages      int // held by running requests
	CachedPages    int // kept by the prefix cache and held by no request: reclaimable
	PageSize       int // tokens
	UsedTokens     int // UsedPages in tokens
	CachedTokens   int // CachedPages in tokens
	OutputTokRate  float64
	PromptTokRate  float64 // computed prompt tokens a second, cached ones left out; both rates over the last second of work
	StepsInFlight  int
	LastBatchRows  int
	LastStepTokens int

	StepsTotal         uint64
	PromptTokensTotal  uint64 // prompt tokens of admitted requests, cached ones included; resumed requests count again
	CachedTokensTotal  uint64 // of these, taken from the prefix cache
	PrefillTokensTotal uint64 // put through the model
	OutputTokensTotal  uint64 // delivered
	SurplusTokensTotal uint64 // sampled one step ahead, or behind the end in a run of guesses, for a request that had ended: dropped
	DraftedRowsTotal   uint64 // times that a request's guesses were verified
	DraftTokensTotal   uint64 // guesses verified
	AcceptedTotal      uint64 // of these, right
	PreemptionsTotal   uint64
	EvictedPagesTotal  uint64
	FinishedTotal      map[FinishReason]uint64

	LaunchTimeTotal time.Duration // host time spent to schedule and launch steps
	WaitTimeTotal   time.Duration // host time spent in waiting for the device
}

// AcceptLength is the mean number of tokens that a row with guesses gave, 1 and more; false where there was none.
func (s *Stats) AcceptLength() (float64, bool) {
	if s.DraftedRowsTotal == 0 {
		return 0, false
	}
	return 1 + float64(s.AcceptedTotal)/float64(s.DraftedRowsTotal), true
}
