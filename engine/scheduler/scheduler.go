package scheduler

import (
	"fmt"
	"slices"
	"sort"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/kvcache"
	"github.com/tokamak-engine/tokamak/engine/speculate"
)

// Policy orders the waiting queue.
type Policy uint8

const (
	FCFS Policy = iota // first come, first served
	LPM                // longest cached prefix first; a request is passed over at most maxPassed times
)

// Config bounds a scheduler. MaxRows, MaxTokens, PageSize, NumPages and MaxContext are the backend's.
type Config struct {
	MaxRows    int
	MaxTokens  int // of one step; at least MaxRows
	MaxContext int
	PageSize   int
	NumPages   int
	// ChunkSize is the most prompt tokens of a row in a step. 0 does not chunk: a prompt waits for a step that takes it whole, and
	// is cut only if none could.
	ChunkSize int
	// MixedTokens is the most prompt tokens of a step that has decode rows too, whose tokens all come later for each of them. A long
	// queue gets more: a backlogPart-th of what waits. The step ends with a whole tile where it can. 0: no such bound.
	MixedTokens int
	Policy      Policy
	PrefixCache bool
	// RowDrafts is the most draft tokens of a row, MaxVerify the backend's own. 0: nobody speculates.
	RowDrafts, MaxVerify int
	EagerDrafts          bool   // verify every guess, whether it pays or not
	Seed                 uint64 // of the prefix tree's hashes
}

// Scheduler holds all requests that have not ended. It is not safe for concurrent use.
type Scheduler struct {
	cfg     Config
	cache   *kvcache.Cache
	waiting []*Request // by arrival
	running []*Request // by arrival; those that hold a slot
	slots   []int      // free ones, a stack

	steps    [backend.MaxInFlight]step // ring of planned steps
	head     int
	inFlight int
	leaving  int // of running: preempted or ended, with planned rows

	guesses *speculate.Policy // nil: nobody speculates

	arrivals  uint64
	growth    int      // permille of the tokens a request may still ask for that admission keeps free
	blocked   *Request // did not fit when it was last looked at
	blockedIn int      // steps until it is looked at again

	plan     Plan
	bound    int // tokens of the step being planned
	outcomes []Outcome
	counts   Counts
}

// step is what Commit must know of a planned batch, row by row.
type step struct {
	rows   []plannedRow
	drafts int // of all rows
	asked  int // rows behind which the draft head guesses
}

type plannedRow struct {
	r       *Request
	from    int // first position
	n       int // tokens, drafts included
	drafts  int
	sample  bool
	last    bool // computes the last of a prompt that asks for no token
	targets bool
}

// Plan describes the step that Next made. Admitted is valid until the next call.
type Plan struct {
	Rows, DecodeRows, Tokens, Sampled, Drafts int
	Admitted                                  []*Request // for the first time or again
}

// Counts only grow.
type Counts struct {
	Steps, PromptTokens, CachedTokens, PrefillTokens, OutputTokens, SurplusTokens, Preemptions uint64
	// DraftRows had drafts, DraftTokens of them, of which AcceptedTokens were right.
	DraftRows, DraftTokens, AcceptedTokens uint64
}

// Outcome is what a committed step means for one request. It is valid until the next Commit.
type Outcome struct {
	Request *Request
	Result  *backend.RowResult
	// Sampled is the number of the request's new tokens: Result.Token, then the first of Result.More. 0: none.
	Sampled int
	// PromptLogProbs are those of the prompt tokens that follow the ones delivered before; the first has none.
	PromptLogProbs []float32
	Finish         Finish
}

// New returns a scheduler for a backend of cfg's bounds.
func New(cfg Config) *Scheduler {
	if cfg.MaxRows < 1 || cfg.MaxTokens < cfg.MaxRows || cfg.PageSize < 1 || cfg.NumPages < 1 || cfg.MaxContext < 1 {
		panic(fmt.Sprintf("scheduler: impossible bounds %+v", cfg))
	}
	s := &Scheduler{
		cfg:    cfg,
		cache:  kvcache.New(cfg.NumPages, cfg.PageSize, cfg.PrefixCache, cfg.Seed),
		growth: growthAtStart,
	}
	if cfg.RowDrafts > 0 && cfg.MaxVerify > 0 {
		s.guesses = speculate.NewPolicy(min(cfg.RowDrafts, backend.MaxRowDrafts), cfg.MaxVerify, cfg.EagerDrafts)
	}
	for slot := cfg.MaxRows - 1; slot >= 0; slot-- {
		s.slots = append(s.slots, slot)
	}
	return s
}

// Limit is the number of tokens whose keys and values one sequence may have: the context, or all pages if they are fewer.
func (s *Scheduler) Limit() int { return min(s.cfg.MaxContext, s.cfg.NumPages*s.cfg.PageSize) }

// NumWaiting counts requests without a slot.
func (s *Scheduler) NumWaiting() int { return len(s.waiting) }

// NumRunning counts requests with a slot, those that have ended but are in a planned step included.
func (s *Scheduler) NumRunning() int { return len(s.running) }

// HasPrompts tells that some request has prompt tokens left to compute.
func (s *Scheduler) HasPrompts() bool {
	return len(s.waiting) > 0 || slices.ContainsFunc(s.running, func(r *Request) bool { return r.state == running && !r.sampled })
}

// InFlight counts steps planned and not committed.
func (s *Scheduler) InFlight() int { return s.inFlight }

// Idle tells that there is nothing to plan or commit.
func (s *Scheduler) Idle() bool { return len(s.waiting) == 0 && len(s.running) == 0 && s.inFlight == 0 }

// Counts returns totals since New.
func (s *Scheduler) Counts() Counts { return s.counts }

// Cache gives the books of pages to look at.
func (s *Scheduler) Cache() *kvcache.Cache { return s.cache }

// Add queues r. A prompt longer than [Scheduler.Limit], or one that is empty, is a programming error.
func (s *Scheduler) Add(r *Request) {
	if r.state != fresh || len(r.Prompt) == 0 || len(r.Prompt)+max(0, r.MaxNewTokens-1) > s.Limit() {
		panic(fmt.Sprintf("scheduler: request of %d prompt and %d new tokens cannot be added", len(r.Prompt), r.MaxNewTokens))
	}
	r.tokens = append(make([]int32, 0, len(r.Prompt)+min(r.MaxNewTokens, tokensAhead)), r.Prompt...)
	s.arrivals++
	r.arrival = s.arrivals
	r.state = waiting
	r.head, _ = r.Guesses.(*speculate.Head)
	s.waiting = append(s.waiting, r)
}

// tokensAhead is how much of MaxNewTokens gets memory at once; more grows as it comes.
const tokensAhead = 4096

// Cancel ends r, if it has not ended, and tells whether it did. No outcome follows; a token of r in a planned step is
// dropped.
func (s *Scheduler) Cancel(r *Request) bool {
	switch r.state {
	case waiting:
		s.waiting = slices.Delete(s.waiting, s.waitingAt(r), s.waitingAt(r)+1)
		s.unblock()
		r.state = ended
	case running:
		s.end(r)
	case preempted:
		r.state = ended
	default:
		return false
	}
	return true
}

// SetMask gives the mask for the next token of a constrained request. mask is read at the next plan and must not change until
// the token was committed.
func (s *Scheduler) SetMask(r *Request, mask []uint32) { r.mask, r.maskReady = mask, true }

// Flush empties the prefix cache of all that no request holds.
func (s *Scheduler) Flush() { s.cache.Flush() }

// Abandon ends every request and takes back all slots and pages, those of planned steps too: the backend has failed, and no step will
// be committed any more. Nothing is kept in the prefix cache, for nobody knows what the pages hold.
func (s *Scheduler) Abandon() {
	for ; s.inFlight > 0; s.inFlight-- {
		clear(s.steps[s.head].rows)
		s.head = (s.head + 1) % backend.MaxInFlight
	}
	for _, r := range s.waiting {
		r.state = ended
	}
	s.waiting = nil
	for len(s.running) > 0 {
		r := s.running[len(s.running)-1]
		r.state, r.inFlight = ended, 0
		s.release(r)
	}
	s.leaving = 0
	s.cache.Flush()
}

// end marks a running request as ended and releases it as soon as no planned step has a row of it.
func (s *Scheduler) end(r *Request) {
	r.state = ended
	if r.inFlight == 0 {
		s.release(r)
		return
	}
	s.leaving++
}

// release takes slot and pages from r. No planned step has a row of it.
func (s *Scheduler) release(r *Request) {
	// A surplus token's keys and values may be there too, but what the token was nobody kept.
	s.cache.Release(r.Salt, r.tokens[:min(r.computed, len(r.tokens))], r.pages)
	s.slots = append(s.slots, r.slot)
	r.pages, r.shared, r.computed, r.pending = r.pages[:0], 0, 0, 0
	r.started, r.sampled = false, false
	at := sort.Search(len(s.running), func(i int) bool { return s.running[i].arrival >= r.arrival })
	s.running = slices.Delete(s.running, at, at+1)
	s.unblock()
}

// requeue puts a released request back to where it came from in the queue.
func (s *Scheduler) requeue(r *Request) {
	r.state = waiting
	s.waiting = slices.Insert(s.waiting, s.waitingAt(r), r)
}

func (s *Scheduler) waitingAt(r *Request) int {
	return sort.Search(len(s.waiting), func(i int) bool { return s.waiting[i].arrival >= r.arrival })
}

func (s *Scheduler) unblock() { s.blocked = nil }
