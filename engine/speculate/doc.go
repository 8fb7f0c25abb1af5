// Package speculate proposes draft tokens for speculative decoding, and decides how many of them pay. It is pure logic over token ids and
// durations that it is told: no goroutine, no clock, no device.
//
// A [Sequence] finds the end of one request's tokens, prompt and output together, earlier in them, and guesses that what followed then
// follows now. It notes with each token whether its guess was right, also when nobody verifies guesses: so what a guess is worth is
// known before it costs anything, and text that begins to repeat is seen as soon as it does.
//
// A [Head] keeps the guesses of a draft head, which the device makes when it is asked to, with how sure the head was of each.
//
// A [Policy] knows what steps of so many tokens take, as measured, and so how many drafts raise the tokens a second, and whether a draft head
// is worth asking.
//
//	q := speculate.NewSequence(speculate.Match{Min: 2, Max: 12}, prompt)
//	n := policy.Drafts(q, rows, expected, most)
//	drafts = q.Propose(tokens, n, drafts[:0])
//	... verify them in one step ...
//	q.Extend(tokens) // with what the step gave
package speculate
