package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// validUTF8 returns s with each maximal ill-formed part replaced by one U+FFFD, as Unicode recommends and Python's and
// Rust's lossy decoders do (strings.ToValidUTF8 makes one of several). A surrogate encoded in three bytes gives three.
func validUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 8)
	appendValid(&b, s)
	return b.String()
}

func appendValid(b *strings.Builder, s string) {
	start := 0
	for i := 0; i < len(s); {
		if s[i] < utf8.RuneSelf {
			i++
			continue
		}
		if r, n := utf8.DecodeRuneInString(s[i:]); r != utf8.RuneError || n == 3 {
			i += n
			continue
		}
		b.WriteString(s[start:i])
		b.WriteString("\uFFFD")
		i += max(1, wellBegun(s[i:]))
		start = i
	}
	b.WriteString(s[start:])
}

// wellBegun returns how many bytes of s, which does not start with a whole rune, could be the beginning of one: 0 to 3.
func wellBegun(s string) int {
	lo, hi, size := byte(0x80), byte(0xBF), 0
	switch c := s[0]; {
	case c >= 0xC2 && c <= 0xDF:
		size = 2
	case c >= 0xE0 && c <= 0xEF:
		size = 3
		if c == 0xE0 {
			lo = 0xA0
		}
		if c == 0xED {
			hi = 0x9F
		}
	case c >= 0xF0 && c <= 0xF4:
		size = 4
		if c == 0xF0 {
			lo = 0x90
		}
		if c == 0xF4 {
			hi = 0x8F
		}
	default:
		return 0
	}
	n := 1
	for n < size && n < len(s) && s[n] >= lo && s[n] <= hi {
		lo, hi = 0x80, 0xBF
		n++
	}
	return n
}

// unfinished returns the length of the tail of s that is the beginning of a rune whose rest may follow: 0 to 3.
func unfinished(s string) int {
	for n := 1; n <= min(3, len(s)); n++ {
		c := s[len(s)-n]
		if c < utf8.RuneSelf {
			return 0
		}
		if utf8.RuneStart(c) {
			tail := s[len(s)-n:]
			if !utf8.FullRuneInString(tail) && wellBegun(tail) == n {
				return n
			}
			return 0
		}
	}
	return 0
}
