package benchmarks

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var growth = regexp.MustCompile(`step-us \+(\d+)\.`)

// TestAPlantedSlowdownIsNamed builds the benchmarks twice, once with an attention that first does nothing for a while, profiles a batch with
// both in turn, and lets benchstat judge: it fails, and the one kernel that it names above all is attention.
func TestAPlantedSlowdownIsNamed(t *testing.T) {
	if testing.Short() {
		t.Skip("builds the benchmarks twice: left out of -short")
	}
	dir := t.TempDir()
	source, err := filepath.Abs("../engine/cpu/attention.go")
	require.NoError(t, err)
	text, err := os.ReadFile(source)
	require.NoError(t, err)
	const place = "func (s *stepper) attend(layer int) {\n"
	require.Equal(t, 1, strings.Count(string(text), place))
	planted := filepath.Join(dir, "attention.go.txt")
	slow := strings.Replace(string(text), place, place+"\tfor begin := time.Now(); time.Since(begin) < 200*time.Microsecond; {\n\t}\n", 1)
	if !strings.Contains(slow, "\t\"time\"\n") {
		slow = strings.Replace(slow, "import (\n", "import (\n\t\"time\"\n", 1)
	}
	require.NoError(t, os.WriteFile(planted, []byte(slow), 0o600))
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{source: planted}})
	require.NoError(t, err)
	overlayPath := filepath.Join(dir, "overlay.json")
	require.NoError(t, os.WriteFile(overlayPath, overlay, 0o600))

	binaries, rows := map[string]string{}, map[string]*strings.Builder{}
	for side, flags := range map[string][]string{"old": nil, "new": {"-overlay", overlayPath}} {
		binaries[side], rows[side] = filepath.Join(dir, side+".test"), &strings.Builder{}
		out, err := exec.Command("go", append(append([]string{"test", "-c", "-o", binaries[side]}, flags...), ".")...).CombinedOutput()
		require.NoError(t, err, string(out))
	}
	for range 5 {
		for _, side := range []string{"old", "new", "new", "old"} {
			cmd := exec.Command(binaries[side], "-test.run=^$", "-test.bench=OneBatch", "--batch-size=1", "--input-len=32", "--output-len=24", "--device=cpu",
				"--profile", "--profile-stage=decode", "--profile-steps=8", "--profiler-dir="+dir)
			cmd.Stdout = rows[side]
			require.NoError(t, cmd.Run())
		}
	}
	for side, text := range rows {
		require.NoError(t, os.WriteFile(filepath.Join(dir, side+".txt"), []byte(text.String()), 0o600))
	}
	out, err := exec.Command("go", "run", "../benchstat", "-filter", ".unit:step-us", "-threshold", "0.5", "-ignore", "commit,date,throttled,machine", filepath.Join(dir, "old.txt"), filepath.Join(dir, "new.txt")).CombinedOutput()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit, string(out))
	assert.Equal(t, 1, exit.ExitCode(), string(out))
	// Of a shared machine's noise nothing is asked but that it slows no kernel as much as the plant, which makes attention several times as slow.
	most, named := 0, ""
	for line := range strings.Lines(string(out)) {
		if m := growth.FindStringSubmatch(line); m != nil && strings.HasPrefix(line, "worse ") {
			if percent, err := strconv.Atoi(m[1]); err == nil && percent > most {
				most, named = percent, line
			}
		}
	}
	assert.Contains(t, named, "kernel=attention ", string(out))
	assert.Greater(t, most, 200, named)
}
