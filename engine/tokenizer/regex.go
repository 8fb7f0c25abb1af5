package tokenizer

import (
	"strings"

	"github.com/dlclark/regexp2/v2"
)

// newMatcher returns the matcher of a regular expression in the syntax of Oniguruma, which the Hugging Face library uses.
func newMatcher(where, pattern string) (matcher, error) {
	if m := knownPattern(pattern); m != nil {
		return m, nil
	}
	return libraryMatcher(where, pattern)
}

// libraryMatcher matches any pattern, by backtracking. If the library gives up on a text (its backtracking stack is bounded),
// what follows the last match counts as unmatched.
func libraryMatcher(where, pattern string) (matcher, error) {
	re, err := compileRegex(where, pattern)
	if err != nil {
		return nil, err
	}
	return func(s string, base int, dst []span) []span {
		found, err := re.FindAllStringIndex(s, -1)
		if err != nil {
			return dst
		}
		for _, m := range found {
			if m[1] > m[0] {
				dst = append(dst, span{base + m[0], base + m[1]})
			}
		}
		return dst
	}, nil
}

func compileRegex(where, pattern string) (*regexp2.Regexp, error) {
	if len(pattern) > 1<<16 {
		return nil, &FormatError{Where: where, Problem: "regular expression is longer than 64 KiB"}
	}
	re, err := regexp2.Compile(fromOniguruma(pattern))
	if err != nil {
		return nil, &FormatError{Where: where, Problem: "regular expression cannot be used", Err: err}
	}
	return re, nil
}

// literalMatcher matches a plain string.
func literalMatcher(literal string) matcher {
	return func(s string, base int, dst []span) []span {
		if literal == "" {
			return dst
		}
		for i := 0; ; {
			n := strings.Index(s[i:], literal)
			if n < 0 {
				return dst
			}
			dst = append(dst, span{base + i + n, base + i + n + len(literal)})
			i += n + len(literal)
		}
	}
}
