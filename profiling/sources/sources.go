// Package sources makes what a capture records beside the engine's own marks, by the names that clients use.
package sources

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
	"github.com/tokamak-engine/tokamak/profiling/nvtx"
	"github.com/tokamak-engine/tokamak/profiling/telemetry"
)

// Activities that a client may ask for. CPU, the engine's marks, is always recorded.
const (
	CPU          = "CPU"
	GPU          = "GPU"           // kernels, copies and CUDA calls (CUPTI), power and clocks (NVML)
	CUDAProfiler = "CUDA_PROFILER" // the range that nsys --capture-range=cudaProfilerApi records
)

// Setup reads the environment of a process that runs an engine, once, before the engine is opened: TOKAMAK_NVTX marks ranges for Nsight,
// TOKAMAK_BACKTRACE=cuda notes the Go stack of every launch, TOKAMAK_STAMPS=1 builds kernels that note when they ran.
func Setup() error {
	if nvtx.Enabled() {
		profiling.AddSink(nvtx.NewSink())
	}
	if v := os.Getenv("TOKAMAK_STAMPS"); v != "" {
		on, err := strconv.ParseBool(v)
		if err != nil {
			return fmt.Errorf("TOKAMAK_STAMPS=%q: want 1 or 0", v)
		}
		trace.Stamps.Store(on)
	}
	switch v := os.Getenv("TOKAMAK_BACKTRACE"); v {
	case "", "none":
	case "cuda":
		trace.Stacks.Store(true)
	default:
		return fmt.Errorf("TOKAMAK_BACKTRACE=%q: want cuda or none", v)
	}
	return nil
}

// Dir is the directory of profiles that the environment names; "" if it names none. SGLang's variable is understood, too.
func Dir() string {
	for _, name := range []string{"TOKAMAK_PROFILER_DIR", "SGLANG_TORCH_PROFILER_DIR"} {
		if dir := os.Getenv(name); dir != "" {
			return dir
		}
	}
	return ""
}

// ErrNoGPU is returned for activities of a GPU where there is none to watch.
var ErrNoGPU = errors.New("no CUDA device is in use")

// For makes the sources of activities. none means what the build and the machine can: the GPU's if the engine runs on one. GPU beside CPU, as
// clients of other servers always ask, means the same; GPU alone is an error that wraps [ErrNoGPU] where the engine runs on none.
func For(activities []string, onGPU bool) ([]profiling.Source, error) {
	for i, a := range activities {
		activities[i] = strings.ToUpper(a)
		if !slices.Contains([]string{CPU, GPU, CUDAProfiler}, activities[i]) {
			return nil, fmt.Errorf("activity %q: want CPU, GPU or CUDA_PROFILER", a)
		}
	}
	if !onGPU && len(activities) == 1 && activities[0] == GPU {
		return nil, fmt.Errorf("activity GPU: %w: ask for CPU", ErrNoGPU)
	}
	var all []profiling.Source
	if onGPU && (len(activities) == 0 || slices.Contains(activities, GPU)) {
		all = append(all, gpu()...)
		if s, err := telemetry.Open(0); err == nil {
			all = append(all, &power{sensor: s})
		}
	}
	if slices.Contains(activities, CUDAProfiler) {
		s, err := cudaProfiler()
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

// power draws a card's telemetry as counters.
type power struct {
	sensor   telemetry.Sensor
	recorder *telemetry.Recorder
}

func (p *power) Start() error {
	p.recorder = telemetry.Record(p.sensor, 0)
	return nil
}

func (p *power) Stop() (profiling.Recording, error) {
	readings, err := p.recorder.Stop()
	r := profiling.Recording{}
	track := chrometrace.Track{PID: 9}
	r.Processes = map[int]string{track.PID: "GPU telemetry"}
	for _, reading := range readings {
		for _, c := range []struct {
			name  string
			value float64
		}{{"power W", reading.Watts}, {"SM MHz", reading.SMMHz}, {"memory MHz", reading.MemoryMHz}, {"temperature C", reading.Celsius},
			{"memory used GiB", float64(reading.MemoryUsed) / (1 << 30)}} {
			r.Events = append(r.Events, profiling.Event{Name: c.name, Track: track, Start: reading.At, Counter: true, Value: c.value})
		}
		if len(reading.Throttle) > 0 {
			r.Events = append(r.Events, profiling.Event{Name: "clocks held: " + strings.Join(reading.Throttle, ", "), Category: "throttle", Track: track, Start: reading.At, Length: time.Microsecond})
		}
	}
	p.sensor.Close()
	return r, err
}
