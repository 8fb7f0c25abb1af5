package tokenizer

import (
	"fmt"
	"strings"
	"time"
)

// Names of functions that instrument puts into a template. No template has them of its own.
const (
	tickName   = "tokamak_tick"
	enterName  = "tokamak_enter"
	leaveName  = "tokamak_leave"
	toJSONName = "tokamak_tojson"
)

// instrument rewrites a template so that a rendering can be bounded and its tojson is ours: loops call tick each time round,
// macros enter and leave. What is put in stands inside or right behind a tag and trims as that tag does, so that no white
// space changes.
func instrument(source string) string {
	var b strings.Builder
	raw := false
	for source != "" {
		at, open, shut := nextTag(source)
		if at < 0 {
			break
		}
		end := tagEnd(source, at, shut)
		if end < 0 {
			break // left as it is: compiling reports it
		}
		b.WriteString(source[:at])
		tag := source[at:end]
		source = source[end:]
		if open == "{#" {
			b.WriteString(tag)
			continue
		}
		word := ""
		if open == "{%" {
			word = firstWord(tag[2:])
		}
		if raw {
			raw = word != "endraw"
			b.WriteString(tag)
			continue
		}
		if word == "endmacro" {
			// Trimming in front is the end tag's, none between the two.
			opener := "{%"
			if strings.HasPrefix(tag, "{%-") || strings.HasPrefix(tag, "{%+") {
				opener, tag = tag[:3], "{%"+tag[3:]
			}
			fmt.Fprintf(&b, "%s set tokamak = %s() %%}", opener, leaveName)
		}
		b.WriteString(ownToJSON(tag))
		switch word {
		case "raw":
			raw = true
		case "for", "macro":
			call := tickName
			if word == "macro" {
				call = enterName
			}
			closer := "%}"
			if strings.HasSuffix(tag, "-%}") {
				closer = "-%}"
			}
			fmt.Fprintf(&b, "{%% set tokamak = %s() %s", call, closer)
		}
	}
	b.WriteString(source)
	return b.String()
}

func nextTag(s string) (at int, open, shut string) {
	for i := 0; i+1 < len(s); i++ {
		if s[i] != '{' {
			continue
		}
		switch s[i+1] {
		case '{':
			return i, "{{", "}}"
		case '%':
			return i, "{%", "%}"
		case '#':
			return i, "{#", "#}"
		}
	}
	return -1, "", ""
}

// tagEnd returns where the tag that begins at s[at:] ends; quotes hide its end except in comments.
func tagEnd(s string, at int, shut string) int {
	for i := at + 2; i < len(s); i++ {
		if strings.HasPrefix(s[i:], shut) {
			return i + 2
		}
		if c := s[i]; (c == '\'' || c == '"') && shut != "#}" {
			i = quoteEnd(s, i)
		}
	}
	return -1
}

// quoteEnd returns the index of the quote that closes the one at i, or that of the last byte.
func quoteEnd(s string, i int) int {
	quote := s[i]
	for i++; i < len(s) && s[i] != quote; i++ {
		if s[i] == '\\' {
			i++
		}
	}
	return min(i, len(s)-1)
}

func firstWord(s string) string {
	s = strings.TrimLeft(strings.TrimLeft(s, "-+"), " \t\r\n")
	end := 0
	for end < len(s) && isIdent(s[end]) {
		end++
	}
	return s[:end]
}

func isIdent(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// ownToJSON names our filter where a tag pipes into tojson.
func ownToJSON(tag string) string {
	const theirs = "tojson"
	var b strings.Builder
	done := 0
	for i := 0; i < len(tag); i++ {
		switch c := tag[i]; c {
		case '\'', '"':
			i = quoteEnd(tag, i)
		case '|':
			name := i + 1 + len(tag[i+1:]) - len(strings.TrimLeft(tag[i+1:], " \t\r\n"))
			end := name + len(theirs)
			if strings.HasPrefix(tag[name:], theirs) && (end == len(tag) || !isIdent(tag[end])) {
				b.WriteString(tag[done:name])
				b.WriteString(toJSONName)
				done = end
			}
		}
	}
	b.WriteString(tag[done:])
	return b.String()
}

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
