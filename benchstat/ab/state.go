package main

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// state of the machine beside a run. What cannot be read is absent, not 0.
type state struct {
	Load1   *float64 `json:"load1,omitempty"`   // runnable processes, average of a minute
	CPUMHz  *float64 `json:"cpu_mhz,omitempty"` // of the first processor
	SMMHz   *float64 `json:"sm_mhz,omitempty"`
	Watts   *float64 `json:"watts,omitempty"`
	Celsius *float64 `json:"celsius,omitempty"`
	// Reasons is the card's mask of clock event reasons, in hexadecimal.
	Reasons string `json:"clock_event_reasons,omitempty"`
}

func machineState(ctx context.Context) state {
	var s state
	if text, err := os.ReadFile("/proc/loadavg"); err == nil {
		s.Load1 = parse(strings.Fields(string(text))[0])
	}
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if _, rest, ok := strings.Cut(string(text), "cpu MHz"); ok {
			line, _, _ := strings.Cut(rest, "\n")
			s.CPUMHz = parse(strings.Trim(line, ": \t"))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "nvidia-smi", "--id=0", "--format=csv,noheader,nounits",
		"--query-gpu=clocks.sm,power.draw,temperature.gpu,clocks_event_reasons.active").Output()
	if err != nil {
		return s // no card, or none that can be asked
	}
	if f := strings.Split(strings.TrimSpace(string(out)), ", "); len(f) == 4 {
		s.SMMHz, s.Watts, s.Celsius, s.Reasons = parse(f[0]), parse(f[1]), parse(f[2]), f[3]
	}
	return s
}

func parse(text string) *float64 {
	v, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return nil
	}
	return &v
}

// slowdowns are the bits of NVML's clock event reasons that make a sample unfit: hardware slowdown, thermal limits, power brake. The
// software power cap (0x4) is how a card behaves under full load and is no fault.
const slowdowns = 0x8 | 0x20 | 0x40 | 0x80

func throttled(states ...state) string {
	for _, s := range states {
		mask, err := strconv.ParseUint(strings.TrimPrefix(s.Reasons, "0x"), 16, 64)
		if err == nil && mask&slowdowns != 0 {
			return s.Reasons
		}
	}
	return ""
}
