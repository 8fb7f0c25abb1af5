//go:build cuda

package cuda

import (
	"fmt"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

type flopProbeParams struct {
	Sink       ptr
	Steps, Pad uint32
}

// flopProbeOp keeps every matrix unit busy for steps rounds, some 0.6 us each. sink is 4 bytes that it may write.
func flopProbeOp(d device, sink ptr, steps int, fp8 bool) op {
	p := flopProbeParams{Sink: sink, Steps: uint32(steps)}
	k, flag := 64, 0
	if fp8 {
		k, flag = 128, 1
	}
	return op{Name: "flop_probe", Unit: unit{"flop_probe.cu", "flop_probe", fmt.Sprintf("FP8=%d", flag)}, Grid: [3]int{d.SMs, 1, 1}, Block: 256, Params: paramBytes(&p),
		FLOPs: int64(steps) * 2 * int64(d.SMs) * 2 * 64 * 256 * int64(k)}
}

// probesFLOPs tells whether the probe is written for the device's matrix units.
func (d device) probesFLOPs() bool { return d.SM == 90 }

// flopProbeUnits are what the probe needs compiled.
func flopProbeUnits(d device) []unit {
	if !d.probesFLOPs() {
		return nil
	}
	return []unit{flopProbeOp(d, 0, 0, false).Unit, flopProbeOp(d, 0, 0, true).Unit}
}

// tensorFLOPs measures what the matrix units do in a second, of bf16 (and f16) and of fp8: the best of a few runs of a millisecond, while
// the card has power and cool to spare. Longer work runs at lower clocks. It is nil where it is not measured.
func (b *Backend) tensorFLOPs() (bf16, fp8 *float64, err error) {
	if !b.device.probesFLOPs() {
		return nil, nil, nil
	}
	for _, m := range []struct {
		fp8  bool
		best **float64
	}{{false, &bf16}, {true, &fp8}} {
		probe := flopProbeOp(b.device, b.buffers.X, 1600, m.fp8)
		seconds, err := b.fastest(probe, 4)
		if err != nil {
			return nil, nil, fmt.Errorf("probe of the matrix units: %w", err)
		}
		rate := float64(probe.FLOPs) / seconds
		*m.best = &rate
	}
	return bf16, fp8, nil
}

// fastest runs a kernel times times and returns the shortest time in seconds.
func (b *Backend) fastest(o op, times int) (float64, error) {
	begin, err := driver.NewEvent()
	if err != nil {
		return 0, err
	}
	defer begin.Destroy()
	end, err := driver.NewEvent()
	if err != nil {
		return 0, err
	}
	defer end.Destroy()
	best := 0.0
	for range times {
		if err := begin.Record(b.stream); err != nil {
			return 0, err
		}
		if err := b.launch(o, b.stream); err != nil {
			return 0, err
		}
		if err := end.Record(b.stream); err != nil {
			return 0, err
		}
		if err := end.Synchronize(); err != nil {
			return 0, err
		}
		ms, err := begin.Milliseconds(end)
		if err != nil {
			return 0, err
		}
		if s := ms / 1e3; best == 0 || s < best {
			best = s
		}
	}
	return best, nil
}
