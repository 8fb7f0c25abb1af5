package load

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// readAll collects every event of r.
func readAll(t testing.TB, r io.Reader, lines bool) []string {
	var e events
	e.reset(r, lines, func() time.Duration { return 0 })
	var all []string
	for {
		data, _, err := e.next()
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
			return all
		}
		all = append(all, string(data))
	}
}

// reference is the specification's algorithm on the whole text at once.
func reference(text string) []string {
	text = strings.ReplaceAll(text, "\r\n", "\n")
	text = strings.ReplaceAll(text, "\r", "\n")
	lines := strings.Split(text, "\n")
	lines = lines[:len(lines)-1] // what follows the last line end is no line
	var all, data []string
	for _, line := range lines {
		field, value, _ := strings.Cut(line, ":")
		switch {
		case line == "":
			if data != nil {
				all = append(all, strings.Join(data, "\n"))
			}
			data = nil
		case field == "data":
			data = append(data, strings.TrimPrefix(value, " "))
		}
	}
	return all
}

func TestEvents(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"plain":         {"data: a\n\ndata: b\n\n", []string{"a", "b"}},
		"no space":      {"data:a\n\n", []string{"a"}},
		"two spaces":    {"data:  a\n\n", []string{" a"}},
		"crlf":          {"data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}},
		"cr":            {"data: a\r\rdata: b\r\r", []string{"a", "b"}},
		"several lines": {"data: a\ndata: b\ndata\n\n", []string{"a\nb\n"}},
		"other fields":  {": ping\nevent: x\nid: 3\ndata: a\nretry: 5\n\n: ping\n\n", []string{"a"}},
		"like data":     {"database: a\n\n", nil},
		"cut off":       {"data: a\n\ndata: b\n", []string{"a"}},
		"empty":         {"", nil},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.want, readAll(t, strings.NewReader(test.text), false))
			assert.Equal(t, test.want, readAll(t, iotest.OneByteReader(strings.NewReader(test.text)), false))
			assert.Equal(t, test.want, reference(test.text))
		})
	}
}

func TestEventsJSONLines(t *testing.T) {
	assert.Equal(t, []string{"{1}", "{2}", "{3}"}, readAll(t, strings.NewReader("{1}\n\r\n{2}\r\n{3}"), true))
}

func TestEventsLongerThanTheBuffer(t *testing.T) {
	long := strings.Repeat("x", 100<<10)
	text := "data: " + long + "\n\ndata: b\n\ndata: " + long + "\n\n"
	assert.Equal(t, []string{long, "b", long}, readAll(t, iotest.HalfReader(strings.NewReader(text)), false))
}

func FuzzEvents(f *testing.F) {
	f.Add("data: a\n\ndata: b\r\n\r\n: c\rdata:d\r\r", uint8(3))
	f.Add("data\ndata:\n\n\n", uint8(1))
	f.Fuzz(func(t *testing.T, text string, piece uint8) {
		got := readAll(t, &pieces{text, int(piece)%7 + 1}, false)
		assert.Equal(t, reference(text), got)
		for _, line := range readAll(t, &pieces{text, int(piece)%7 + 1}, true) {
			assert.NotContains(t, line, "\n")
			assert.NotEmpty(t, line)
		}
	})
}

// pieces reads text a few bytes at a time.
type pieces struct {
	text string
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if p.text == "" {
		return 0, io.EOF
	}
	n := copy(b, p.text[:min(p.size, len(p.text))])
	p.text = p.text[n:]
	return n, nil
}
