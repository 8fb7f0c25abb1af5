package speculate

import (
	"time"
)

// Guesses are counted by the length of the match that made them: a long match is mostly right, a short one seldom.
const classes = 8

// classOf is the class of a match's length: 1, 2, 3, 4, 5-6, 7-9, 10-15, 16 and more.
func classOf(length int) int {
	switch {
	case length <= 4:
		return max(length-1, 0)
	case length <= 6:
		return 4
	case length <= 9:
		return 5
	case length <= 15:
		return 6
	}
	return 7
}

// rate is the part of guesses that were right, the late ones counting most.
type rate struct{ right, all float32 }

// memory is how many guesses a rate remembers, in effect: text changes its mind.
const memory = 32

func (r *rate) note(right bool) {
	if r.all >= memory {
		r.right -= r.right / memory
		r.all -= r.all / memory
	}
	r.all++
	if right {
		r.right++
	}
}

// rates are one request's or all requests' rates by class.
type rates [classes]rate

// newRates expects a little more of longer matches, and forgets what it expected soon.
func newRates() (r rates) {
	for i := range r {
		r[i] = rate{right: 0.5 + 0.2*float32(i), all: 2}
	}
	return r
}

func (r *rates) note(length int, right bool, p *Policy) {
	class := classOf(length)
	r[class].note(right)
	p.all[class].note(right)
}

// mixed is how likely a guess is right: what the request itself has shown, and for what it has not, all of them.
func mixed(own, all rate) float64 {
	const weight = 4 // guesses of the request that count as much as what is known of all
	return float64(own.right+weight*all.right/all.all) / float64(own.all+weight)
}

// Policy decides how many drafts pay. It serves all requests of an engine. It is not safe for concurrent use.
type Policy struct {
	most  int
	eager bool
	all   rates
	costs []cost // [tokens of a step], a draft head's time left out
	steps uint64

	// Of draft heads.
	depths     depths
	headCost   float64 // of a request's guesses
	headSeen   int
	turnedAway int // requests that the head might not have followed
}

// cost is what a decode step of some number of tokens takes.
type cost struct {
	known    bool
	seen     int
	measured uint64 // step
	time     float64
}

const (
	// costStale is how many steps a cost counts unless it is measured again. Then it is tried again: what kept drafts from being
	// tried may have changed.
	costStale = 1024
	// margin is how much more a step with drafts must promise than one without: it also keeps the host from launching ahead.
	margin = 1.03
)

// NewPolicy returns a policy for steps of up to maxTokens decode tokens and rows of up to most drafts. Nothing is known of costs: it tries.
// With eager every guess is verified, whatever it is worth.
func NewPolicy(most, maxTokens int, eager bool) *Policy {
	return &Policy{most: most, eager: eager, all: newRates(), depths: newDepths(), costs: make([]cost, maxTokens+1)}
}

// Took says that a step of decode rows alone, tokens in all, took d, without what a draft head took of it. The first of each size is left out: graphs are made, caches filled.
func (p *Policy) Took(tokens int, d time.Duration) {
	p.steps++
	if tokens >= len(p.costs) || d <= 0 {
		return
	}
	c, t := &p.costs[tokens], float64(d)
	c.seen++
	switch {
	case c.seen == 1:
		return
	case !c.known:
		c.time = t
	case t < c.time:
		c.time += (t - c.time) / 4
	default: // a hiccup is no price
		c.time += (min(t, 2*c.time) - c.time) / 8
	}
	c.known, c.measured = true, p.steps
}

// known finds the nearest measured size from tokens on in a direction.
func (p *Policy) known(tokens, direction int) (int, bool) {
	for m := tokens; m > 0 && m < len(p.costs); m += direction {
		if c := &p.costs[m]; c.known && p.steps-c.measured < costStale {
			return m, true
		}
	}
	return 0, false
}

// cost is what a step of tokens is expected to take: between two sizes that were measured, what lies between; beyond the largest, no more
// than that one, for what was not tried is to be tried.
func (p *Policy) cost(tokens int) float64 {
	below, okBelow := p.known(tokens, -1)
	above, okAbove := p.known(tokens, 1)
	switch {
	case okBelow && okAbove && below != above:
		part := float64(tokens-below) / float64(above-below)
		return p.costs[below].time*(1-part) + p.costs[above].time*part
	case okBelow:
		return p.costs[below].time
	case okAbove:
		return p.costs[above].time
	}
	return 1
}

// Drafts is how many drafts of q, up to most, a step should carry beside tokens others, from which expected tokens will come (both q's own
// first token included). 0: none would be worth its price.
func (p *Policy) Drafts(q Guesser, tokens int, expected float64, most int) int {
	most = min(most, p.most, len(p.costs)-1-tokens)
	if _, ok := p.known(tokens, -1); !ok && !p.eager { // first of all, the price of none
		return 0
	}
	best, bestRate := 0, expected/p.cost(tokens)
	chance, gain := 1.0, 0.0
	for k := 1; k <= most; k++ {
		right, ok := q.chance(k-1, p)
		if !ok {
			break
		}
		if p.eager {
			best = k
			continue
		}
		chance *= right
		gain += chance
		if rate := (expected + gain) / p.cost(tokens+k); rate > bestRate {
			best, bestRate = k, rate
		}
		if chance < 0.02 {
			break
		}
	}
	return best
}

// Pays tells whether drafts should be verified at all: all that were chosen make a step of tokens one of withDrafts tokens, and what is
// expected of it expectedWith.
func (p *Policy) Pays(tokens int, expected float64, withDrafts int, expectedWith float64) bool {
	return withDrafts > tokens && (p.eager || expectedWith/p.cost(withDrafts) > margin*expected/p.cost(tokens))
}

// Gain is what so many drafts of q are expected to add.
func (p *Policy) Gain(q Guesser, drafts int) float64 {
	chance, gain := 1.0, 0.0
	for k := range drafts {
		right, _ := q.chance(k, p)
		chance *= right
		gain += chance
	}
	return gain
}
