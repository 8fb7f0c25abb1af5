package trace_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

type recorder struct{ lines []string }

func (r *recorder) add(format string, args ...any) {
	r.lines = append(r.lines, fmt.Sprintf(format, args...))
}
func (r *recorder) Begin(name string, c trace.Category, arg uint64) uint64 {
	r.add("begin %s/%s %d", c, name, arg)
	return uint64(len(r.lines))
}
func (r *recorder) End(name string, c trace.Category, token uint64) {
	r.add("end %s/%s of %d", c, name, token)
}
func (r *recorder) Counter(name string, c trace.Category, value int64) {
	r.add("counter %s=%d", name, value)
}
func (r *recorder) SpanBegin(name string, c trace.Category, id uint64) { r.add("span %s %d", name, id) }
func (r *recorder) SpanEnd(name string, c trace.Category, id uint64) {
	r.add("endspan %s %d", name, id)
}
func (r *recorder) Step(s trace.Step) { r.add("step %d %s", s.ID, s.Phase) }

func marks() {
	outer := trace.BeginArg("step", trace.Loop, 7)
	inner := trace.Begin("launch", trace.Backend)
	trace.Counter("rows", trace.Scheduler, 3)
	inner.End()
	outer.End()
	trace.SpanBegin("decode", trace.Request, 9)
	trace.SpanEnd("decode", trace.Request, 9)
	trace.StepDone(trace.Step{ID: 7, Phase: trace.Mixed})
}

func TestMarksReachTheSink(t *testing.T) {
	r := &recorder{}
	require.Nil(t, trace.SetSink(r))
	defer trace.SetSink(nil)
	require.True(t, trace.Enabled())
	marks()
	require.Equal(t, []string{
		"begin loop/step 7", "begin backend/launch 0", "counter rows=3", "end backend/launch of 2", "end loop/step of 1",
		"span decode 9", "endspan decode 9", "step 7 mixed",
	}, r.lines)
}

func TestARangeEndsInTheSinkItBeganIn(t *testing.T) {
	first, second := &recorder{}, &recorder{}
	trace.SetSink(first)
	open := trace.Begin("step", trace.Loop)
	require.Same(t, first, trace.SetSink(second))
	open.End()
	require.Same(t, second, trace.SetSink(nil))
	require.Equal(t, []string{"begin loop/step 0", "end loop/step of 1"}, first.lines)
	require.Empty(t, second.lines)
}

func TestOffIsFree(t *testing.T) {
	require.False(t, trace.Enabled())
	require.Zero(t, testing.AllocsPerRun(100, marks))
}

// BenchmarkOff shows what an idle mark costs: a range is one begin and one end.
//
//	go test ./engine/trace -run '^$' -bench Off
func BenchmarkOff(b *testing.B) {
	b.Run("mark=range", func(b *testing.B) {
		for b.Loop() {
			trace.Begin("x", trace.Loop).End()
		}
	})
	b.Run("mark=counter", func(b *testing.B) {
		for b.Loop() {
			trace.Counter("x", trace.Loop, 1)
		}
	})
}
