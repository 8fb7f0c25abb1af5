package engine

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/scheduler/fakebackend"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// TestStepsAreLaunchedLate: the step behind the running one is planned shortly before that one ends, once it is known how long such a
// step takes, so that who comes meanwhile is in it.
func TestStepsAreLaunchedLate(t *testing.T) {
	const took = 40 * time.Millisecond
	var mu sync.Mutex
	launched := map[backend.StepID]time.Time{}
	ended := map[backend.StepID]time.Time{}
	e := openFake(t, DefaultOptions(), fakeInfo(), func(b *fakebackend.Backend) {
		b.FailLaunch = func(id backend.StepID) error {
			mu.Lock()
			defer mu.Unlock()
			launched[id] = time.Now()
			return nil
		}
		b.BeforeWait = func(id backend.StepID) {
			mu.Lock()
			began := launched[id]
			if before, ok := ended[id-1]; ok && before.After(began) {
				began = before
			}
			mu.Unlock()
			time.Sleep(time.Until(began.Add(took)))
			mu.Lock()
			ended[id] = time.Now()
			mu.Unlock()
		}
	})
	sampling := DefaultSampling(16)
	sampling.IgnoreEOS = true
	_, err := e.Generate(context.Background(), Request{InputIDs: []int32{1, 2, 3}, Sampling: sampling})
	require.NoError(t, err)
	require.Len(t, launched, 16)
	late := 0
	for id := backend.StepID(6); id <= 16; id++ {
		into := launched[id].Sub(ended[id-2]) // how far the step before it was
		if into > took/2 && into < took+took/2 {
			late++
		}
	}
	assert.Greater(t, late, 5, "of 11 steps behind others like them: a busy machine may miss some")
}

func TestPace(t *testing.T) {
	var p pace
	decode, prefill := &trace.Step{Phase: trace.Decode, Tokens: 8}, &trace.Step{Phase: trace.Prefill, Tokens: 100}
	assert.Zero(t, p.wait(decode, false), "nothing is known")
	p.ended(decode, 12*time.Millisecond)
	assert.Equal(t, 9*time.Millisecond, p.wait(decode, false))
	assert.Zero(t, p.wait(prefill, false), "another kind of step")
	assert.Zero(t, p.wait(&trace.Step{Phase: trace.Decode, Tokens: 6}, false), "a smaller step, which may end sooner")
	assert.NotZero(t, p.wait(&trace.Step{Phase: trace.Decode, Tokens: 9}, false))
	p.launched(prefill, 4*time.Millisecond)
	assert.Equal(t, 9*time.Millisecond, p.wait(decode, false))
	assert.Equal(t, 5*time.Millisecond, p.wait(decode, true), "the launch of prompts takes its time")
	for range 100 {
		p.launched(&trace.Step{Phase: trace.Mixed}, 2*time.Millisecond)
		p.launched(prefill, time.Millisecond)
	}
	assert.Equal(t, 7*time.Millisecond, p.wait(decode, true), "a long launch is forgotten")
	p.ended(decode, 2*time.Millisecond)
	assert.Zero(t, p.wait(decode, false), "too short to gain anything")
}
