package server

import (
	"math"
	"strconv"
	"unicode/utf8"
)

const hexDigits = "0123456789abcdef"

// appendString adds s to buf as a JSON string. Bytes that are not UTF-8 become U+FFFD. Line and paragraph separators are escaped
// so that the text is JavaScript too; < > & are not, since no answer is HTML.
func appendString(buf []byte, s string) []byte {
	buf = append(buf, '"')
	buf = appendEscaped(buf, s)
	return append(buf, '"')
}

// appendEscaped is appendString without the quotes, for strings that grow.
func appendEscaped(buf []byte, s string) []byte {
	start := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c >= ' ' && c != '"' && c != '\\' {
				i++
				continue
			}
			buf = append(buf, s[start:i]...)
			switch c {
			case '"', '\\':
				buf = append(buf, '\\', c)
			case '\n':
				buf = append(buf, '\\', 'n')
			case '\r':
				buf = append(buf, '\\', 'r')
			case '\t':
				buf = append(buf, '\\', 't')
			default:
				buf = append(buf, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			buf = append(buf, s[start:i]...)
			buf = append(buf, "\ufffd"...)
			i++
			start = i
			continue
		}
		if r == '\u2028' || r == '\u2029' {
			buf = append(buf, s[start:i]...)
			buf = append(buf, '\\', 'u', '2', '0', '2', hexDigits[r&15])
			i += size
			start = i
			continue
		}
		i += size
	}
	return append(buf, s[start:]...)
}

func appendInt[T int | int32 | int64](buf []byte, n T) []byte {
	return strconv.AppendInt(buf, int64(n), 10)
}

// appendIDs adds ids as numbers separated by commas, without brackets.
func appendIDs(buf []byte, ids []int32) []byte {
	for i, id := range ids {
		if i > 0 {
			buf = append(buf, ',')
		}
		buf = appendInt(buf, id)
	}
	return buf
}

// appendLogProb adds a log probability. JSON knows no infinity: what is not finite becomes -9999, as OpenAI answers for
// impossible tokens.
func appendLogProb(buf []byte, v float32) []byte {
	if math.IsNaN(float64(v)) || math.IsInf(float64(v), 0) {
		return append(buf, "-9999.0"...)
	}
	return strconv.AppendFloat(buf, float64(v), 'g', -1, 32)
}

// appendSeconds adds a duration in seconds with microseconds.
func appendSeconds(buf []byte, seconds float64) []byte {
	return strconv.AppendFloat(buf, seconds, 'f', 6, 64)
}
