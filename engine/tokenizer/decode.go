package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// decoding is how token texts become a text again. The steps that look at one token alone are applied when a tokenizer is
// loaded (see Tokenizer.text); what is left needs the neighbours.
type decoding struct {
	mode decodeMode
	// dropFirst empties the first token of this rune, as Metaspace does.
	dropFirst string
	// strip takes up to stripStart and stripEnd of the rune from the two ends of the whole text.
	strip                string
	stripStart, stripEnd int
}

type decodeMode int

const (
	spaced       decodeMode = iota // no decoder: tokens with a space between them
	plain                          // token texts one after the other
	bytesLossy                     // token texts are bytes; ill-formed UTF-8 becomes U+FFFD
	byteFallback                   // a run of byte tokens is text if it is UTF-8, else U+FFFD for each of its bytes
)

// Decoder turns ids into text as they come. What it returns is whole characters only, and all of it together is what
// [Tokenizer.Decode] gives for all ids, however they are spread over calls. It is not safe for concurrent use.
type Decoder struct {
	t           *Tokenizer
	skipSpecial bool
	started     bool
	pending     string // bytes that are not a whole character yet, or a run of byte tokens
	stripLeft   int
	held        string // text that Flush may have to strip
}

// NewDecoder returns a decoder that leaves special tokens out if skipSpecial.
func (t *Tokenizer) NewDecoder(skipSpecial bool) *Decoder {
	return &Decoder{t: t, skipSpecial: skipSpecial, stripLeft: t.decoding.stripStart}
}

// Add returns the text that id completes: "" while a character is unfinished. An id that is no token adds nothing.
func (d *Decoder) Add(id int32) string {
	t := d.t
	if id < 0 || int(id) >= len(t.text) || !t.exists[id] || d.skipSpecial && t.special[id] {
		return ""
	}
	s := t.text[id]
	first := !d.started
	d.started = true
	if t.decoding.mode == bytesLossy {
		return d.strip(d.whole(s))
	}
	if t.decoding.mode == byteFallback && t.isByte[id] {
		d.pending += s
		return ""
	}
	if first && t.decoding.dropFirst != "" {
		s = strings.ReplaceAll(s, t.decoding.dropFirst, "")
	}
	if !first && t.decoding.mode == spaced {
		s = " " + s
	}
	return d.strip(d.endRun() + s)
}

// Flush returns what is left when no more ids come; the decoder is then as new.
func (d *Decoder) Flush() string {
	s := d.pending
	if d.t.decoding.mode == bytesLossy {
		s = validUTF8(s)
	} else {
		s = d.endRun()
	}
	s = d.strip(s) + d.held
	for n := d.t.decoding.stripEnd; n > 0 && strings.HasSuffix(s, d.t.decoding.strip); n-- {
		s = strings.TrimSuffix(s, d.t.decoding.strip)
	}
	*d = *d.t.NewDecoder(d.skipSpecial)
	return s
}

// whole adds s to the pending bytes and returns them up to the last whole character.
func (d *Decoder) whole(s string) string {
	if d.pending == "" && utf8.ValidString(s) {
		return s
	}
	s = d.pending + s
	n := unfinished(s)
	d.pending = strings.Clone(s[len(s)-n:])
	return validUTF8(s[:len(s)-n])
}

// endRun returns the text of the pending run of byte tokens.
func (d *Decoder) endRun() string {
	s := d.pending
	d.pending = ""
	if utf8.ValidString(s) {
		return s
	}
	return strings.Repeat("\uFFFD", len(s))
}

// strip takes the decoder's strip rune from the start of the text, and holds back what might have to go from its end.
func (d *Decoder) strip(s string) string {
	if d.t.decoding.strip == "" {
		return s
	}
	for d.stripLeft > 0 && s != "" {
		if !strings.HasPrefix(s, d.t.decoding.strip) {
			d.stripLeft = 0
			break
		}
		s = s[len(d.t.decoding.strip):]
		d.stripLeft--
	}
	if d.t.decoding.stripEnd == 0 {
		return s
	}
	s = d.held + s
	keep := len(s)
	for n := d.t.decoding.stripEnd; n > 0 && strings.HasSuffix(s[:keep], d.t.decoding.strip); n-- {
		keep -= len(d.t.decoding.strip)
	}
	d.held = s[keep:]
	return s[:keep]
}
