package model

import (
	"fmt"
	"strconv"
)

// Error tells that a model's description cannot be used. It is one line that names the key and says what would do.
type Error struct {
	Source  string // a file's path, or the overrides' flag
	Key     string // dotted path of the key at fault; "" for the source as a whole
	Problem string
}

func (e *Error) Error() string {
	if e.Key == "" {
		return e.Source + ": " + e.Problem
	}
	return e.Source + ": " + oneLine(e.Key) + ": " + e.Problem
}

func errorf(source, key, format string, args ...any) error {
	return &Error{source, key, fmt.Sprintf(format, args...)}
}

// oneLine quotes a name out of a file that would break the line.
func oneLine(name string) string {
	if strconv.CanBackquote(name) {
		return name
	}
	return strconv.Quote(name)
}
