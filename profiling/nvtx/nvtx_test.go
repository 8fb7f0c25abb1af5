package nvtx_test

import (
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling/nvtx"
)

var _ io.Closer = nvtx.Range{}

func annotate() { nvtx.Annotate("description", nvtx.Color("blue"), nvtx.Int(3)).End() }

func TestOffCostsNothing(t *testing.T) {
	require.False(t, nvtx.Enabled())
	assert.Zero(t, testing.AllocsPerRun(100, annotate))
}

func TestEnable(t *testing.T) {
	err := nvtx.Enable()
	if err != nil { // this build has no NVTX
		assert.ErrorContains(t, err, "-tags cuda")
		assert.False(t, nvtx.Enabled())
		return
	}
	defer nvtx.Disable()
	d := nvtx.NewDomain("test")
	assert.Same(t, d, nvtx.NewDomain("test"))
	r := nvtx.Annotate("outer", nvtx.RGB(0x00FF00), nvtx.In(d), nvtx.Category("c"))
	nvtx.Mark("moment", nvtx.Float(1.5), nvtx.In(d))
	annotate()
	done := make(chan error)
	go func() { done <- r.Close() }() // a range may end elsewhere
	assert.NoError(t, <-done)
	s := nvtx.NewSink()
	trace.SetSink(s)
	defer trace.SetSink(nil)
	trace.BeginArg("launch", trace.Backend, 7).End()
	trace.SpanBegin("decode", trace.Request, 1)
	trace.SpanEnd("decode", trace.Request, 1)
	trace.Counter("pages", trace.Scheduler, 3)
}

// BenchmarkOff shows what a range costs while marks are off.
//
//	go test ./profiling/nvtx -run '^$' -bench Off
func BenchmarkOff(b *testing.B) {
	b.Run("options=1", func(b *testing.B) {
		for b.Loop() {
			nvtx.Annotate("description", nvtx.Color("blue")).End()
		}
	})
	b.Run("options=2", func(b *testing.B) {
		for b.Loop() {
			annotate()
		}
	})
}
