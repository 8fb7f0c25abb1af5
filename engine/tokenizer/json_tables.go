package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// A large tokenizer.json is mostly its vocabulary and merges: half a million strings. encoding/json has checked their syntax
// by the time they are read here, which takes a third of the time of decoding them by reflection.

// parseVocab reads an object of ids.
func parseVocab(raw []byte) (map[string]int32, error) {
	s := tableScanner{rest: raw}
	vocab := make(map[string]int32, len(raw)/20)
	if !s.take('{') {
		return nil, errors.New("want an object of ids")
	}
	for first := true; !s.take('}'); first = false {
		if !first && !s.take(',') {
			return nil, errors.New("want an object of ids")
		}
		token, err := s.text()
		if err != nil {
			return nil, err
		}
		s.take(':')
		id, err := s.integer()
		if err != nil {
			return nil, fmt.Errorf("token %q: %w", short(token), err)
		}
		vocab[token] = id
	}
	return vocab, nil
}

// parseMerges reads a list of "left right" or, in newer files, ["left", "right"].
func parseMerges(raw []byte) ([][2]string, error) {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil, nil
	}
	s := tableScanner{rest: raw}
	if !s.take('[') {
		return nil, errors.New("want a list")
	}
	merges := make([][2]string, 0, len(raw)/16)
	for first := true; !s.take(']'); first = false {
		if !first && !s.take(',') {
			return nil, errors.New("want a list")
		}
		var pair [2]string
		var err error
		if s.take('[') {
			for i := range pair {
				if i > 0 && !s.take(',') {
					return nil, fmt.Errorf("merge %d has 1 part: want 2", len(merges)+1)
				}
				if pair[i], err = s.text(); err != nil {
					return nil, fmt.Errorf("merge %d: %w", len(merges)+1, err)
				}
			}
			if !s.take(']') {
				return nil, fmt.Errorf("merge %d has more than 2 parts", len(merges)+1)
			}
		} else {
			line, err := s.text()
			if err != nil {
				return nil, fmt.Errorf("merge %d: %w", len(merges)+1, err)
			}
			if pair, err = splitMerge(line); err != nil {
				return nil, err
			}
		}
		merges = append(merges, pair)
	}
	return merges, nil
}

// splitMerge reads "left right".
func splitMerge(s string) ([2]string, error) {
	left, right, ok := strings.Cut(s, " ")
	if !ok || strings.Contains(right, " ") {
		return [2]string{}, fmt.Errorf("merge %q: want two tokens with a space between them", short(s))
	}
	return [2]string{left, right}, nil
}

// tableScanner reads JSON that is known to be valid.
type tableScanner struct{ rest []byte }

// take takes c if it comes next, after white space.
func (s *tableScanner) take(c byte) bool {
	for len(s.rest) > 0 && (s.rest[0] == ' ' || s.rest[0] == '\n' || s.rest[0] == '\t' || s.rest[0] == '\r') {
		s.rest = s.rest[1:]
	}
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

func (s *tableScanner) text() (string, error) {
	if !s.take('"') {
		return "", errors.New("want a string")
	}
	plain := true
	for i := 0; i < len(s.rest); i++ {
		switch c := s.rest[i]; {
		case c == '\\':
			plain = false
			i++
		case c == '"':
			body := s.rest[:i]
			s.rest = s.rest[i+1:]
			if plain && utf8.Valid(body) {
				return string(body), nil
			}
			var text string
			err := json.Unmarshal(append(append([]byte{'"'}, body...), '"'), &text)
			return text, err
		}
	}
	return "", errors.New("want a string")
}

func (s *tableScanner) integer() (int32, error) {
	s.take(0) // white space
	end := 0
	for end < len(s.rest) && s.rest[end] != ',' && s.rest[end] != '}' && s.rest[end] > ' ' {
		end++
	}
	n, err := strconv.ParseInt(string(s.rest[:end]), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("id %s: want a whole number", short(string(s.rest[:end])))
	}
	s.rest = s.rest[end:]
	return int32(n), nil
}
