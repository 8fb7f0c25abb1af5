package benchmarks

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/tokamak-engine/tokamak/engine"
)

// configuration prints the lines that benchstat takes as configuration of the rows that follow. It is called by a benchmark
// before its first row, when nothing is half printed, and prints only what changed.
type configuration struct {
	mu      sync.Mutex
	printed map[string]string
	units   map[bool]bool // unit lines printed, for a static batch or not
}

var configLines configuration

type keyText struct{ key, text string }

func (c *configuration) print(static bool, lines []keyText) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.printed == nil {
		c.printed, c.units = map[string]string{}, map[bool]bool{}
	}
	if !c.units[static] {
		c.units[static] = true
		fmt.Print(unitLines(static))
	}
	for _, l := range lines {
		text := strings.Join(strings.Fields(l.text), " ")
		if old, ok := c.printed[l.key]; ok && old == text {
			continue
		}
		if text != "" || c.printed[l.key] != "" {
			fmt.Printf("%s: %s\n", l.key, text) // an empty value takes an earlier one back
		}
		c.printed[l.key] = text
	}
}

// engineConfig describes an engine of this process.
func engineConfig(e *engine.Engine) []keyText {
	info, o := e.Info(), e.Options()
	lines := []keyText{
		{"backend", info.Name}, {"model", modelName(o.ModelPath)}, {"dtype", info.DType}, {"kv-dtype", o.KVCacheDType}, {"load-format", o.LoadFormat},
		{"device", info.Device}, {"driver", ""}, {"commit", commit()}, {"flags", set.flagsText()},
	}
	if info.Name == "cuda" {
		lines[6].text = driverVersion()
	}
	return lines
}

// notInFlags are flags that stand in a row's name, or that change nothing that is measured.
var notInFlags = []string{
	"model-path", "batch-size", "input-len", "output-len", "dataset-name", "dataset-path", "num-prompts", "random-input-len", "random-output-len",
	"backend", "base-url", "host", "port", "request-rate", "max-concurrency", "run-name", "log-decode-step", "result-filename", "plot", "api-key", "header",
	"help-flags", "output-details", "profiler-dir", "ready-check-timeout-sec", "allow-failures", "goodput", "goodput-share",
	"client-max-lag", "client-max-cpu", "duration", "server-binary", "profile", "profile-activities", "profile-stage", "profile-prefix",
	"profile-start-step", "profile-steps",
}

// flagsText lists the flags that were given and matter to the figures.
func (s *settings) flagsText() string {
	var flags []string
	for name := range s.given {
		if !slices.Contains(notInFlags, name) {
			flags = append(flags, "--"+name+"="+flag.Lookup(name).Value.String())
		}
	}
	if len(flags) == 0 {
		return "none"
	}
	slices.Sort(flags)
	return strings.Join(flags, " ")
}

// commit is the checkout's, with a mark if files differ from it; "" outside a checkout.
var commit = sync.OnceValue(func() string {
	git := func(args ...string) (string, error) {
		out, err := exec.Command("git", args...).Output()
		return strings.TrimSpace(string(out)), err
	}
	hash, err := git("rev-parse", "--short=12", "HEAD")
	if err != nil {
		return ""
	}
	if changed, err := git("status", "--porcelain", "--untracked-files=no"); err == nil && changed != "" {
		hash += "-dirty"
	}
	return hash
})

// driverVersion is the NVIDIA kernel driver's version, "" if it does not tell.
func driverVersion() string {
	text, err := os.ReadFile("/proc/driver/nvidia/version")
	if err != nil {
		return ""
	}
	return regexp.MustCompile(`\d+\.\d+(\.\d+)?`).FindString(string(text))
}
