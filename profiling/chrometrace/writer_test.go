package chrometrace

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// file is the form as an independent reader sees it.
type file struct {
	TraceEvents []struct {
		Ph, Name, Cat string
		PID, TID      int
		TS, Dur       float64
		ID            any
		Args          map[string]any
	}
	OtherData map[string]string
}

func TestWrittenTraceReadsBack(t *testing.T) {
	var out bytes.Buffer
	w := NewWriter(&out)
	w.Meta("steps", "2")
	w.Process(1, "host \"x\"\n", 0)
	w.Thread(Track{1, 7}, "loop", 1)
	w.Complete("launch", "backend", Track{1, 7}, 1500*time.Nanosecond, 2*time.Microsecond, Arg{"step", 3}, Arg{"nan", math.NaN()})
	w.Async("decode", "request", Track{1, 0}, 255, time.Millisecond, time.Second)
	w.Counter("pages", Track{1, 0}, time.Second, 42)
	w.Flow("launch", "ac2g", 9, Track{1, 7}, 0, Track{2, 1}, time.Microsecond)
	w.Instant("mark", "x", Track{1, 7}, 0)
	require.NoError(t, w.Close())

	gz, err := gzip.NewReader(&out)
	require.NoError(t, err)
	var f file
	d := json.NewDecoder(gz)
	d.DisallowUnknownFields()
	text, err := io.ReadAll(gz)
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &f))
	assert.Len(t, f.TraceEvents, w.Events)
	assert.Equal(t, "2", f.OtherData["steps"])
	byPhase := map[string]int{}
	for _, e := range f.TraceEvents {
		byPhase[e.Ph]++
		if e.Ph == "X" {
			assert.Equal(t, 1.5, e.TS)
			assert.Equal(t, 2.0, e.Dur)
			assert.Equal(t, "NaN", e.Args["nan"])
			assert.Equal(t, 3.0, e.Args["step"])
		}
		if e.Ph == "e" {
			assert.Equal(t, "0xff", e.ID)
			assert.Equal(t, 1001000.0, e.TS)
		}
	}
	assert.Equal(t, map[string]int{"M": 4, "X": 1, "b": 1, "e": 1, "C": 1, "s": 1, "f": 1, "i": 1}, byPhase)
}

type full struct{ left int }

func (f *full) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errors.New("no space left on device")
	}
	return len(p), nil
}

func TestAFullDiskIsTold(t *testing.T) {
	w := NewWriter(&full{left: 100})
	for range 100_000 {
		w.Complete("kernel", "gpu", Track{2, 7}, 0, 1)
	}
	assert.ErrorContains(t, w.Close(), "no space left on device")
}
