package speculate

// Guesser guesses how one request goes on: a [Sequence] by what it said before, a [Head] by what a draft head expects. It notes of each
// token whether its guess was right, also when nobody verifies guesses: so what a guess is worth is known before it costs anything.
type Guesser interface {
	// Extend takes note of what was appended to tokens.
	Extend(tokens []int32, p *Policy)
	// Propose appends the next n guesses to drafts, or as many as there are.
	Propose(tokens []int32, n int, drafts []int32) []int32
	// chance is how likely guess k, from 0, is right if all before it are; false where there is no such guess.
	chance(k int, p *Policy) (float64, bool)
}

var (
	_ Guesser = (*Sequence)(nil)
	_ Guesser = (*Head)(nil)
)
