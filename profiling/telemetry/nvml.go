//go:build cuda

package telemetry

import (
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

type nvmlSensor struct{ device nvml.Device }

// Open opens the sensor of card index. libnvidia-ml comes with the driver and is opened now; without it the error is ErrNoSensor.
func Open(index int) (Sensor, error) {
	if r := nvml.Init(); r != nvml.SUCCESS {
		return nil, fmt.Errorf("%w (%s)", ErrNoSensor, nvml.ErrorString(r))
	}
	d, r := nvml.DeviceGetHandleByIndex(index)
	if r != nvml.SUCCESS {
		nvml.Shutdown()
		return nil, fmt.Errorf("%w (card %d: %s)", ErrNoSensor, index, nvml.ErrorString(r))
	}
	return &nvmlSensor{d}, nil
}

// Close gives NVML back.
func (s *nvmlSensor) Close() error {
	if r := nvml.Shutdown(); r != nvml.SUCCESS {
		return fmt.Errorf("NVML shutdown: %s", nvml.ErrorString(r))
	}
	return nil
}

var reasons = []struct {
	bit  uint64
	name string
}{
	{nvml.ClocksThrottleReasonSwPowerCap, PowerCap},
	{nvml.ClocksThrottleReasonSwThermalSlowdown, ThermalSoftware},
	{nvml.ClocksThrottleReasonHwThermalSlowdown, ThermalHardware},
	{nvml.ClocksThrottleReasonHwSlowdown, HardwareSlowdown},
	{nvml.ClocksThrottleReasonHwPowerBrakeSlowdown, PowerBrake},
}

// Read takes one sample: about a millisecond.
func (s *nvmlSensor) Read() (Reading, error) {
	out := Reading{At: time.Now()}
	var failed error
	need := func(what string, r nvml.Return) {
		if r != nvml.SUCCESS && failed == nil {
			failed = fmt.Errorf("NVML %s: %s", what, nvml.ErrorString(r))
		}
	}
	milliwatts, r := s.device.GetPowerUsage()
	need("power", r)
	millijoules, r := s.device.GetTotalEnergyConsumption()
	need("energy", r)
	sm, r := s.device.GetClockInfo(nvml.CLOCK_SM)
	need("SM clock", r)
	memory, r := s.device.GetClockInfo(nvml.CLOCK_MEM)
	need("memory clock", r)
	celsius, r := s.device.GetTemperature(nvml.TEMPERATURE_GPU)
	need("temperature", r)
	info, r := s.device.GetMemoryInfo()
	need("memory", r)
	use, r := s.device.GetUtilizationRates()
	need("utilisation", r)
	mask, r := s.device.GetCurrentClocksEventReasons()
	need("clock event reasons", r)
	if failed != nil {
		return out, failed
	}
	out.Watts, out.Joules = float64(milliwatts)/1000, float64(millijoules)/1000
	out.SMMHz, out.MemoryMHz, out.Celsius = float64(sm), float64(memory), float64(celsius)
	out.MemoryUsed, out.Utilisation = info.Used, float64(use.Gpu)/100
	for _, reason := range reasons {
		if mask&reason.bit != 0 {
			out.Throttle = append(out.Throttle, reason.name)
		}
	}
	return out, nil
}
