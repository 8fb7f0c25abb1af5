package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOrderIsBalanced(t *testing.T) {
	for seed := range uint64(20) {
		for _, n := range []int{1, 2, 7, 10} {
			places := order(n, seed)
			require.Len(t, places, 2*n)
			sum, moment := 0, 0
			for i, side := range places {
				sum += side
				moment += i * (2*side - 1)
			}
			assert.Equal(t, n, sum, "each side runs n times")
			assert.LessOrEqual(t, max(moment, -moment), 1, "a linear drift cancels: %v", places)
		}
	}
	assert.NotEqual(t, order(20, 1), order(20, 2))
	assert.Equal(t, order(20, 1), order(20, 1))
}

// repository makes a module whose benchmark reports a made-up, noisy figure, with one commit for each level.
func repository(t *testing.T, levels ...float64) (dir string, commits []string) {
	if testing.Short() {
		t.Skip("builds test binaries of several commits: run without -short")
	}
	dir = t.TempDir()
	t.Chdir(dir)
	sh := func(name string, args ...string) string {
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@example.org", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@example.org")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		return strings.TrimSpace(string(out))
	}
	write := func(name, text string) {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	sh("git", "init", "-q")
	write("go.mod", "module example.org/m\n\ngo 1.26\n")
	write(".gitignore", ".cache/\n")
	for i, level := range levels {
		write("b/b_test.go", fmt.Sprintf(`package b
import ("fmt"; "math/rand/v2"; "os"; "testing")
func TestMain(m *testing.M) { fmt.Println("Unit step-ms better=lower"); os.Exit(m.Run()) }
func BenchmarkStep(b *testing.B) {
	for b.Loop() { }
	b.ReportMetric(%g*(1+0.003*rand.NormFloat64()), "step-ms")
	b.ReportMetric(0, "ns/op")
}
// %d
`, level, i))
		sh("git", "add", "-A")
		sh("git", "commit", "-qm", fmt.Sprint("level ", level))
		commits = append(commits, sh("git", "rev-parse", "HEAD"))
	}
	return dir, commits
}

func ab(t *testing.T, args ...string) (string, string, int) {
	var out, err bytes.Buffer
	code := run(context.Background(), args, &out, &err)
	return out.String(), err.String(), code
}

func TestEndToEnd(t *testing.T) {
	dir, commits := repository(t, 100, 100, 100, 106, 106)

	out, errs, code := ab(t, "--pkg", "./b", "--base", commits[0], "--new", commits[1], "--metric", "step-ms")
	assert.Equal(t, 0, code, out+errs)
	assert.Contains(t, out, "no regression")

	out, errs, code = ab(t, "--pkg", "./b", "--base", commits[0], "--new", ".", "--metric", "step-ms", "--out", ".cache/kept")
	assert.Equal(t, 1, code, out+errs)
	assert.Contains(t, out, "worse Step")
	runs, err := os.ReadFile(filepath.Join(dir, ".cache/kept", "runs.jsonl"))
	require.NoError(t, err)
	assert.Equal(t, 20, bytes.Count(runs, []byte("\n")))

	t.Run("resumes", func(t *testing.T) {
		lines := bytes.SplitAfter(runs, []byte("\n"))
		require.NoError(t, os.WriteFile(".cache/kept/runs.jsonl", bytes.Join(lines[:18], nil), 0o644))
		_, errs, code := ab(t, "--pkg", "./b", "--base", commits[0], "--new", ".", "--metric", "step-ms", "--out", ".cache/kept")
		assert.Equal(t, 1, code, errs)
		assert.Contains(t, errs, "going on after 18 of 20 runs")
	})
	t.Run("another comparison is refused", func(t *testing.T) {
		_, errs, code := ab(t, "--pkg", "./b", "--base", commits[1], "--new", ".", "--out", ".cache/kept")
		assert.Equal(t, 2, code)
		assert.Contains(t, errs, "holds another comparison")
	})
	t.Run("stops early", func(t *testing.T) {
		_, errs, code := ab(t, "--pkg", "./b", "--base", commits[0], "--new", commits[4], "--metric", "step-ms", "--n", "20", "--stop-early", "--out", ".cache/early")
		assert.Equal(t, 1, code, errs)
		assert.Contains(t, errs, "every row is decided")
	})
	t.Run("bisects", func(t *testing.T) {
		out, errs, code := ab(t, "bisect", "--pkg", "./b", "--good", commits[0], "--bad", commits[4], "--metric", "step-ms", "--n", "6")
		assert.Equal(t, 0, code, errs)
		assert.Contains(t, out, "first bad commit: "+commits[3])
		_, errs, code = ab(t, "bisect", "--pkg", "./b", "--good", commits[0], "--bad", commits[2], "--metric", "step-ms", "--n", "6", "--out", ".cache/none")
		assert.Equal(t, 2, code)
		assert.Contains(t, errs, "nothing to find")
	})
	t.Run("nothing ran", func(t *testing.T) {
		_, errs, code := ab(t, "--pkg", "./b", "--base", commits[0], "--new", commits[1], "--bench", "Nonsense", "--out", ".cache/nothing")
		assert.Equal(t, 2, code)
		assert.Contains(t, errs, "ran nothing")
	})
	t.Run("no such revision", func(t *testing.T) {
		_, errs, code := ab(t, "--pkg", "./b", "--base", "nonsense")
		assert.Equal(t, 2, code)
		assert.Contains(t, errs, "no test binary and no revision")
	})
	left, err := exec.Command("git", "-C", dir, "worktree", "list").Output()
	require.NoError(t, err)
	assert.Equal(t, 1, bytes.Count(left, []byte("\n")), "no work tree is left behind")
}

func TestThrottled(t *testing.T) {
	assert.Empty(t, throttled(state{Reasons: "0x0000000000000004"}, state{}), "the power cap under load is no fault")
	assert.Equal(t, "0x0000000000000024", throttled(state{}, state{Reasons: "0x0000000000000024"}))
}
