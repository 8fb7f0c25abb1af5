package server

import (
	"context"
	"errors"
	"io/fs"
	"math"
	"net/http"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/metrics"
)

// Profiler starts and stops captures. It decides where output goes: a request can name a capture but no directory.
type Profiler interface {
	// StartProfile begins a capture and returns at once with where its output will be. It returns an error that says so if one
	// is running.
	StartProfile(ctx context.Context, r ProfileRequest) (output string, err error)
	// StopProfile ends the running capture and returns the files it wrote.
	StopProfile(ctx context.Context) (files []string, err error)
}

// ProfileRequest is what a client may ask of a capture.
type ProfileRequest struct {
	Name       string   // part of file names: letters, digits, "-", "_" and ".", no leading dot; may be empty
	Activities []string // "CPU", "GPU", "MEM", "CUDA_PROFILER"; empty leaves it to the profiler
	StartStep  int      // engine steps from now until the capture begins
	NumSteps   int      // steps to capture; 0 captures until StopProfile
	ByStage    bool     // capture prefill and decode steps apart
	Stage      string   // "", "all", "prefill" or "decode"
	When       string   // "", or a condition on a step such as "batch>=8"
	Stages     []string
	WithStack  bool
	Shapes     bool
}

var errNoProfiler = &apiError{status: http.StatusNotImplemented, kind: "invalid_request_error", code: "profiler_absent", outcome: metrics.OutcomeInvalid,
	message: "this server has no profiler: start it with profiling enabled, see the documentation"}

// startProfile begins a capture. Clients made for SGLang send an output_dir of their own machine: only what a profiler makes of
// the name is used, below the server's directory.
func (c *call) startProfile() error {
	if c.s.profiler == nil {
		return errNoProfiler
	}
	var r ProfileRequest
	if c.r.ContentLength != 0 && c.r.Method == http.MethodPost {
		o, err := c.object()
		if err != nil {
			return err
		}
		o.text("profile_prefix", &r.Name, maxNameBytes)
		o.text("profile_id", &r.Name, maxNameBytes)
		o.texts("activities", &r.Activities, 16, maxNameBytes)
		o.integer("start_step", &r.StartStep, 0, math.MaxInt32)
		o.integer("num_steps", &r.NumSteps, 0, math.MaxInt32)
		o.boolean("profile_by_stage", &r.ByStage)
		o.text("stage", &r.Stage, maxNameBytes)
		o.text("when", &r.When, maxNameBytes)
		o.texts("profile_stages", &r.Stages, 16, maxNameBytes)
		o.boolean("with_stack", &r.WithStack)
		o.boolean("record_shapes", &r.Shapes)
		o.ignore("output_dir", "merge_profiles")
		o.strict()
		if o.err != nil {
			return o.err
		}
	}
	r.Name = fileName(r.Name)
	output, err := c.s.profiler.StartProfile(c.r.Context(), r)
	if err != nil {
		return profileProblem(err)
	}
	return c.answerJSON(map[string]any{"message": "Start profiling.", "output": output})
}

func (c *call) stopProfile() error {
	if c.s.profiler == nil {
		return errNoProfiler
	}
	files, err := c.s.profiler.StopProfile(c.r.Context())
	if err != nil {
		return profileProblem(err)
	}
	return c.answerJSON(map[string]any{"message": "Stop profiling.", "files": files})
}

// profileProblem answers 409 with what the profiler says: a capture runs, none does, the directory cannot be written. The
// path of a file that failed is left to the log.
func profileProblem(err error) error {
	said := err.Error()
	var file *fs.PathError
	if errors.As(err, &file) {
		said = strings.ReplaceAll(said, file.Path, "…")
	}
	e := &apiError{status: http.StatusConflict, kind: "invalid_request_error", code: "profiler", outcome: metrics.OutcomeInvalid,
		message: "profiler: " + said}
	return e.because(err)
}

// fileName keeps of a client's name what is harmless in a file name.
func fileName(name string) string {
	const most = 64
	out := make([]byte, 0, len(name))
	for i := 0; i < len(name) && len(out) < most; i++ {
		c := name[i]
		ok := c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.' && len(out) > 0
		if ok {
			out = append(out, c)
		}
	}
	return string(out)
}
