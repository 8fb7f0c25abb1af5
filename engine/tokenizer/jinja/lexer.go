package jinja

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// segment is a piece of a template: text, the inside of {{ }} or of {% %}.
type segment struct {
	kind byte // 't', '{' or '%'
	text string
	line int
}

// segments cuts a template. White space goes as Jinja takes it with trim_blocks and lstrip_blocks; comments are gone.
func segments(source string) ([]segment, error) {
	source = strings.ReplaceAll(strings.ReplaceAll(source, "\r\n", "\n"), "\r", "\n")
	l := segmenter{rest: strings.TrimSuffix(source, "\n"), lineStart: true, line: 1}
	for l.rest != "" {
		before := len(l.rest)
		at := l.rest
		if err := l.next(); err != nil {
			return nil, &lineError{l.line, err}
		}
		l.line += strings.Count(at[:before-len(l.rest)], "\n")
	}
	return l.out, nil
}

type segmenter struct {
	rest      string
	line      int
	lineStart bool // what was taken last ended a line
	out       []segment
}

// next takes the text up to a tag and the tag.
func (l *segmenter) next() error {
	at, open := tagStart(l.rest)
	if at < 0 {
		l.text(l.rest)
		l.rest = ""
		return nil
	}
	text := l.rest[:at]
	line := l.line + strings.Count(text, "\n")
	l.rest = l.rest[at+2:]
	flag := l.flag()
	l.text(l.trimmedRight(text, open, flag))

	length := tagLength(l.rest, open)
	if length < 0 {
		return fmt.Errorf("%s is not closed", open)
	}
	inner := l.rest[:length]
	l.rest = l.rest[length:]
	keep := strings.HasSuffix(inner, "+") && open != "{{"
	strip := strings.HasSuffix(inner, "-")
	if keep || strip {
		inner = inner[:len(inner)-1]
	}
	if open == "{%" && strings.TrimSpace(inner) == "raw" {
		l.close(strip, true)
		return l.raw()
	}
	l.close(strip, keep || open == "{{")
	if open != "{#" {
		l.out = append(l.out, segment{open[1], inner, line})
	}
	return nil
}

// raw takes what stands up to endraw as text.
func (l *segmenter) raw() error {
	found := endRaw.FindStringSubmatchIndex(l.rest)
	if found == nil {
		return errors.New("raw is not closed")
	}
	flag := l.rest[found[2]:found[3]]
	end := l.rest[found[4]:found[5]]
	l.text(l.trimmedRight(l.rest[:found[0]], "{%", flag))
	l.rest = l.rest[found[5]:]
	l.close(end == "-", end == "+")
	return nil
}

var endRaw = regexp.MustCompile(`\{%([-+]?)\s*endraw\s*([-+]?)%\}`)

// flag takes the - or + behind the opening of a tag.
func (l *segmenter) flag() string {
	if l.rest != "" && (l.rest[0] == '-' || l.rest[0] == '+') {
		flag := l.rest[:1]
		l.rest = l.rest[1:]
		return flag
	}
	return ""
}

// trimmedRight is text as the tag behind it leaves it.
func (l *segmenter) trimmedRight(text, open, flag string) string {
	if flag == "-" {
		return strings.TrimRightFunc(text, unicode.IsSpace)
	}
	if open == "{{" || flag == "+" {
		return text
	}
	line := strings.LastIndexByte(text, '\n') + 1
	if (line > 0 || l.lineStart) && strings.TrimSpace(text[line:]) == "" {
		return text[:line]
	}
	return text
}

// close takes the end of a tag and the white space that goes with it: all with strip, else one line end unless keep.
func (l *segmenter) close(strip, keep bool) {
	before := l.rest
	l.rest = l.rest[2:]
	switch {
	case strip:
		l.rest = strings.TrimLeftFunc(l.rest, unicode.IsSpace)
	case !keep:
		l.rest = strings.TrimPrefix(l.rest, "\n")
	}
	l.lineStart = before[len(before)-len(l.rest)-1] == '\n'
}

func (l *segmenter) text(s string) {
	if s != "" {
		l.out = append(l.out, segment{'t', s, l.line})
	}
}

func tagStart(s string) (at int, open string) {
	for i := 0; i+1 < len(s); i++ {
		if s[i] == '{' && (s[i+1] == '{' || s[i+1] == '%' || s[i+1] == '#') {
			return i, s[i : i+2]
		}
	}
	return -1, ""
}

// tagLength returns where the tag ends whose inside s begins with. Quotes and inner braces hide an end, but not in comments.
func tagLength(s, open string) int {
	shut := map[string]string{"{{": "}}", "{%": "%}", "{#": "#}"}[open]
	if open == "{#" {
		return strings.Index(s, shut)
	}
	braces := 0
	for i := 0; i < len(s); i++ {
		if braces == 0 && strings.HasPrefix(s[i:], shut) {
			return i
		}
		switch s[i] {
		case '\'', '"':
			end := quoteEnd(s, i)
			if end == len(s) {
				return -1
			}
			i = end
		case '{':
			braces++
		case '}':
			braces = max(0, braces-1)
		}
	}
	return -1
}

// quoteEnd returns the index of the quote that closes the one at i, or len(s).
func quoteEnd(s string, i int) int {
	quote := s[i]
	for i++; i < len(s) && s[i] != quote; i++ {
		if s[i] == '\\' {
			i++
		}
	}
	return min(i, len(s))
}

// token is a word of an expression.
type token struct {
	kind  byte // 'n' name, 'v' literal, 's' string, 'o' operator, 0 end
	text  string
	value Value // of a literal or string
}

// Operators, the longer ones first.
var operators = []string{"**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", ".", ",", ":", "|", "(", ")", "[", "]", "{", "}"}

func tokens(s string) ([]token, error) {
	var out []token
next:
	for {
		s = strings.TrimLeft(s, " \t\r\n\v\f")
		if s == "" {
			return append(out, token{}), nil
		}
		if len(out) == maxTokens {
			return nil, fmt.Errorf("a tag of more than %d words", maxTokens)
		}
		switch c := s[0]; {
		case c == '\'' || c == '"':
			end := quoteEnd(s, 0)
			if end == len(s) {
				return nil, errors.New("a string is not closed")
			}
			out = append(out, token{'s', s[:end+1], unescape(s[1:end])})
			s = s[end+1:]
			continue
		case c >= '0' && c <= '9':
			text := number.FindString(s)
			v, err := numberValue(text)
			if err != nil {
				return nil, err
			}
			out = append(out, token{'v', text, v})
			s = s[len(text):]
			continue
		}
		if name := leadingName(s); name != "" {
			out = append(out, token{kind: 'n', text: name})
			s = s[len(name):]
			continue
		}
		for _, o := range operators {
			if strings.HasPrefix(s, o) {
				out = append(out, token{kind: 'o', text: o})
				s = s[len(o):]
				continue next
			}
		}
		r, _ := utf8.DecodeRuneInString(s)
		return nil, fmt.Errorf("unexpected %q", r)
	}
}

var number = regexp.MustCompile(`^(0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|[0-9][0-9_]*(\.[0-9][0-9_]*)?([eE][-+]?[0-9]+)?)`)

func numberValue(text string) (Value, error) {
	plain := strings.ReplaceAll(text, "_", "")
	if i, err := strconv.ParseInt(plain, 0, 64); err == nil {
		return i, nil
	}
	if strings.Trim(plain, "0123456789") != "" {
		if f, err := strconv.ParseFloat(plain, 64); err == nil {
			return f, nil
		}
	}
	return nil, fmt.Errorf("number %.40s is out of range", text)
}

func leadingName(s string) string {
	for i, r := range s {
		if r != '_' && !unicode.IsLetter(r) && (i == 0 || !unicode.IsDigit(r)) {
			return s[:i]
		}
	}
	return s
}

// unescape reads the escapes of a Python string; what is none stays as it is.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		digits := map[byte]int{'x': 2, 'u': 4, 'U': 8}[s[i]]
		if digits > 0 && i+digits < len(s) {
			if r, err := strconv.ParseUint(s[i+1:i+1+digits], 16, 32); err == nil && r <= utf8.MaxRune {
				b.WriteRune(rune(r))
				i += digits
				continue
			}
		}
		if at := strings.IndexByte(`abfnrtv0\'"`, s[i]); at >= 0 {
			b.WriteByte("\a\b\f\n\r\t\v\x00\\'\""[at])
			continue
		}
		if s[i] == '\n' {
			continue // a line continued
		}
		b.WriteByte('\\')
		b.WriteByte(s[i])
	}
	return b.String()
}
