package tokenizer

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Names of functions that instrument puts into a template. No template has them of its own.
const (
	tickName   = "tokamak_tick"
	enterName  = "tokamak_enter"
	leaveName  = "tokamak_leave"
	toJSONName = "tokamak_tojson"
)

// instrument rewrites a template for the library. Text becomes string outputs, its white space as Jinja trims it with
// trim_blocks and lstrip_blocks: the library trims across neighbouring tags, and knows no {%+ and +%}. String literals are
// decoded, as the library knows few escapes. Loops call tick each time round, macros enter and leave, so that a rendering is
// bounded, and tojson is our own.
func instrument(source string) (string, error) {
	source = strings.ReplaceAll(strings.ReplaceAll(source, "\r\n", "\n"), "\r", "\n")
	l := sourceLexer{rest: strings.TrimSuffix(source, "\n"), lineStart: true}
	for l.rest != "" {
		if err := l.next(); err != nil {
			return "", &TemplateError{Problem: fmt.Sprintf("line %d: %v", 1+strings.Count(source[:len(source)-len(l.rest)], "\n"), err)}
		}
	}
	return l.out.String(), nil
}

type sourceLexer struct {
	rest      string
	lineStart bool // what was taken last ended a line
	out       strings.Builder
}

// next takes the text up to a tag and the tag.
func (l *sourceLexer) next() error {
	at, open := tagStart(l.rest)
	if at < 0 {
		l.text(l.rest)
		l.rest = ""
		return nil
	}
	text := l.rest[:at]
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
	word := firstWord(inner)
	if open == "{%" && word == "raw" {
		l.close(strip, true)
		return l.raw()
	}
	l.close(strip, keep || open == "{{")
	switch open {
	case "{{":
		fmt.Fprintf(&l.out, "{{ %s }}", rewriteTag(inner))
	case "{%":
		l.statement(word, inner)
	}
	return nil
}

func (l *sourceLexer) statement(word, inner string) {
	call := func(name string) { fmt.Fprintf(&l.out, "{%% set tokamak = %s() %%}", name) }
	if word == "endmacro" {
		call(leaveName)
	}
	fmt.Fprintf(&l.out, "{%% %s %%}", rewriteTag(inner))
	switch word {
	case "for":
		call(tickName)
	case "macro":
		call(enterName)
	}
}

// raw takes what stands up to endraw as text.
func (l *sourceLexer) raw() error {
	found := endRaw.FindStringSubmatchIndex(l.rest)
	if found == nil {
		return fmt.Errorf("raw is not closed")
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
func (l *sourceLexer) flag() string {
	if l.rest != "" && (l.rest[0] == '-' || l.rest[0] == '+') {
		flag := l.rest[:1]
		l.rest = l.rest[1:]
		return flag
	}
	return ""
}

// trimmedRight is text as the tag behind it leaves it.
func (l *sourceLexer) trimmedRight(text, open, flag string) string {
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
func (l *sourceLexer) close(strip, keep bool) {
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

func (l *sourceLexer) text(s string) {
	if s != "" {
		fmt.Fprintf(&l.out, "{{ %s }}", literal(s))
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

const blank = " \t\r\n"

func firstWord(s string) string {
	s = strings.TrimLeft(s, blank)
	end := 0
	for end < len(s) && isIdent(s[end]) {
		end++
	}
	return s[:end]
}

func isIdent(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// rewriteTag names our filter for tojson, writes string literals anew, and keeps closing braces apart from each other.
func rewriteTag(inner string) string {
	const theirs = "tojson"
	var b strings.Builder
	for i := 0; i < len(inner); i++ {
		switch c := inner[i]; c {
		case '\'', '"':
			end := quoteEnd(inner, i)
			b.WriteString(literal(unescape(inner[i+1 : end])))
			i = end
		case '}':
			b.WriteString("} ")
		case '|':
			b.WriteByte(c)
			name := strings.TrimLeft(inner[i+1:], blank)
			if firstWord(name) == theirs {
				b.WriteString(toJSONName)
				i = len(inner) - len(name) + len(theirs) - 1
			}
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// literal quotes s with the escapes that the library knows.
func literal(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(s) + "'"
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

// readsParts finds what a template does if it knows messages whose content is a list of parts.
var readsParts = regexp.MustCompile(`\bin\s+[\w.]*(\[['"]content['"]\]|\bcontent)\b|content['"\]]*\s+is\s+(not\s+)?(string|iterable|sequence|mapping)`)

// strftime formats now as Python does, for the directives that chat templates use; others stay as they are.
func strftime(now time.Time, format string) string {
	layouts := map[byte]string{
		'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'B': "January",
		'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'j': "002", 'Z': "MST", 'z': "-0700", 'F': "2006-01-02", 'T': "15:04:05",
		'D': "01/02/06", 'R': "15:04", 'f': "000000",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		unpadded := format[i] == '-' && i+1 < len(format)
		if unpadded {
			i++
		}
		layout, ok := layouts[format[i]]
		switch {
		case format[i] == '%':
			b.WriteByte('%')
		case format[i] == 'n':
			b.WriteByte('\n')
		case !ok:
			b.WriteByte('%')
			b.WriteByte(format[i])
		case format[i] == 'f':
			fmt.Fprintf(&b, "%06d", now.Nanosecond()/1000)
		case unpadded:
			text := strings.TrimLeft(now.Format(layout), "0 ")
			if text == "" {
				text = "0"
			}
			b.WriteString(text)
		default:
			b.WriteString(now.Format(layout))
		}
	}
	return b.String()
}
