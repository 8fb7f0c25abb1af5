package chrometrace

import (
	"bufio"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
)

// Event is an event as it stands in a trace, whoever wrote it. Times are microseconds.
type Event struct {
	Phase    string         `json:"ph"`
	Name     string         `json:"name"`
	Category string         `json:"cat"`
	PID      int            `json:"pid"`
	TID      int            `json:"tid"`
	Start    float64        `json:"ts"`
	Length   float64        `json:"dur"`
	Args     map[string]any `json:"args"`
}

// Read reads a trace, packed or not: an object with traceEvents, or a bare list.
func Read(r io.Reader) ([]Event, error) {
	in := bufio.NewReader(r)
	if magic, err := in.Peek(2); err == nil && magic[0] == 0x1f && magic[1] == 0x8b {
		gz, err := gzip.NewReader(in)
		if err != nil {
			return nil, err
		}
		in = bufio.NewReader(gz)
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return nil, fmt.Errorf("read trace: %w", err)
	}
	var whole struct {
		TraceEvents []Event `json:"traceEvents"`
	}
	if len(text) > 0 && text[0] == '[' {
		err = json.Unmarshal(text, &whole.TraceEvents)
	} else {
		err = json.Unmarshal(text, &whole)
	}
	if err != nil {
		return nil, fmt.Errorf("read trace: %w", err)
	}
	return whole.TraceEvents, nil
}
