package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// sample writes a trace of two steps of two kernels, the second of which begins before the first has ended.
func sample(t *testing.T, drop string) string {
	path := filepath.Join(t.TempDir(), "x.trace.json.gz")
	f, err := os.Create(path)
	require.NoError(t, err)
	w := chrometrace.NewWriter(f)
	us := func(n int) time.Duration { return time.Duration(n) * time.Microsecond }
	for i := range 2 {
		at, step := us(1000*i), chrometrace.Arg{Key: "step", Value: i + 1}
		w.Complete("decode batch=1 tokens=1", "step", chrometrace.Track{PID: 1, TID: 2}, at, us(900), step)
		for j, op := range []string{"gemv_qkv", "publish"} {
			args := []chrometrace.Arg{step}
			for key, value := range map[string]any{"op": op, "layer": []any{3, "outside"}[j], "go stack": "f x.go:1", "graph node": 7 + j} {
				if key != drop {
					args = append(args, chrometrace.Arg{Key: key, Value: value})
				}
			}
			w.Complete(op, "kernel", chrometrace.Track{PID: 10, TID: 1}, at+us(100+300*j), us(400), args...)
		}
	}
	require.NoError(t, w.Close())
	require.NoError(t, f.Close())
	return path
}

func sum(args ...string) (int, string) {
	var out bytes.Buffer
	return run(args, &out, &out), out.String()
}

func TestAWholeTrace(t *testing.T) {
	code, out := sum("--stacks", "--steps", "decode batch=1", "--step-ms", "0.71", "--layers", sample(t, ""))
	assert.Zero(t, code, out)
	for _, want := range []string{"2 steps  decode batch=1 tokens=1", "2 kernels a step: 0.7000 ms", "busy 0.7000 ms", "gemv_qkv       1 a step     400.00 us each", "publish       1 a step     300.00 us each",
		"layer 3     400.00 us a step", "-1.41 %", "2 graph nodes, 0 of them"} {
		assert.Contains(t, out, want)
	}
}

func TestWhatIsMissingIsSaid(t *testing.T) {
	for drop, want := range map[string]string{"op": "4 kernels without an operation", "layer": "4 kernels without a layer", "go stack": "4 kernels without a Go stack"} {
		code, out := sum("--stacks", sample(t, drop))
		assert.Equal(t, 1, code, drop)
		assert.Contains(t, out, want)
	}
	code, out := sum("--step-ms", "0.6", sample(t, ""))
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "+16.67 % off")
	code, out = sum("--steps", "prefill", sample(t, ""))
	assert.Equal(t, 1, code)
	assert.Contains(t, out, "no such steps")
}

func TestBadUse(t *testing.T) {
	code, _ := sum()
	assert.Equal(t, 2, code)
	code, out := sum("/nonexistent")
	assert.Equal(t, 2, code)
	assert.Contains(t, out, "no such file")
	path := filepath.Join(t.TempDir(), "x")
	require.NoError(t, os.WriteFile(path, []byte("{"), 0o600))
	code, _ = sum(path)
	assert.Equal(t, 2, code)
}
