package tokenizer

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dlclark/regexp2/v2"
	"golang.org/x/text/unicode/norm"
)

// normalizer rewrites a text before it is cut.
type normalizer func(s string) string

// unicodeForm is one of Unicode's normal forms, as the Hugging Face library has it: its tables are those of Unicode 9, so what
// came later neither decomposes nor moves.
func unicodeForm(form norm.Form) normalizer {
	return func(s string) string {
		if form.IsNormalString(s) {
			return s
		}
		var b strings.Builder
		b.Grow(len(s))
		start := 0
		for i, r := range s {
			if r >= 0x7fd && unicode.Is(afterUnicode9, r) {
				b.WriteString(normalizePart(s[start:i], form))
				b.WriteRune(r)
				start = i + utf8.RuneLen(r)
			}
		}
		b.WriteString(normalizePart(s[start:], form))
		return b.String()
	}
}

func normalizePart(s string, form norm.Form) string {
	if longCombining(s) {
		return normalizeUnbounded(s, form)
	}
	return form.String(s)
}

// afterUnicode9 holds the runes that package norm (Unicode 15) decomposes, composes or moves and Unicode 9 does not.
var afterUnicode9 = ranges(
	0x7fd, 0x7fd, 0x898, 0x89f, 0x8ca, 0x8d3, 0x9fe, 0x9fe, 0xc3c, 0xc3c, 0xd3b, 0xd3c, 0xeba, 0xeba, 0x1715, 0x1715, 0x1abf, 0x1ace,
	0x1df6, 0x1dfa, 0x32ff, 0x32ff, 0xa7f2, 0xa7f4, 0xa82c, 0xa82c, 0xab69, 0xab69, 0x10781, 0x10785, 0x10787, 0x107b0, 0x107b2, 0x107ba,
	0x10d24, 0x10d27, 0x10eab, 0x10eac, 0x10efd, 0x10eff, 0x10f46, 0x10f50, 0x10f82, 0x10f85, 0x11070, 0x11070, 0x1133b, 0x1133b,
	0x1145e, 0x1145e, 0x11839, 0x1183a, 0x11930, 0x11930, 0x11938, 0x11938, 0x1193d, 0x1193e, 0x11943, 0x11943, 0x119e0, 0x119e0,
	0x11a34, 0x11a34, 0x11a47, 0x11a47, 0x11a99, 0x11a99, 0x11d42, 0x11d42, 0x11d44, 0x11d45, 0x11d97, 0x11d97, 0x11f41, 0x11f42,
	0x16ff0, 0x16ff1, 0x1e030, 0x1e06d, 0x1e08f, 0x1e08f, 0x1e130, 0x1e136, 0x1e2ae, 0x1e2ae, 0x1e2ec, 0x1e2ef, 0x1e4ec, 0x1e4ef,
	0x1f16c, 0x1f16c, 0x1fbf0, 0x1fbf9)

// maxCombining is the number of combining marks in a row after which package norm puts in a joiner of its own (Unicode's
// stream-safe form), which other libraries do not.
const maxCombining = 30

// longCombining tells if s holds a run of marks that package norm would break up. It may err on the safe side.
func longCombining(s string) bool {
	run := 0
	for i := 0; i < len(s); {
		if s[i] < utf8.RuneSelf {
			run = 0
			i++
			continue
		}
		p := norm.NFKD.PropertiesString(s[i:])
		i += max(1, p.Size())
		if p.CCC() == 0 && len(p.Decomposition()) == 0 {
			run = 0
			continue
		}
		// A decomposition may end in several marks: 3 in Unicode, at most.
		if run += 4; run > maxCombining {
			return true
		}
	}
	return false
}

// normalizeUnbounded follows the definition, whatever the number of marks: decompose, put marks in order, compose.
func normalizeUnbounded(s string, form norm.Form) string {
	decompose, composes := norm.NFD, form == norm.NFC || form == norm.NFKC
	if form == norm.NFKC || form == norm.NFKD {
		decompose = norm.NFKD
	}
	type mark struct {
		r   rune
		ccc uint8
	}
	var all []mark
	for _, r := range s {
		for _, d := range decompose.String(string(r)) {
			all = append(all, mark{d, norm.NFD.PropertiesString(string(d)).CCC()})
		}
	}
	// Marks with a class move before those of a higher one; equal classes keep their order. Counting keeps it linear.
	for i := 0; i < len(all); {
		if all[i].ccc == 0 {
			i++
			continue
		}
		end := i
		for end < len(all) && all[end].ccc != 0 {
			end++
		}
		var buckets [256][]mark
		for _, m := range all[i:end] {
			buckets[m.ccc] = append(buckets[m.ccc], m)
		}
		at := i
		for _, b := range buckets {
			at += copy(all[at:], b)
		}
		i = end
	}
	if composes {
		starter, lastClass, out := -1, -1, all[:0]
		for _, m := range all {
			if starter >= 0 && (lastClass < int(m.ccc) || lastClass == -1) {
				pair := []rune(norm.NFC.String(string(out[starter].r) + string(m.r)))
				if len(pair) == 1 {
					out[starter].r = pair[0]
					continue
				}
			}
			out = append(out, m)
			if m.ccc == 0 {
				starter, lastClass = len(out)-1, -1
			} else {
				lastClass = int(m.ccc)
			}
		}
		all = out
	}
	var b strings.Builder
	for _, m := range all {
		b.WriteRune(m.r)
	}
	return b.String()
}

// lowercase is rune by rune, with no regard to context; only U+0130 becomes two runes. The library knows Unicode 17.
func lowercase(s string) string {
	return strings.Map(lower17, strings.ToLower(strings.ReplaceAll(s, "\u0130", "i\u0307")))
}

// lower17 adds what package unicode (15) does not know.
func lower17(r rune) rune {
	switch {
	case r < 0x1c89:
		return r
	case r >= 0x10d50 && r <= 0x10d65:
		return r + 0x20
	case r >= 0x16ea0 && r <= 0x16eb8:
		return r + 0x1b
	}
	switch r {
	case 0x1c89, 0xa7cc, 0xa7ce, 0xa7d2, 0xa7d4, 0xa7da:
		return r + 1
	case 0xa7cb:
		return 0x264
	case 0xa7dc:
		return 0x19b
	}
	return r
}

func prepend(prefix string) normalizer {
	return func(s string) string {
		if s == "" {
			return s
		}
		return prefix + s
	}
}

func replaceLiteral(old, with string) normalizer {
	return func(s string) string {
		if old == "" {
			return s
		}
		return strings.ReplaceAll(s, old, with)
	}
}

func replaceRegex(re *regexp2.Regexp, with string) normalizer {
	return func(s string) string {
		found, err := re.FindAllStringIndex(s, -1)
		if err != nil || len(found) == 0 {
			return s
		}
		var b strings.Builder
		at := 0
		for _, m := range found {
			if m[0] == m[1] {
				continue
			}
			b.WriteString(s[at:m[0]])
			b.WriteString(with)
			at = m[1]
		}
		b.WriteString(s[at:])
		return b.String()
	}
}

func stripSpace(left, right bool) normalizer {
	isSpace := func(r rune) bool { return unicode.Is(unicode.White_Space, r) }
	return func(s string) string {
		if left {
			s = strings.TrimLeftFunc(s, isSpace)
		}
		if right {
			s = strings.TrimRightFunc(s, isSpace)
		}
		return s
	}
}
