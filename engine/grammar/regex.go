package grammar

import (
	"fmt"
	"regexp/syntax"
	"unicode"
	"unicode/utf8"
)

// runeWriter adds the edges for one rune of lo..hi behind state from, and returns the state behind it.
type runeWriter func(n *nfa, from int32, ranges []rune) int32

// parseRegex parses Go's syntax (RE2).
func parseRegex(pattern string) (*syntax.Regexp, error) {
	re, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		return nil, &Error{Problem: fmt.Sprintf("regular expression: %v", err)}
	}
	return re, nil
}

// regexBuilder adds regular expressions to an nfa.
type regexBuilder struct {
	n     *nfa
	runes runeWriter
}

// whole adds re as a match of the whole text: ^ may stand at its beginning and $ at its end, to no effect.
func (b *regexBuilder) whole(re *syntax.Regexp, from int32) (int32, error) {
	return b.add(re.Simplify(), from, true, true)
}

// anywhere adds re as a match anywhere in the text, as JSON Schema's pattern is: what is not anchored may have any text
// beside it.
func (b *regexBuilder) anywhere(re *syntax.Regexp, from int32) (int32, error) {
	re = re.Simplify()
	for re.Op == syntax.OpCapture {
		re = re.Sub[0]
	}
	branches := []*syntax.Regexp{re}
	if re.Op == syntax.OpAlternate {
		branches = re.Sub
	}
	end := b.n.state()
	for _, branch := range branches {
		at := b.n.state()
		b.n.link(from, at)
		if !anchored(branch, syntax.OpBeginText, false) {
			at = b.any(at)
		}
		at, err := b.add(branch, at, true, true)
		if err != nil {
			return 0, err
		}
		if !anchored(branch, syntax.OpEndText, true) {
			at = b.any(at)
		}
		b.n.link(at, end)
	}
	return end, nil
}

// anchored tells if re begins (or, fromEnd, ends) with op.
func anchored(re *syntax.Regexp, op syntax.Op, fromEnd bool) bool {
	switch re.Op {
	case op:
		return true
	case syntax.OpCapture:
		return anchored(re.Sub[0], op, fromEnd)
	case syntax.OpConcat:
		if fromEnd {
			return anchored(re.Sub[len(re.Sub)-1], op, fromEnd)
		}
		return anchored(re.Sub[0], op, fromEnd)
	case syntax.OpAlternate:
		for _, sub := range re.Sub {
			if !anchored(sub, op, fromEnd) {
				return false
			}
		}
		return true
	}
	return false
}

// any adds any text.
func (b *regexBuilder) any(from int32) int32 {
	at := b.n.state()
	b.n.link(from, at)
	b.n.link(b.runes(b.n, at, []rune{0, unicode.MaxRune}), at)
	return at
}

// add appends re. first and last tell if it stands at the beginning and at the end of the text, where anchors may.
func (b *regexBuilder) add(re *syntax.Regexp, from int32, first, last bool) (int32, error) {
	if b.n.limit.exceeded() {
		return 0, b.n.limit.err
	}
	switch re.Op {
	case syntax.OpEmptyMatch:
		return from, nil
	case syntax.OpNoMatch:
		return b.n.state(), nil // nothing leads there
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			from = b.runes(b.n, from, foldedRune(r, re.Flags&syntax.FoldCase != 0))
		}
		return from, nil
	case syntax.OpCharClass:
		return b.runes(b.n, from, re.Rune), nil
	case syntax.OpAnyCharNotNL:
		return b.runes(b.n, from, []rune{0, '\n' - 1, '\n' + 1, unicode.MaxRune}), nil
	case syntax.OpAnyChar:
		return b.runes(b.n, from, []rune{0, unicode.MaxRune}), nil
	case syntax.OpCapture:
		return b.add(re.Sub[0], from, first, last)
	case syntax.OpConcat:
		for i, sub := range re.Sub {
			var err error
			if from, err = b.add(sub, from, first && i == 0, last && i == len(re.Sub)-1); err != nil {
				return 0, err
			}
		}
		return from, nil
	case syntax.OpAlternate:
		end := b.n.state()
		for _, sub := range re.Sub {
			at := b.n.state()
			b.n.link(from, at)
			at, err := b.add(sub, at, first, last)
			if err != nil {
				return 0, err
			}
			b.n.link(at, end)
		}
		return end, nil
	case syntax.OpQuest, syntax.OpStar, syntax.OpPlus:
		begin, end := b.n.state(), b.n.state()
		b.n.link(from, begin)
		at, err := b.add(re.Sub[0], begin, false, false)
		if err != nil {
			return 0, err
		}
		b.n.link(at, end)
		if re.Op != syntax.OpQuest {
			b.n.link(at, begin)
		}
		if re.Op != syntax.OpPlus {
			b.n.link(from, end)
		}
		return end, nil
	case syntax.OpBeginText:
		if first {
			return from, nil
		}
	case syntax.OpEndText:
		if last {
			return from, nil
		}
	}
	return 0, &Error{Problem: fmt.Sprintf("regular expression: %q is not supported: ^ and $ only at the two ends, no \\b, no line anchors", re)}
}

// foldedRune returns r as a class: with the runes that are the same but for case, if fold.
func foldedRune(r rune, fold bool) []rune {
	class := []rune{r, r}
	if fold {
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			class = append(class, f, f)
		}
	}
	return class
}

// writeUTF8 is a runeWriter for plain text. Surrogates, which no UTF-8 holds, are left out.
func writeUTF8(n *nfa, from int32, ranges []rune) int32 {
	to := n.state()
	for i := 0; i < len(ranges); i += 2 {
		addRange(n, from, to, ranges[i], ranges[i+1])
	}
	return to
}

// addRange adds edges for the UTF-8 of lo..hi.
func addRange(n *nfa, from, to int32, lo, hi rune) {
	const surrogates, afterSurrogates = 0xD800, 0xE000
	if lo < surrogates && hi >= surrogates {
		addRange(n, from, to, lo, surrogates-1)
		lo = surrogates
	}
	if lo >= surrogates && lo < afterSurrogates {
		lo = afterSurrogates
	}
	for _, last := range []rune{0x7f, 0x7ff, 0xffff} {
		if lo <= last && hi > last {
			addRange(n, from, to, lo, last)
			lo = last + 1
		}
	}
	if lo > hi {
		return
	}
	var a, b [utf8.UTFMax]byte
	size := utf8.EncodeRune(a[:], lo)
	utf8.EncodeRune(b[:], hi)
	addSequence(n, from, to, a[:size], b[:size])
}

// addSequence adds edges for all sequences between lo and hi, of one length, whose bytes but the first are continuations.
func addSequence(n *nfa, from, to int32, lo, hi []byte) {
	if len(lo) == 1 {
		n.edge(from, lo[0], hi[0], to)
		return
	}
	if lo[0] == hi[0] {
		addSequence(n, n.bytes(from, lo[0], lo[0]), to, lo[1:], hi[1:])
		return
	}
	low, high := continuations(0x80, len(lo)-1), continuations(0xBF, len(lo)-1)
	first, last := lo[0], hi[0]
	if string(lo[1:]) != string(low) {
		addSequence(n, n.bytes(from, first, first), to, lo[1:], high)
		first++
	}
	if string(hi[1:]) != string(high) {
		addSequence(n, n.bytes(from, last, last), to, low, hi[1:])
		last--
	}
	if first <= last {
		addSequence(n, n.bytes(from, first, last), to, low, high)
	}
}

func continuations(b byte, n int) []byte {
	return []byte{b, b, b}[:n]
}
