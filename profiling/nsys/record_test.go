package nsys

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// standIn is an nsys that writes its arguments down, one a line.
const standIn = `#!/bin/sh
printf '%s\n' "TOKAMAK_NVTX=$TOKAMAK_NVTX" "$@" >"$RECORD"
[ "$1 $2" = "sessions list" ] && printf '   ID        TIME    STATE        LAUNCH  NAME\n   12345     00:10   Collection   1       server\n'
exit 0
`

// record runs the script in the repository's root and returns what nsys was given.
func record(t *testing.T, env []string, args ...string) (given []string, output string, err error) {
	dir := t.TempDir()
	nsys := filepath.Join(dir, "nsys")
	require.NoError(t, os.WriteFile(nsys, []byte(standIn), 0o755))
	script, err := filepath.Abs("record.sh")
	require.NoError(t, err)
	cmd := exec.Command("sh", append([]string{script}, args...)...)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "NSYS="+nsys, "RECORD="+filepath.Join(dir, "args"), "BIN=/bin/program", "MODEL=", "OUT=", "STEPS=", "TOKAMAK_NVTX=")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	text, _ := os.ReadFile(filepath.Join(dir, "args"))
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n"), string(out), err
}

// split tells nsys's arguments from the program's.
func split(t *testing.T, given []string) (nsys, program []string) {
	i := slices.Index(given, "/bin/program")
	require.Positive(t, i, given)
	return given[:i], given[i+1:]
}

func TestOneBatch(t *testing.T) {
	given, out, err := record(t, nil, "one-batch", "--gpu-metrics-devices=0", "--stats=true", "--", "--batch", "1,8", "--model-path=/a dir/$HOME")
	require.NoError(t, err, out)
	nsys, program := split(t, given)
	assert.Equal(t, "TOKAMAK_NVTX=1", nsys[0])
	assert.Equal(t, "profile", nsys[1])
	for _, want := range []string{"--trace-fork-before-exec=true", "--cuda-graph-trace=node", "--trace=cuda,nvtx,osrt", "--output=.cache/nsys/one-batch"} {
		assert.Contains(t, nsys, want)
	}
	assert.Equal(t, []string{"--gpu-metrics-devices=0", "--stats=true"}, nsys[len(nsys)-2:], "the caller's come last and win")
	assert.Equal(t, []string{"-test.run=^$", "-test.bench=OneBatch", "--batch", "1,8", "--model-path=/a dir/$HOME"}, program)
}

func TestServer(t *testing.T) {
	given, out, err := record(t, []string{"OUT=out/s", "MODEL=/m"}, "server", "--delay=60", "--duration=70")
	require.NoError(t, err, out)
	nsys, program := split(t, given)
	assert.Contains(t, nsys, "--output=out/s")
	assert.Equal(t, []string{"--delay=60", "--duration=70"}, nsys[len(nsys)-2:])
	assert.Equal(t, []string{"--model-path=/m"}, program)
}

func TestChosenSteps(t *testing.T) {
	given, out, err := record(t, []string{"STEPS=5", "TOKAMAK_NVTX=0"}, "one-batch", "--", "--batch", "1")
	require.NoError(t, err, out)
	nsys, program := split(t, given)
	assert.Equal(t, "TOKAMAK_NVTX=0", nsys[0], "the caller's choice")
	assert.Contains(t, nsys, "--capture-range=cudaProfilerApi")
	assert.Contains(t, nsys, "--capture-range-end=stop")
	assert.Subset(t, program, []string{"--profile", "--profile-activities=CUDA_PROFILER", "--profile-stage=decode", "--profile-steps=5", "--batch"})
}

func TestSessions(t *testing.T) {
	given, out, err := record(t, nil, "sessions")
	require.NoError(t, err, out)
	assert.Equal(t, []string{"sessions", "list"}, given[1:])
	assert.Contains(t, out, "Collection")
	given, out, err = record(t, nil, "stop")
	require.NoError(t, err, out)
	assert.Equal(t, []string{"stop", "--session=server"}, given[1:], "the one that runs")
	given, _, err = record(t, nil, "stop", "profile-77")
	require.NoError(t, err)
	assert.Equal(t, []string{"stop", "--session=profile-77"}, given[1:])
}

func TestBadUse(t *testing.T) {
	_, out, err := record(t, nil, "serve")
	assert.Error(t, err)
	assert.Contains(t, out, "one-batch|server")
	_, out, err = record(t, []string{"NSYS=/nonexistent/nsys"}, "server")
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 127, exit.ExitCode())
	assert.Contains(t, out, "docs/profiling.md")
}

// TestMake goes through the targets that people type.
func TestMake(t *testing.T) {
	dir := t.TempDir()
	nsys := filepath.Join(dir, "nsys")
	require.NoError(t, os.WriteFile(nsys, []byte(standIn), 0o755))
	cmd := exec.Command("make", "-s", "-C", "../..", "nsys-server", "MODEL=/m", "NSYS="+nsys, "OUT="+filepath.Join(dir, "out"), "NSYSFLAGS=--delay=1 --duration=2", "ARGS=--port 1234")
	cmd.Env = append(os.Environ(), "RECORD="+filepath.Join(dir, "args"), "BIN=/bin/program")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	text, err := os.ReadFile(filepath.Join(dir, "args"))
	require.NoError(t, err)
	assert.Contains(t, string(text), "--delay=1\n--duration=2\n/bin/program\n--model-path=/m\n--port\n1234\n")
}
