//go:build !cuda

package telemetry

// Open returns ErrNoSensor in this build.
func Open(int) (Sensor, error) { return nil, ErrNoSensor }
