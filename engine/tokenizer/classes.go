package tokenizer

import (
	"sync"
	"unicode"
)

// Classes of a rune as the pre-tokenizers' regular expressions tell them apart.
const (
	classLetter  = 1 << iota // \p{L}
	classNumber              // \p{N}
	classSpace               // \s
	classMark                // \p{M}
	classUpper               // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]
	classLower               // [\p{Ll}\p{Lm}\p{Lo}\p{M}]
	classNewline             // [\r\n]
	classDigit               // what the Digits pre-tokenizer takes for a digit
)

// classTable maps a rune to its classes through pages of 256 runes; equal pages are shared.
type classTable struct {
	ascii [256]uint8
	page  [(unicode.MaxRune + 1) >> 8]uint16
	pages [][256]uint8
}

func (t *classTable) of(r rune) uint8 {
	return t.pages[t.page[r>>8]][r&0xff]
}

// runeClasses is built on first use: about 2 ms.
var runeClasses = sync.OnceValue(func() *classTable {
	t := &classTable{}
	all := make([]uint8, unicode.MaxRune+1)
	mark := func(table *unicode.RangeTable, class uint8) {
		for _, r := range table.R16 {
			for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
				all[c] |= class
			}
		}
		for _, r := range table.R32 {
			for c := rune(r.Lo); c <= rune(r.Hi); c += rune(r.Stride) {
				all[c] |= class
			}
		}
	}
	for _, tables := range []map[string]*unicode.RangeTable{unicode.Categories, unicode16} {
		for name, class := range map[string]uint8{
			"Lu": classLetter | classUpper, "Lt": classLetter | classUpper, "Ll": classLetter | classLower,
			"Lm": classLetter | classUpper | classLower, "Lo": classLetter | classUpper | classLower,
			"M": classMark | classUpper | classLower, "N": classNumber | classDigit, "Digits": classDigit,
		} {
			if table, ok := tables[name]; ok {
				mark(table, class)
			}
		}
	}
	mark(unicode.White_Space, classSpace)
	all['\r'] |= classNewline
	all['\n'] |= classNewline

	index := map[[256]uint8]uint16{}
	for p := range t.page {
		page := [256]uint8(all[p<<8:])
		n, ok := index[page]
		if !ok {
			n = uint16(len(t.pages))
			index[page] = n
			t.pages = append(t.pages, page)
		}
		t.page[p] = n
	}
	t.ascii = t.pages[t.page[0]]
	return t
})

// unicode16 holds what Unicode 16 assigned and package unicode (15.0 in Go 1.26) does not know: the Hugging Face library
// matches with Unicode 16 tables, and with 17 for Digits. Ranges that unicode knows already do no harm here.
var unicode16 = map[string]*unicode.RangeTable{
	"Lu": ranges(0x1c89, 0x1c89, 0xa7cb, 0xa7cc, 0xa7da, 0xa7da, 0xa7dc, 0xa7dc, 0x10d50, 0x10d65),
	"Ll": ranges(0x1c8a, 0x1c8a, 0xa7cd, 0xa7cd, 0xa7db, 0xa7db, 0x10d70, 0x10d85),
	"Lm": ranges(0x10d4e, 0x10d4e, 0x10d6f, 0x10d6f, 0x16d40, 0x16d42, 0x16d6b, 0x16d6c),
	"Lo": ranges(0x105c0, 0x105f3, 0x10d4a, 0x10d4d, 0x10d4f, 0x10d4f, 0x10ec2, 0x10ec4, 0x11380, 0x11389, 0x1138b, 0x1138b,
		0x1138e, 0x1138e, 0x11390, 0x113b5, 0x113b7, 0x113b7, 0x113d1, 0x113d1, 0x113d3, 0x113d3, 0x11bc0, 0x11be0, 0x13460, 0x143fa,
		0x16100, 0x1611d, 0x16d43, 0x16d6a, 0x18cff, 0x18cff, 0x1e5d0, 0x1e5ed, 0x1e5f0, 0x1e5f0, 0x2ebf0, 0x2ee5d),
	"M": ranges(0x897, 0x897, 0x10d69, 0x10d6d, 0x10efc, 0x10efc, 0x113b8, 0x113c0, 0x113c2, 0x113c2, 0x113c5, 0x113c5,
		0x113c7, 0x113ca, 0x113cc, 0x113d0, 0x113d2, 0x113d2, 0x113e1, 0x113e2, 0x11f5a, 0x11f5a, 0x1611e, 0x1612f, 0x1e5ee, 0x1e5ef),
	"N": ranges(0x10d40, 0x10d49, 0x116d0, 0x116e3, 0x11bf0, 0x11bf9, 0x16130, 0x16139, 0x16d70, 0x16d79, 0x1ccf0, 0x1ccf9,
		0x1e5f1, 0x1e5fa),
	"P": ranges(0x1b4e, 0x1b4f, 0x1b7f, 0x1b7f, 0x10d6e, 0x10d6e, 0x113d4, 0x113d5, 0x113d7, 0x113d8, 0x11be1, 0x11be1,
		0x16d6d, 0x16d6f, 0x1e5ff, 0x1e5ff),
	"S": ranges(0x2427, 0x2429, 0x2ffc, 0x2fff, 0x31e4, 0x31e5, 0x31ef, 0x31ef, 0x10d8e, 0x10d8f, 0x1cc00, 0x1ccef, 0x1cd00, 0x1ceb3,
		0x1f8b2, 0x1f8bb, 0x1f8c0, 0x1f8c1, 0x1fa89, 0x1fa89, 0x1fa8f, 0x1fa8f, 0x1fabe, 0x1fabe, 0x1fac6, 0x1fac6, 0x1fadc, 0x1fadc,
		0x1fadf, 0x1fadf, 0x1fae9, 0x1fae9, 0x1fbcb, 0x1fbef),
	"Digits": ranges(0x11de0, 0x11de9, 0x16ff4, 0x16ff6),
}

// ranges makes a table of pairs lo, hi.
func ranges(pairs ...uint32) *unicode.RangeTable {
	t := &unicode.RangeTable{}
	for i := 0; i < len(pairs); i += 2 {
		t.R32 = append(t.R32, unicode.Range32{Lo: pairs[i], Hi: pairs[i+1], Stride: 1})
	}
	return t
}
