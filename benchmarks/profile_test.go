package benchmarks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/tidwall/gjson"

	"github.com/tokamak-engine/tokamak/benchmarks/load"
	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/datasets"
	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/sources"
)

// profileFlags are SGLang's flags for a profiled run. It is a second pass after the timed one: its row carries prof=1 in its
// name and cannot be taken for a clean one.
type profileFlags struct {
	on         bool
	activities list[string]
	stage      string
	prefix     string
	startStep  int
	steps      int
	dir        string

	captures []stageCapture // of the pass, for the rows of its kernels
}

// stageCapture is what record recorded of a stage.
type stageCapture struct {
	stage   string
	capture *profiling.Capture
}

func defaultProfileFlags() profileFlags {
	return profileFlags{activities: list[string]{values: []string{sources.CPU, sources.GPU}}, stage: "all", prefix: "profile", steps: 1}
}

func (p *profileFlags) table() []engine.Option {
	return []engine.Option{
		{Name: "profile", Value: &p.on, Help: "profile in a second pass, after the timed one"},
		{Name: "profile-activities", Value: &p.activities, Help: "what to record: CPU, GPU, CUDA_PROFILER"},
		{Name: "profile-stage", Value: &p.stage, Choices: []string{"all", "prefill", "decode"}, Help: "OneBatch: which part of a batch to record; all records each in a file of its own"},
		{Name: "profile-prefix", Aliases: []string{"profile-filename-prefix"}, Value: &p.prefix, Help: "beginning of the trace files' names"},
		{Name: "profile-start-step", Value: &p.startStep, Help: "first step to record, counted from 0; OneBatch counts decode steps and takes half of the output if it is not given"},
		{Name: "profile-steps", Aliases: []string{"profile-num-steps"}, Value: &p.steps, Help: "steps of each stage to record; OfflineThroughput and Serving record 200 if it is not given"},
		{Name: "profiler-dir", Aliases: []string{"profile-output-dir"}, Value: &p.dir, Help: "folder of the trace files; default: the system's temporary folder. A server that is started here gets it, another one chooses itself"},
	}
}

func (p *profileFlags) check() error {
	if _, err := sources.For(slices.Clone(p.activities.values), false); err != nil && !errors.Is(err, sources.ErrNoGPU) { // where it runs is not known yet
		return err
	}
	if p.steps < 1 || p.steps > profiling.MaxSteps {
		return &engine.OptionError{Name: "profile-steps", Value: fmt.Sprint(p.steps), Want: fmt.Sprintf("1 to %d", profiling.MaxSteps)}
	}
	if p.startStep < 0 {
		return &engine.OptionError{Name: "profile-start-step", Value: fmt.Sprint(p.startStep), Want: "at least 0"}
	}
	return nil
}

// folder is where traces go: the flag's, the environment's, or the system's temporary folder.
func (p *profileFlags) folder() string {
	switch {
	case p.dir != "":
		return p.dir
	case sources.Dir() != "":
		return sources.Dir()
	}
	return os.TempDir()
}

// record runs f under a capture and tells which files it wrote.
func (p *profileFlags) record(e *engine.Engine, name, stage string, start, steps int, f func() error) error {
	dir := p.folder()
	from, err := sources.For(slices.Clone(p.activities.values), e.Info().Name == "cuda")
	if err != nil {
		return err
	}
	c, err := profiling.Start(profiling.Options{Dir: dir, Name: p.prefix + "_" + name, StartStep: start, NumSteps: steps, Stage: stage, Sources: from})
	if err != nil {
		return err
	}
	runErr := f()
	files, err := c.Stop()
	if runErr != nil {
		return runErr
	}
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	if len(files) == 0 {
		return fmt.Errorf("the profiler wrote nothing: step %d and the %d after it were not reached", start, steps)
	}
	for _, file := range files {
		term.note("profile: %s", file)
	}
	p.captures = append(p.captures, stageCapture{stage, c})
	return nil
}

// kernels reports what ran in the captures made since the last call: those of a stage are repetitions of each other.
func (p *profileFlags) kernels(b *testing.B, e *engine.Engine, row string) {
	stages := map[string][]*profiling.Capture{}
	var order []string
	for _, s := range p.captures {
		if stages[s.stage] == nil {
			order = append(order, s.stage)
		}
		stages[s.stage] = append(stages[s.stage], s.capture)
	}
	for _, stage := range order {
		name := row
		if stage != "all" {
			name += "/phase=" + stage
		}
		reportKernels(b, e, name, stages[stage])
	}
	p.captures = nil
}

// profile runs the case again for each stage, recorded.
func (c *oneBatch) profile(b *testing.B, name string) {
	p := &set.profile
	leaf(b, name+"/prof=1/phase=total", func(b *testing.B) {
		var runs []*engine.StaticRun
		stage := func(stage string, start, steps int) {
			file := fmt.Sprintf("batch%d_input%d_output%d_%s", c.batch, c.in, c.out, stage)
			err := p.record(c.engine, file, stage, start, steps, func() error {
				run, err := c.engine.StaticBatch(c.prompts, c.out, 0)
				if err == nil {
					err = c.check(run)
					runs = append(runs, run)
				}
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		for b.Loop() {
			if p.stage != "decode" {
				stage("prefill", 0, p.steps)
			}
			if decodeSteps := c.out - 1; p.stage != "prefill" && decodeSteps > 0 {
				first := decodeSteps / 2
				if set.given["profile-start-step"] {
					first = p.startStep
				}
				if first+p.steps > decodeSteps {
					b.Fatalf("--profile-start-step %d and --profile-steps %d: the batch has %d decode steps, raise --output-len", first, p.steps, decodeSteps)
				}
				stage("decode", c.prefillSteps()+first, p.steps)
			}
		}
		table.report(b, c.totalFigures(runs))
	})
	p.kernels(b, c.engine, name+"/prof=1")
}

// prefillSteps is the number of steps ahead of the first decode step.
func (c *oneBatch) prefillSteps() int {
	if len(c.runs) > 0 {
		return c.runs[0].PrefillSteps
	}
	return 1 // only the profiled row was asked for; a chunked prefill shifts the capture by its further chunks
}

// manySteps bounds the capture of a run of many requests.
func (p *profileFlags) manySteps() int {
	if set.given["profile-steps"] {
		return p.steps
	}
	return profiling.DefaultSteps
}

// profileOffline runs the dataset again, recorded.
func profileOffline(b *testing.B, e *engine.Engine, name string, samples []datasets.Sample) {
	leaf(b, name+"/prof=1", func(b *testing.B) {
		var figures []figure
		runs := 0
		for b.Loop() {
			err := set.profile.record(e, "offline", "all", set.profile.startStep, set.profile.manySteps(), func() error {
				report, _, err := offline(e, samples)
				if err == nil {
					figures = append(figures, throughputFigures(load.Summarize(report, nil))...)
					runs++
				}
				return err
			})
			if err != nil {
				b.Fatal(err)
			}
		}
		table.report(b, meanFigures(figures, runs))
	})
	set.profile.kernels(b, e, name+"/prof=1")
}

// profile offers the case again while the server records, by SGLang's protocol, which vLLM's routes follow, too.
func (c *servingCase) profile(b *testing.B, name string) {
	p := &set.profile
	c.card = cardMeter{}
	leaf(b, name+"/prof=1/"+c.name(), func(b *testing.B) {
		var figures []figure
		runs := 0
		for b.Loop() {
			body, err := json.Marshal(map[string]any{
				"num_steps": p.manySteps(), "start_step": p.startStep, "activities": p.activities.values, "profile_prefix": p.prefix,
			})
			if err != nil {
				b.Fatal(err)
			}
			ctx := context.Background()
			if _, err := c.target.client.Post(ctx, "/start_profile", body); err != nil {
				b.Fatal(c.target.explain(err))
			}
			report, err := c.run()
			reply, stopErr := c.target.client.Post(ctx, "/stop_profile", nil)
			if err == nil {
				err = stopErr
			}
			if err != nil {
				b.Fatal(c.target.explain(err))
			}
			for _, file := range gjson.GetBytes(reply, "files").Array() {
				term.note("profile: %s", file.String())
			}
			s := load.Summarize(report, nil)
			if err := c.check(report, s); err != nil {
				b.Fatal(c.target.explain(err))
			}
			figures = append(figures, throughputFigures(s)...)
			runs++
		}
		table.report(b, meanFigures(figures, runs))
	})
}
