package tokenizer

import (
	"sync"
	"unicode/utf8"
)

// Byte-level vocabularies write each byte as a printable rune: printable Latin-1 as itself, the rest from U+0100 on.

type byteRunes struct {
	ofByte [256]rune
	ofRune [0x144]int16 // -1 for a rune that is no byte
}

var byteLevel = sync.OnceValue(func() *byteRunes {
	t := &byteRunes{}
	for i := range t.ofRune {
		t.ofRune[i] = -1
	}
	next := rune(0x100)
	for b := range 256 {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE) {
			r = next
			next++
		}
		t.ofByte[b] = r
		t.ofRune[r] = int16(b)
	}
	return t
})

// bytes returns the bytes that token stands for, and whether it is made of bytes' runes only.
func (t *byteRunes) bytes(token string) (string, bool) {
	buf := make([]byte, 0, len(token))
	for _, r := range token {
		if r >= rune(len(t.ofRune)) || t.ofRune[r] < 0 {
			return token, false
		}
		buf = append(buf, byte(t.ofRune[r]))
	}
	return string(buf), true
}

// fallbackByte returns the byte that a token of the form <0xE2> stands for.
func fallbackByte(token string) (byte, bool) {
	if len(token) != 6 || token[:3] != "<0x" || token[5] != '>' {
		return 0, false
	}
	hi, lo := hexDigit(token[3]), hexDigit(token[4])
	if hi < 0 || lo < 0 {
		return 0, false
	}
	return byte(hi<<4 | lo), true
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

func runeLen(s string) int {
	_, n := utf8.DecodeRuneInString(s)
	return n
}
