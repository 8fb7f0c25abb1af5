//go:build cuda

package cuda

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

// TestFLOPProbe holds that the matrix units' ceiling is theirs: fp8 is twice bf16, and each SM does less than its units can in a clock.
func TestFLOPProbe(t *testing.T) {
	r := newRig(t, testShapes()["smollm2-135m"])
	if !r.device.probesFLOPs() {
		t.Skipf("the probe is written for compute capability 9.0; this is %s", r.device.Name)
	}
	b := &Backend{device: r.device, stream: r.stream, compiler: r.compiler, functions: map[unit]*driver.Function{}, modules: map[unit]driver.Module{}, buffers: buffers{X: r.room(16)}}
	bf16, fp8, err := b.tensorFLOPs()
	require.NoError(t, err)
	t.Logf("%s: %.0f TFLOP/s of bf16, %.0f of fp8", r.device.Name, *bf16/1e12, *fp8/1e12)
	assert.InDelta(t, 2, *fp8 / *bf16, 0.35)
	const most = 4096 * 2.0e9 // of one SM and the highest clock
	assert.Less(t, *bf16/float64(r.device.SMs), most)
	assert.Greater(t, *bf16/float64(r.device.SMs), most/4)
}
