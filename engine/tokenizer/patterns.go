package tokenizer

import "unicode/utf8"

// span is a piece of a text, text[start:end].
type span struct{ start, end int }

// matcher appends the matches of a pattern in s to dst, left to right, shifted by base. s is valid UTF-8.
type matcher func(s string, base int, dst []span) []span

// The patterns of the model families. Each has a hand-written matcher, linear in the text; any other pattern runs on regexp2
// (see regex.go), and a test holds the two to the same matches.
const (
	patternGPT2   = `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
	patternLlama3 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternQwen2  = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	// patternQwen35 counts combining marks among the letters.
	patternQwen35 = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	// patternTekken is that of Mistral's byte-level tokenizers, patternO200k that of GPT-4o.
	patternTekken = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	patternO200k  = `[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+`
)

// knownPattern returns the hand-written matcher of pattern, or nil.
func knownPattern(pattern string) matcher {
	t := runeClasses()
	switch pattern {
	case patternGPT2:
		return t.gpt2
	case patternLlama3:
		return func(s string, base int, dst []span) []span { return t.words(s, base, dst, classLetter, 3) }
	case patternQwen2:
		return func(s string, base int, dst []span) []span { return t.words(s, base, dst, classLetter, 1) }
	case patternQwen35:
		return func(s string, base int, dst []span) []span {
			return t.words(s, base, dst, classLetter|classMark, 1)
		}
	case patternTekken:
		return func(s string, base int, dst []span) []span { return t.casedWords(s, base, dst, 1, false) }
	case patternO200k:
		return func(s string, base int, dst []span) []span { return t.casedWords(s, base, dst, 3, true) }
	case `\p{N}`:
		return func(s string, base int, dst []span) []span { return t.numbers(s, base, dst, 1) }
	case `\p{N}{1,3}`:
		return func(s string, base int, dst []span) []span { return t.numbers(s, base, dst, 3) }
	}
	return nil
}

// at returns the class of the rune at s[i:] and where the next rune starts. At the end it returns 0, i.
func (t *classTable) at(s string, i int) (class uint8, next int) {
	if i >= len(s) {
		return 0, i
	}
	if c := s[i]; c < utf8.RuneSelf {
		return t.ascii[c], i + 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	return t.of(r), i + n
}

// run returns the end of the run of runes from i on that have a class of mask.
func (t *classTable) run(s string, i int, mask uint8) int {
	for i < len(s) {
		class, next := t.at(s, i)
		if class&mask == 0 {
			break
		}
		i = next
	}
	return i
}

// runOther returns the end of the run of runes from i on that have no class of mask.
func (t *classTable) runOther(s string, i int, mask uint8) int {
	for i < len(s) {
		class, next := t.at(s, i)
		if class&mask != 0 {
			break
		}
		i = next
	}
	return i
}

// blanks returns the end of what `\s+(?!\S)|\s+` matches at i, where a space is: the run of spaces, less its last one
// if something follows that can take a space in front of it. With newlines it is `\s*[\r\n]+|\s+(?!\S)|\s+`.
func (t *classTable) blanks(s string, i int, newlines bool) int {
	last, newline, end := i, -1, i
	for end < len(s) {
		class, next := t.at(s, end)
		if class&classSpace == 0 {
			break
		}
		if class&classNewline != 0 {
			newline = next
		}
		last, end = end, next
	}
	if newlines && newline >= 0 {
		return newline
	}
	if end < len(s) && last > i {
		return last
	}
	return end
}

func (t *classTable) gpt2(s string, base int, dst []span) []span {
	const known = classLetter | classNumber | classSpace
	for i := 0; i < len(s); {
		end := contraction(s, i, false)
		if end == i {
			start := i
			if s[i] == ' ' {
				start++
			}
			class, next := t.at(s, start)
			switch {
			case start == len(s) || class&classSpace != 0:
				end = t.blanks(s, i, false)
			case class&classLetter != 0:
				end = t.run(s, next, classLetter)
			case class&classNumber != 0:
				end = t.run(s, next, classNumber)
			default:
				end = t.runOther(s, next, known)
			}
		}
		dst = append(dst, span{base + i, base + end})
		i = end
	}
	return dst
}

// words matches patternLlama3 and its kin: letters is what counts as a letter, digits how many numbers stay together.
func (t *classTable) words(s string, base int, dst []span, letters uint8, digits int) []span {
	known := letters | classNumber | classSpace
	for i := 0; i < len(s); {
		end := contraction(s, i, true)
		if end == i {
			class, next := t.at(s, i)
			after, afterNext := t.at(s, next)
			switch {
			// [^\r\n\p{L}\p{N}]?[letters]+ : the optional rune comes first where it can.
			case class&(classLetter|classNumber|classNewline) == 0 && after&letters != 0:
				end = t.run(s, afterNext, letters)
			case class&letters != 0:
				end = t.run(s, next, letters)
			case class&classNumber != 0:
				end = t.upTo(s, i, classNumber, digits)
			case class&known == 0:
				end = t.run(s, t.runOther(s, next, known), classNewline)
			case s[i] == ' ' && next < len(s) && after&known == 0:
				end = t.run(s, t.runOther(s, afterNext, known), classNewline)
			default:
				end = t.blanks(s, i, true)
			}
		}
		dst = append(dst, span{base + i, base + end})
		i = end
	}
	return dst
}

// casedWords matches patternTekken and patternO200k.
func (t *classTable) casedWords(s string, base int, dst []span, digits int, contractions bool) []span {
	const known = classLetter | classNumber | classSpace
	for i := 0; i < len(s); {
		class, next := t.at(s, i)
		// Each alternative is tried with the optional rune in front, then without it.
		prefix := class&(classLetter|classNumber|classNewline) == 0
		end := -1
		if prefix {
			end = t.upperLower(s, next)
		}
		if end < 0 {
			end = t.upperLower(s, i)
		}
		if end < 0 && prefix {
			if end = t.run(s, next, classUpper); end == next {
				end = -1
			}
		}
		if end < 0 {
			end = t.run(s, i, classUpper)
		}
		switch {
		case end > i:
			if contractions {
				end = contraction(s, end, true)
			}
		case class&classNumber != 0:
			end = t.upTo(s, i, classNumber, digits)
		default:
			start := i
			if s[i] == ' ' {
				start = next
			}
			if other, n := t.at(s, start); start < len(s) && other&known == 0 {
				end = t.runOther(s, n, known)
				for end < len(s) && (s[end] == '\r' || s[end] == '\n' || s[end] == '/') {
					end++
				}
			} else {
				end = t.blanks(s, i, true)
			}
		}
		dst = append(dst, span{base + i, base + end})
		i = end
	}
	return dst
}

// upperLower returns the end of [upper]*[lower]+ at i, or -1. Runes that are in both classes make it give back some.
func (t *classTable) upperLower(s string, i int) int {
	upper, lower := i, -1 // end of the run of uppers; end of its last rune that may also stand among the lowers
	for upper < len(s) {
		class, next := t.at(s, upper)
		if class&classUpper == 0 {
			break
		}
		if class&classLower != 0 {
			lower = next
		}
		upper = next
	}
	if end := t.run(s, upper, classLower); end > upper {
		return end
	}
	return lower
}

func (t *classTable) numbers(s string, base int, dst []span, most int) []span {
	for i := 0; i < len(s); {
		i = t.runOther(s, i, classNumber)
		if i < len(s) {
			end := t.upTo(s, i, classNumber, most)
			dst = append(dst, span{base + i, base + end})
			i = end
		}
	}
	return dst
}

// upTo returns the end of a run of at most n runes of a class of mask.
func (t *classTable) upTo(s string, i int, mask uint8, n int) int {
	for ; n > 0; n-- {
		class, next := t.at(s, i)
		if class&mask == 0 {
			break
		}
		i = next
	}
	return i
}

// contraction returns the end of 's, 't, 're, 've, 'm, 'll or 'd at i, or i. Without regard to case it also takes U+017F,
// which folds to s.
func contraction(s string, i int, fold bool) int {
	if i >= len(s) || s[i] != '\'' || i+1 >= len(s) {
		return i
	}
	lower := func(i int) byte {
		c := s[i]
		if fold && 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		return c
	}
	second := byte('e')
	switch lower(i + 1) {
	case 's', 't', 'm', 'd':
		return i + 2
	case 'l':
		second = 'l'
		fallthrough
	case 'r', 'v':
		if i+2 < len(s) && lower(i+2) == second {
			return i + 3
		}
	case 0xC5: // U+017F is C5 BF
		if fold && i+2 < len(s) && s[i+2] == 0xBF {
			return i + 3
		}
	}
	return i
}
