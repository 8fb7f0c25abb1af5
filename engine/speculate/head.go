package speculate

import "time"

// Head keeps what a draft head guessed of one request. The head runs on the device and is asked for guesses before their worth is known,
// so asking has a policy of its own: [Policy.Ask]. It is not safe for concurrent use.
type Head struct {
	n       int // tokens seen
	guesses []guess
	at      int // guesses[at] is the next token's; those before it were right

	rates  rates // by how sure the head was; these and depths expect nothing of their own
	depths depths

	begun bool
	off   bool // the head reads no more of the request
	pause int  // steps before guesses are asked for again
	vain  int  // times in a row that the head was asked although not even the request alone would have been worth it
}

type guess struct {
	token int32
	class int
}

// depths are rates by a guess's place behind the tokens that are known.
type depths [maxDepth]rate

const maxDepth = 16

// newDepths expects something, and forgets what it expected soon.
func newDepths() (d depths) {
	for i := range d {
		d[i] = rate{right: 1.2, all: 2}
	}
	return d
}

// sureness is the class of a guess that the head gives probability prob; the classes are as many as a match's.
func sureness(prob float32) int {
	for i, below := range [classes - 1]float32{0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 0.95} {
		if prob < below {
			return i
		}
	}
	return classes - 1
}

// NewHead is a head that has guessed nothing of a request of so many tokens.
func NewHead(tokens int) *Head {
	return &Head{n: tokens}
}

// Guessed replaces the guesses by none: [Head.Add] adds those that the head made behind the tokens that were seen.
func (h *Head) Guessed() { h.guesses, h.at = h.guesses[:0], 0 }

// Add adds the guess behind those added before. prob is what the head gives it, after those.
func (h *Head) Add(token int32, prob float32) {
	h.guesses = append(h.guesses, guess{token, sureness(prob)})
}

// Extend implements [Guesser].
func (h *Head) Extend(tokens []int32, p *Policy) {
	for ; h.n < len(tokens); h.n++ {
		if h.at == len(h.guesses) {
			continue
		}
		g := h.guesses[h.at]
		right := tokens[h.n] == g.token
		h.rates[g.class].note(right)
		p.all[g.class].note(right)
		h.depths[min(h.at, maxDepth-1)].note(right)
		p.depths[min(h.at, maxDepth-1)].note(right)
		if h.at++; !right {
			h.Guessed()
		}
	}
}

// Propose implements [Guesser].
func (h *Head) Propose(_ []int32, n int, drafts []int32) []int32 {
	for _, g := range h.guesses[h.at:min(len(h.guesses), h.at+n)] {
		drafts = append(drafts, g.token)
	}
	return drafts
}

func (h *Head) chance(k int, p *Policy) (float64, bool) {
	if h.at+k >= len(h.guesses) {
		return 0, false
	}
	class := h.guesses[h.at+k].class
	return mixed(h.rates[class], p.all[class]), true
}

const (
	// askAgain is how many steps a request whose guesses do not pay is left alone before the head is asked again: what was not worth it may
	// have become so, and only guesses can tell.
	askAgain = 64
	// patience is how often in a row that may be in vain. Then the head reads no more of the request, which costs nothing from there on.
	patience = 4
	// followOneOf is how many requests begin before one is followed, while guesses are not worth it for any.
	followOneOf = 8
)

// Follow tells whether the head is to read what the request says. It is asked for every row; the first answer that it is not is final.
func (p *Policy) Follow(h *Head) bool {
	if !h.begun {
		h.begun = true
		if !p.eager && !p.asks(h, 1, 1, p.most) {
			p.turnedAway++
			h.off = p.turnedAway%followOneOf != 0
		}
	}
	return !h.off
}

// Ask is how many guesses the head should make of h behind a step, up to most: those for the step after it, which without them would
// have tokens from which expected are to come. It gives most, or 0 where guesses would not be worth what they and their verification cost.
func (p *Policy) Ask(h *Head, tokens int, expected float64, most int) int {
	most = min(most, p.most, len(p.costs)-1-tokens)
	switch {
	case h.off || most <= 0:
		return 0
	case p.eager:
		return most
	}
	if h.pause > 0 {
		h.pause--
		return 0
	}
	if _, ok := p.known(tokens, -1); !ok { // first of all, the price of none
		return 0
	}
	if p.asks(h, tokens, expected, most) {
		h.vain = 0
		return most
	}
	if h.pause = askAgain; !p.asks(h, 1, 1, most) {
		if h.vain++; h.vain > patience {
			h.off = true
			return 0
		}
	}
	return most
}

// asks tells that some number of guesses up to most is expected to be worth its price.
func (p *Policy) asks(h *Head, tokens int, expected float64, most int) bool {
	least := margin * expected / p.cost(tokens)
	chance, gain := 1.0, 0.0
	for k := range min(most, maxDepth) {
		chance *= mixed(h.depths[k], p.depths[k])
		gain += chance
		if (expected+gain)/(p.cost(tokens+k+1)+p.headCost) > least {
			return true
		}
	}
	return false
}

// HeadTook says that the head took d of a step to read it and to make the guesses of so many requests.
func (p *Policy) HeadTook(requests int, d time.Duration) {
	t := float64(d) / float64(requests)
	p.headSeen++
	switch {
	case p.headSeen == 1: // kernels are loaded, caches filled
	case p.headSeen == 2:
		p.headCost = t
	default: // a hiccup is no price
		p.headCost += (min(t, 2*p.headCost) - p.headCost) / 8
	}
}
