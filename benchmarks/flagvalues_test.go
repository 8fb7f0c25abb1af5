package benchmarks

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// list is a flag of several values: separated by commas, or the flag repeated. The first value on the command line replaces
// the default and what the environment gave.
type list[T int | float64 | string] struct {
	values []T
	stale  bool
}

func (l *list[T]) String() string {
	if l == nil {
		return ""
	}
	parts := make([]string, len(l.values))
	for i, v := range l.values {
		parts[i] = fmt.Sprint(v)
		if parts[i] == "+Inf" {
			parts[i] = "inf"
		}
	}
	return strings.Join(parts, ",")
}

func (l *list[T]) Set(text string) error {
	var values []T
	for _, part := range strings.Split(text, ",") {
		part = strings.TrimSpace(part)
		var v T
		switch p := any(&v).(type) {
		case *int:
			n, err := strconv.Atoi(part)
			if err != nil {
				return fmt.Errorf("%q is not a whole number", part)
			}
			*p = n
		case *float64:
			x, err := strconv.ParseFloat(part, 64)
			if err != nil {
				return fmt.Errorf("%q is not a number", part)
			}
			*p = x
		case *string:
			*p = part
		}
		values = append(values, v)
	}
	if l.stale {
		l.values, l.stale = nil, false
	}
	l.values = append(l.values, values...)
	return nil
}

// fresh has the next Set replace the values that are there.
func (l *list[T]) fresh() { l.stale = true }

// seconds is a duration that may be given as a bare number of seconds, as SGLang's flags take it.
type seconds time.Duration

func (s *seconds) String() string {
	if s == nil {
		return ""
	}
	return time.Duration(*s).String()
}

func (s *seconds) Set(text string) error {
	d, err := time.ParseDuration(text)
	if n, e := strconv.ParseFloat(text, 64); e == nil {
		d, err = time.Duration(n*float64(time.Second)), nil
	}
	if err != nil || d < 0 {
		return fmt.Errorf("want seconds or a duration such as 90s or 2m")
	}
	*s = seconds(d)
	return nil
}

// secret is a text that is never shown.
type secret struct{ value *string }

func (s *secret) String() string {
	if s == nil || s.value == nil || *s.value == "" {
		return ""
	}
	return "(set)"
}

func (s *secret) Set(text string) error { *s.value = text; return nil }

func envSet(name string) bool { _, ok := os.LookupEnv(name); return ok }
