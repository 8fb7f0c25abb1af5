//go:build cuda

package driver

import (
	"errors"
	"fmt"

	"gorgonia.org/cu"
)

// Device is what is known of a GPU before a context is made on it.
type Device struct {
	Ordinal      int
	Name         string
	Major, Minor int // compute capability
	SMs          int
	L2Bytes      int
	SharedMemory int // most that one CTA may have when it asks, bytes
	TotalMemory  int64
}

// DriverVersion is the newest CUDA version that the driver supports, as 1000*major + 10*minor; 0 with no driver.
func DriverVersion() int { return max(0, cu.Version()) }

// Devices lists the GPUs. With none, or no driver, it says why.
func Devices() ([]Device, error) {
	if err := Loaded(); err != nil {
		return nil, err
	}
	n, err := cu.NumDevices()
	if err != nil {
		return nil, wrap("cuDeviceGetCount", err)
	}
	if n == 0 {
		return nil, errors.New("the NVIDIA driver finds no device (CUDA_VISIBLE_DEVICES may hide it)")
	}
	devices := make([]Device, n)
	for i := range devices {
		if devices[i], err = describe(i); err != nil {
			return nil, fmt.Errorf("device %d: %w", i, err)
		}
	}
	return devices, nil
}

func describe(ordinal int) (Device, error) {
	d := Device{Ordinal: ordinal}
	dev, err := cu.GetDevice(ordinal)
	if err != nil {
		return d, wrap("cuDeviceGet", err)
	}
	if d.Name, err = dev.Name(); err != nil {
		return d, wrap("cuDeviceGetName", err)
	}
	if d.TotalMemory, err = dev.TotalMem(); err != nil {
		return d, wrap("cuDeviceTotalMem", err)
	}
	for _, a := range []struct {
		to   *int
		what cu.DeviceAttribute
	}{
		{&d.Major, cu.ComputeCapabilityMajor}, {&d.Minor, cu.ComputeCapabilityMinor}, {&d.SMs, cu.MultiprocessorCount}, {&d.L2Bytes, cu.L2CacheSize},
		{&d.SharedMemory, maxSharedMemoryOptin},
	} {
		if *a.to, err = dev.Attribute(a.what); err != nil {
			return d, wrap("cuDeviceGetAttribute", err)
		}
	}
	return d, nil
}

// Context is a device's primary context.
type Context struct {
	Device Device
	dev    cu.Device
	ctx    cu.CUContext
}

// Open retains the device's primary context and makes it current to the calling thread.
func Open(d Device) (*Context, error) {
	dev, err := cu.GetDevice(d.Ordinal)
	if err != nil {
		return nil, wrap("cuDeviceGet", err)
	}
	ctx, err := dev.RetainPrimaryCtx()
	if err != nil {
		return nil, wrap("cuDevicePrimaryCtxRetain", err)
	}
	c := &Context{d, dev, ctx}
	return c, c.Bind()
}

// Bind makes the context current to the calling OS thread, which must be locked.
func (c *Context) Bind() error { return wrap("cuCtxSetCurrent", cu.SetCurrentContext(c.ctx)) }

// Close releases the context; the last release in the process frees all that was made in it.
func (c *Context) Close() error { return wrap("cuDevicePrimaryCtxRelease", c.dev.ReleasePrimaryCtx()) }

// Memory is the device's free and total memory, bytes.
func (c *Context) Memory() (free, total int64, err error) {
	free, total, err = cu.MemInfo()
	return free, total, wrap("cuMemGetInfo", err)
}

// maxSharedMemoryOptin is CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, which gorgonia.org/cu does not name.
const maxSharedMemoryOptin cu.DeviceAttribute = 97
