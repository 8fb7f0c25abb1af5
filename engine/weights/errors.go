package weights

import (
	"fmt"
	"strconv"
)

// Error tells that a weights file cannot be used: in one line, what is wrong where.
type Error struct {
	Path    string // file or directory
	Tensor  string // "" for the file as a whole
	Problem string
}

func (e *Error) Error() string {
	if e.Tensor == "" {
		return e.Path + ": " + e.Problem
	}
	return e.Path + ": tensor " + oneLine(e.Tensor) + ": " + e.Problem
}

func errorf(path, tensor, format string, args ...any) error {
	return &Error{path, tensor, fmt.Sprintf(format, args...)}
}

// oneLine quotes a name out of a file that would break the line.
func oneLine(name string) string {
	if strconv.CanBackquote(name) {
		return name
	}
	return strconv.Quote(name)
}
