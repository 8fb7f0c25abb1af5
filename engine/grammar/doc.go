// Package grammar holds a model's output to a regular expression or a JSON Schema: it tells, token by token, which tokens may
// come next, as the bit masks that a backend's sampler takes.
//
// A specification is compiled to a pushdown automaton over bytes: rules that are deterministic and call each other where a
// schema refers to itself. What a place in a rule allows is worked out for the whole vocabulary once, on a trie of its tokens,
// and kept; only tokens that reach beyond the end of their rule depend on what surrounds it and are followed for the case at
// hand. Compile does the costly part, so that the masks of a running request take microseconds.
//
//	vocab := grammar.FromTokenizer(tok, modelVocabSize, eosIDs) // once for a model
//
//	g, err := grammar.Compile(grammar.Spec{JSONSchema: schema}, vocab) // where a request comes in; equal specs are compiled once
//	m := g.NewMatcher()                                                // one for each output
//
//	mask := make([]uint32, vocab.MaskWords())
//	for !m.Ended() {
//		m.Mask(mask)             // backend.Row.Mask of the step that samples the next token
//		token := sample(mask)    // end-of-sequence is allowed only when the value is complete
//		if err := m.Accept(token); err != nil { ... }
//	}
//
// # What is promised
//
// Every complete output satisfies the specification, whatever the model prefers. A keyword that cannot be followed is an error
// and never ignored; format is checked for the formats in formats.go and else a remark, as JSON Schema says. The converse does
// not hold: of the texts that satisfy a schema, some are left out to keep outputs in one form and finite. Properties come in the
// schema's order. Objects that list properties have no others unless additionalProperties says so. Where no type is given, the
// keywords imply one. oneOf is taken as anyOf. White space is none, a blank, or a line end with at most 16 blanks. Numbers have
// at most 18 digits a part and an exponent of two; those with bounds have none. Text under a pattern, and the keys of further
// properties, are escaped only where JSON demands it. Patterns are in Go's syntax (RE2) with ^ and $ at their ends only.
package grammar
