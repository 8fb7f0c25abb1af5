package benchmarks

import (
	"errors"
	"testing"

	"github.com/tokamak-engine/tokamak/engine"
)

// profileFlags are SGLang's flags for a profiled run. A profiled run is a second pass after the timed one: its row carries prof=1
// in its name and cannot be taken for a clean one.
type profileFlags struct {
	on         bool
	activities list[string]
	stage      string
	prefix     string
	startStep  int
	steps      int
	outputDir  string
}

func defaultProfileFlags() profileFlags {
	return profileFlags{activities: list[string]{values: []string{"CPU", "GPU"}}, stage: "all", prefix: "profile", startStep: -1, steps: 1}
}

func (p *profileFlags) table() []engine.Option {
	return []engine.Option{
		{Name: "profile", Value: &p.on, Help: "profile in a second pass, after the timed one"},
		{Name: "profile-activities", Value: &p.activities, Help: "what to record: CPU, GPU, CUDA_PROFILER"},
		{Name: "profile-stage", Value: &p.stage, Choices: []string{"all", "prefill", "decode"}, Help: "which part of a batch to record"},
		{Name: "profile-prefix", Aliases: []string{"profile-filename-prefix"}, Value: &p.prefix, Help: "beginning of the trace files' names"},
		{Name: "profile-start-step", Value: &p.startStep, Help: "first decode step to record; -1: half of the output"},
		{Name: "profile-steps", Aliases: []string{"profile-num-steps"}, Value: &p.steps, Help: "decode steps to record"},
		{Name: "profile-output-dir", Value: &p.outputDir, Help: "folder of the trace files; default $TOKAMAK_PROFILER_DIR or the system's temporary folder"},
	}
}

func (p *profileFlags) check() error {
	for _, a := range p.activities.values {
		switch a {
		case "CPU", "GPU", "CUDA_PROFILER":
		default:
			return &engine.OptionError{Name: "profile-activities", Value: a, Want: "CPU, GPU, CUDA_PROFILER"}
		}
	}
	return nil
}

// profile runs the case once more, recorded, after the timed rows.
func (c *oneBatch) profile(b *testing.B, name string) {
	leaf(b, name+"/prof=1/phase=total", func(b *testing.B) {
		for b.Loop() {
			path, err := record(name, func() error { _, err := c.engine.StaticBatch(c.prompts, c.out, 0); return err })
			if err != nil {
				b.Fatal(err)
			}
			term.note("profile of %s: %s", name, path)
		}
	})
}

// record runs f under the profiler and gives the path of what was written.
func record(name string, f func() error) (path string, err error) {
	return "", errors.New("--profile is not built in yet")
}
