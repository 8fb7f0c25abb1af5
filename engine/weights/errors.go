package weights

import "fmt"

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
	return e.Path + ": tensor " + e.Tensor + ": " + e.Problem
}

func errorf(path, tensor, format string, args ...any) error {
	return &Error{path, tensor, fmt.Sprintf(format, args...)}
}
