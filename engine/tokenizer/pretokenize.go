package tokenizer

import "strings"

// pieces is a text on its way through the pre-tokenizers: text cut into spans, in order.
type pieces struct {
	text  string
	first bool // text stands at the very start of what is encoded
	sc    *scratch
}

// preTokenizer is one step that cuts spans smaller, or rewrites the text with its spans.
type preTokenizer func(p *pieces)

// behavior says what becomes of a match when a span is split at it.
type behavior int

const (
	removed behavior = iota
	isolated
	mergedWithPrevious
	mergedWithNext
	contiguous
)

var behaviors = map[string]behavior{
	"Removed": removed, "Isolated": isolated, "MergedWithPrevious": mergedWithPrevious, "MergedWithNext": mergedWithNext,
	"Contiguous": contiguous,
}

// split cuts every span at the matches of m. With invert, what lies between the matches counts as the match.
func split(m matcher, how behavior, invert bool) preTokenizer {
	return func(p *pieces) {
		out := p.sc.other[:0]
		for _, sp := range p.sc.spans {
			begin := len(out)
			out = m(p.text[sp.start:sp.end], sp.start, out)
			if how == isolated && tiles(out[begin:], sp) {
				continue // the usual case: the pattern matches everything
			}
			p.sc.found = append(p.sc.found[:0], out[begin:]...)
			out = appendSplit(out[:begin], sp, p.sc.found, how, invert)
		}
		p.sc.spans, p.sc.other = out, p.sc.spans
	}
}

// tiles tells if the matches lie end to end over the whole of sp.
func tiles(found []span, sp span) bool {
	at := sp.start
	for _, m := range found {
		if m.start != at {
			return false
		}
		at = m.end
	}
	return at == sp.end && at > sp.start
}

// appendSplit appends sp cut at the matches found in it.
func appendSplit(out []span, sp span, found []span, how behavior, invert bool) []span {
	begin := len(out)
	at, wasMatch := sp.start, false
	add := func(end int, isMatch bool) {
		if end == at {
			return
		}
		piece := span{at, end}
		at = end
		before := wasMatch
		wasMatch = isMatch
		switch last := len(out) - 1; {
		case how == removed && isMatch:
		case how == mergedWithPrevious && isMatch && !before && last >= begin,
			how == contiguous && isMatch == before && last >= begin,
			how == mergedWithNext && !isMatch && before && last >= begin:
			out[last].end = piece.end
		default:
			out = append(out, piece)
		}
	}
	for _, m := range found {
		add(m.start, invert)
		add(m.end, !invert)
	}
	add(sp.end, invert)
	return out
}

// prefixSpace puts a space before every span that does not begin with one, as ByteLevel's add_prefix_space asks.
func prefixSpace(p *pieces) {
	p.rewrite(func(b *strings.Builder, s string, _ bool) {
		if !strings.HasPrefix(s, " ") {
			b.WriteByte(' ')
		}
		b.WriteString(s)
	})
}

// metaspace writes replacement for spaces, and puts one before a span that has none there: scheme is "always", "first" (only
// at the start of the text) or "never".
func metaspace(replacement, scheme string) preTokenizer {
	return func(p *pieces) {
		p.rewrite(func(b *strings.Builder, s string, first bool) {
			begins := strings.HasPrefix(s, " ") || strings.HasPrefix(s, replacement)
			if !begins && (scheme == "always" || scheme == "first" && first) {
				b.WriteString(replacement)
			}
			b.WriteString(strings.ReplaceAll(s, " ", replacement))
		})
	}
}

// rewrite makes a new text, span by span.
func (p *pieces) rewrite(write func(b *strings.Builder, s string, first bool)) {
	var b strings.Builder
	b.Grow(len(p.text) + len(p.sc.spans) + 8)
	for i, sp := range p.sc.spans {
		start := b.Len()
		write(&b, p.text[sp.start:sp.end], p.first && sp.start == 0)
		p.sc.spans[i] = span{start, b.Len()}
	}
	p.text = b.String()
}

// runesOf matches single runes, or runs of them, that have a class.
func runesOf(class uint8, single bool) matcher {
	t := runeClasses()
	return func(s string, base int, dst []span) []span {
		for i := 0; i < len(s); {
			if i = t.runOther(s, i, class); i == len(s) {
				break
			}
			_, end := t.at(s, i)
			if !single {
				end = t.run(s, end, class)
			}
			dst = append(dst, span{base + i, base + end})
			i = end
		}
		return dst
	}
}
