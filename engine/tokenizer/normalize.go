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

func unicodeForm(form norm.Form) normalizer {
	return func(s string) string {
		if form.IsNormalString(s) {
			return s
		}
		if longCombining(s) {
			return normalizeUnbounded(s, form)
		}
		return form.String(s)
	}
}

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

// lowercase is rune by rune, with no regard to context; only U+0130 becomes two runes.
func lowercase(s string) string {
	return strings.ToLower(strings.ReplaceAll(s, "\u0130", "i\u0307"))
}

func stripAccents(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.Is(unicode.Mn, r) {
			return -1
		}
		return r
	}, s)
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
