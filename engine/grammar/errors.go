package grammar

import (
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Error tells why a grammar cannot be compiled or a token not be accepted. Where is a JSON pointer into the schema, or "" for
// a regular expression.
type Error struct{ Where, Problem string }

// Error is one line, whatever the specification holds that it quotes.
func (e *Error) Error() string {
	text := e.Problem
	if e.Where != "" {
		text = e.Where + ": " + text
	}
	if strings.ContainsFunc(text, unicode.IsControl) {
		quoted := strconv.Quote(text)
		return quoted[1 : len(quoted)-1]
	}
	return text
}

// Limits of one grammar. A specification beyond them is refused with an *Error.
const (
	maxSpec        = 256 << 10 // bytes of a schema or regular expression
	maxSchemaDepth = 64        // of schemas within schemas
	maxStates      = 200_000   // of all automata together, before and after they are made deterministic
	maxTime        = 2 * time.Second
	maxItems       = 10_000 // of an array whose length is bounded; longer ones are cut to this
	maxStringRunes = 5_000  // of a string whose length is bounded; longer ones are cut to this
	maxDigits      = 18     // of a number, in front of the point and behind it
	maxMerges      = 10_000 // of schemas by allOf, $ref and alternatives
	maxPlaces      = 1_000  // that an ambiguous grammar may be in at once
)
