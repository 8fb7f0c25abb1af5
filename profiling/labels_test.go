package profiling

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/pprof/profile"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

func TestHostProfileKnowsThePhase(t *testing.T) {
	dir := t.TempDir()
	cpu, gotrace := filepath.Join(dir, "cpu.out"), filepath.Join(dir, "trace.out")
	stop, err := HostProfile(cpu, gotrace)
	require.NoError(t, err)
	burn := func(phase string, c trace.Category, long time.Duration) {
		defer trace.Begin(phase, c).End()
		for end := time.Now().Add(long); time.Now().Before(end); {
		}
	}
	burn("schedule", trace.Scheduler, 300*time.Millisecond)
	burn("deliver", trace.Loop, 100*time.Millisecond)
	require.NoError(t, stop())
	require.NoError(t, stop(), "twice is once")
	require.False(t, trace.Enabled())

	f, err := os.Open(cpu)
	require.NoError(t, err)
	defer f.Close()
	p, err := profile.Parse(f)
	require.NoError(t, err)
	byPhase := map[string]int64{}
	for _, s := range p.Sample {
		for _, phase := range s.Label["phase"] {
			byPhase[phase] += s.Value[0]
		}
	}
	assert.Greater(t, byPhase["schedule"], byPhase["deliver"])
	assert.Positive(t, byPhase["deliver"])
	text, err := os.ReadFile(gotrace)
	require.NoError(t, err)
	assert.True(t, bytes.HasPrefix(text, []byte("go 1.")))
	assert.True(t, bytes.Contains(text, []byte("schedule")), "a region")
}

func TestHostProfileThatCannotBeWritten(t *testing.T) {
	dir := t.TempDir()
	_, err := HostProfile(filepath.Join(dir, "cpu.out"), filepath.Join(dir, "no", "trace.out"))
	require.ErrorContains(t, err, "no such file")
	stop, err := HostProfile(filepath.Join(dir, "cpu.out"), "") // the one before has ended
	require.NoError(t, err)
	require.NoError(t, stop())
	stop, err = HostProfile("", "")
	require.NoError(t, err)
	require.NoError(t, stop())
}
