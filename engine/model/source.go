package model

import (
	"slices"
	"strconv"
	"strings"
)

// source is a merged and checked config.json, and knows for errors where each value came from.
type source struct {
	path                           string
	values                         map[string]any
	overridden                     map[string]bool // by dotted path
	fileSpelling, overrideSpelling spelling
}

// where returns the source of a value and its path there.
func (s *source) where(path string) (source, original string) {
	if s.overridden[path] {
		if original, ok := s.overrideSpelling[path]; ok {
			return overridesSource, original
		}
		return overridesSource, path
	}
	if original, ok := s.fileSpelling[path]; ok {
		return s.path, original
	}
	return s.path, path
}

// errorf is an *Error about the first of the paths that an override set, or else the first.
func (s *source) errorf(path, format string, args ...any) error {
	source, original := s.where(path)
	return errorf(source, original, format, args...)
}

// blame returns the path of those that was overridden, or the first: of values that do not fit together, the user's own
// choice is at fault.
func (s *source) blame(paths ...string) string {
	for _, p := range paths {
		if s.overridden[p] {
			return p
		}
	}
	return paths[0]
}

// get returns the value of a checked key, or def where there is none.
func get[T any](values map[string]any, name string, def T) T {
	if v, ok := values[name].(T); ok {
		return v
	}
	return def
}

// need returns a size that has no default.
func (s *source) need(name string, keys []key) (int, error) {
	n, ok := s.values[name].(int)
	if !ok {
		return 0, s.errorf(name, "missing: want %s", find(keys, name).wants())
	}
	return n, nil
}

// validIDs keeps the ids that the vocabulary has, each once: others can be neither sampled nor embedded.
func validIDs(list []int32, vocabSize int) []int32 {
	var out []int32
	for _, id := range list {
		if id >= 0 && int(id) < vocabSize && !slices.Contains(out, id) {
			out = append(out, id)
		}
	}
	return out
}

// divisors lists n's divisors for an error, the largest few if there are many.
func divisors(n int) string {
	const most = 16
	var list []string
	for d := n; d >= 1; d-- {
		if n%d == 0 {
			list = append(list, strconv.Itoa(d))
		}
	}
	slices.Reverse(list)
	if len(list) > most {
		return "the divisors of " + strconv.Itoa(n)
	}
	return strings.Join(list, ", ")
}
