package tokenizer

import (
	"strings"
	"unicode"
)

// fromOniguruma rewrites a pattern from the syntax and meaning of Oniguruma to those of regexp2 where they differ: classes
// know what Unicode 16 assigned, \w takes what is alphabetic and all marks, and possessive quantifiers become atomic groups. What is not
// known stays as it is.
func fromOniguruma(pattern string) string {
	w := onigWriter{}
	for i := 0; i < len(pattern); {
		i += w.item(pattern[i:])
	}
	return string(w.out)
}

type onigWriter struct {
	out     []byte
	inClass bool
	groups  []int // where open groups begin in out
	atom    int   // where the last atom begins in out
	counted bool  // the last atom has its quantifier
}

// item writes what p begins with and returns its length.
func (w *onigWriter) item(p string) int {
	if p[0] == '\\' && len(p) > 1 {
		n := 2
		if (p[1] == 'p' || p[1] == 'P') && len(p) > 2 && p[2] == '{' {
			if end := strings.IndexByte(p, '}'); end > 0 {
				n = end + 1
			}
		}
		w.begin()
		w.escape(p[:n])
		return n
	}
	if w.inClass {
		w.out = append(w.out, p[0])
		w.inClass = p[0] != ']'
		return 1
	}
	switch c := p[0]; c {
	case '[':
		w.begin()
		w.inClass = true
		n := 1
		if strings.HasPrefix(p, "[^") {
			n = 2
		}
		if len(p) > n && p[n] == ']' { // a bracket that comes first stands for itself
			w.out = append(w.out, p[:n]...)
			w.out = append(w.out, '\\', ']')
			return n + 1
		}
		w.out = append(w.out, p[:n]...)
		return n
	case '(':
		w.begin()
		w.groups = append(w.groups, len(w.out))
	case ')':
		if n := len(w.groups); n > 0 {
			w.atom, w.counted = w.groups[n-1], false
			w.groups = w.groups[:n-1]
		}
	case '+', '*', '?':
		if c == '+' && w.counted && w.possessive() {
			return 1
		}
		w.counted = true
	case '{', '}', ',':
		w.counted = false
	default:
		w.begin()
	}
	w.out = append(w.out, p[0])
	return 1
}

func (w *onigWriter) begin() {
	if !w.inClass {
		w.atom, w.counted = len(w.out), false
	}
}

// possessive makes the last atom and its quantifier atomic, unless that quantifier is lazy.
func (w *onigWriter) possessive() bool {
	atom := string(w.out[w.atom:])
	w.out = append(append(append(w.out[:w.atom], "(?>"...), atom...), ')')
	w.counted = false
	return true
}

// wordClasses is what \w takes, beside the circled and squared letters of circledLetters.
var wordClasses = []string{"L", "M", "Nd", "Nl", "Pc"}

const circledLetters = "\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189"

func (w *onigWriter) escape(s string) {
	names, negated := []string(nil), false
	switch {
	case s == `\w` || s == `\W`:
		names, negated = wordClasses, s == `\W`
	case len(s) > 4 && s[2] == '{':
		names, negated = []string{s[3 : len(s)-1]}, s[1] == 'P'
	}
	var class strings.Builder
	for _, name := range names {
		if _, ok := unicode.Categories[name]; !ok {
			w.out = append(w.out, s...) // a script or the like
			return
		}
		class.WriteString(`\p{` + name + `}`)
		for _, part := range unicode16Parts(name) {
			for _, r := range unicode16[part].R32 {
				class.WriteRune(rune(r.Lo))
				class.WriteByte('-')
				class.WriteRune(rune(r.Hi))
			}
		}
	}
	if len(names) == len(wordClasses) {
		class.WriteString(circledLetters)
	}
	switch {
	case names == nil, w.inClass && negated:
		w.out = append(w.out, s...)
	case w.inClass:
		w.out = append(w.out, class.String()...)
	case negated:
		w.out = append(w.out, "[^"+class.String()+"]"...)
	default:
		w.out = append(w.out, "["+class.String()+"]"...)
	}
}

// unicode16Parts returns the keys of unicode16 that make up a category.
func unicode16Parts(name string) []string {
	switch name {
	case "L":
		return []string{"Lu", "Ll", "Lm", "Lo"}
	case "Lu", "Ll", "Lm", "Lo", "M", "N", "P", "S":
		return []string{name}
	case "Nd":
		return []string{"N"} // all that Unicode 16 added are decimal digits
	}
	return nil
}
