package report

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling"
)

func TestReport(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(us float64) time.Time { return t0.Add(time.Duration(us * 1000)) }
	us := func(v float64) time.Duration { return time.Duration(v * 1000) }
	var kernels []profiling.Kernel
	for step := range uint64(2) {
		base := 1000 * float64(step)
		kernels = append(kernels,
			profiling.Kernel{Step: step, Name: "gemv", Op: "gemv_qkv", Start: at(base), Length: us(10), Bytes: 40_000_000},
			profiling.Kernel{Step: step, Name: "attn", Op: "attn", Start: at(base + 8), Length: us(4), FLOPs: 1_000_000_000}, // overlaps by 2
			profiling.Kernel{Step: step, Name: "stranger", Start: at(base + 15), Length: us(5)})                              // 3 after
	}
	bandwidth, flops := 4.0e12, 500e12
	r := New(kernels, Ceilings{BytesPerSecond: &bandwidth, BF16: &flops})
	assert.Equal(t, 2, r.Steps)
	assert.Equal(t, us(4), r.Overlap)
	assert.Equal(t, us(40), r.Span)
	assert.Equal(t, us(34), r.Busy)
	assert.Equal(t, 2, r.Gaps)
	assert.Equal(t, us(6), r.Idle)
	assert.Equal(t, "stranger", r.LongestAfter)
	require.Len(t, r.Rows, 3)
	assert.Equal(t, "gemv_qkv", r.Rows[0].Name)
	assert.InDelta(t, 20.0/34, r.Rows[0].Share, 1e-9)
	assert.InDelta(t, 4000, *r.Rows[0].GBs(), 1e-6)
	share, which := r.Rows[0].OfCeiling(r.Ceilings)
	assert.InDelta(t, 1.0, *share, 1e-9)
	assert.Equal(t, "read", which)
	assert.Nil(t, r.Rows[1].GBs(), "not known is absent")
	attn := r.Rows[2]
	assert.InDelta(t, 500, *attn.TFLOPs(), 1e-6, "of its 4 us 2 lie beside the kernel before it")
	share, which = attn.OfCeiling(r.Ceilings)
	assert.InDelta(t, 1.0, *share, 1e-9)
	assert.Equal(t, "bf16", which)
	share, which = attn.OfCeiling(Ceilings{})
	assert.Nil(t, share)
	assert.Empty(t, which)
	attn.FP8, flops = true, 2*flops // and is measured against fp8's then
	share, which = attn.OfCeiling(Ceilings{FP8: &flops, BF16: &bandwidth})
	assert.InDelta(t, 0.5, *share, 1e-9)
	assert.Equal(t, "fp8", which)

	var text, md bytes.Buffer
	require.NoError(t, r.Text(&text))
	require.NoError(t, r.Markdown(&md))
	assert.Regexp(t, `gemv_qkv +gemv +1 +10.00 +0.0100 +58.8% +40 +4000 +100.0% read`, text.String())
	assert.Regexp(t, `attn +1 +2.00 +0.0020 +11.8% +1 +500.0 +50.0% bf16`, text.String(), "a kernel named as its operation is not named twice")
	assert.Contains(t, text.String(), "busy 85.0%")
	lines := strings.Split(strings.TrimSpace(md.String()), "\n")
	for _, line := range lines[:5] {
		assert.Equal(t, len(header)+1, strings.Count(line, "|"), line)
	}
}

func TestKernelsOfALibrary(t *testing.T) {
	var kernels []profiling.Kernel
	for i, name := range []string{"nvjet_sm90_tst_128x64_64x8_v_bz_coopA_TNT", "splitKreduce_kernel", "nvjet_sm90_tst_128x64_64x8_v_bz_coopA_TNT"} {
		kernels = append(kernels, profiling.Kernel{Name: name, Op: "gemm_qkv", Start: time.Unix(0, int64(10*i)), Length: 10})
	}
	r := New(kernels, Ceilings{})
	assert.Equal(t, "nvjet_sm90_tst_128x64_64... +1", r.Rows[0].kernel())
	assert.Nil(t, r.Rows[0].MB())
}

func TestNothing(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, New(nil, Ceilings{}).Text(&out))
	assert.Contains(t, out.String(), "0 steps")
}

func TestIdle(t *testing.T) {
	t0 := time.Unix(1000, 0)
	at := func(us int) time.Time { return t0.Add(time.Duration(us) * time.Microsecond) }
	us := func(v int) time.Duration { return time.Duration(v) * time.Microsecond }
	// Two steps: launched for 10, awaited for 80; kernels begin 15 after the launch with a gap of 5 between them.
	var steps []trace.Step
	var kernels []profiling.Kernel
	for i := range 2 {
		base := 100 * i
		steps = append(steps, trace.Step{ID: uint64(i), Launched: at(base), LaunchTime: us(10), WaitStart: at(base + 10), WaitTime: us(80)})
		kernels = append(kernels, profiling.Kernel{Step: uint64(i), Start: at(base + 15), Length: us(30)}, profiling.Kernel{Step: uint64(i), Start: at(base + 50), Length: us(30)})
	}
	idle := NewIdle(steps, kernels)
	assert.Equal(t, us(190), idle.Wall, "from the first launch to the last wait's end")
	assert.Equal(t, us(70), idle.Total)
	assert.Equal(t, us(30), idle.Host, "both launches, and what lies between the steps")
	assert.InDelta(t, 70.0/190, idle.Share(), 1e-9)
	assert.InDelta(t, 30.0/190, idle.HostShare(), 1e-9)

	// A step launched while the one before it runs costs the device nothing.
	steps[1].Launched, steps[1].WaitStart, steps[1].WaitTime = at(20), at(90), us(40)
	kernels[2].Start, kernels[3].Start = at(80), at(100)
	kernels[2].Length = us(20)
	idle = NewIdle(steps, kernels)
	assert.Equal(t, us(10), idle.Host, "the first launch alone")
	assert.Zero(t, NewIdle(nil, nil).Share())
}
