package cpu

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPool: every task runs once, workers have numbers of their own, loops follow each other at any pace.
func TestPool(t *testing.T) {
	for _, threads := range []int{1, 2, 3, 8} {
		p := newPool(threads)
		require.Equal(t, threads, p.threads())
		for round := range 300 {
			tasks := round % 23
			counts := make([]atomic.Int32, tasks)
			busy := make([]atomic.Int32, threads)
			p.run(tasks, func(worker, task int) {
				if busy[worker].Add(1) != 1 {
					panic("two tasks of one worker at once")
				}
				counts[task].Add(1)
				busy[worker].Add(-1)
			})
			for i := range counts {
				require.Equal(t, int32(1), counts[i].Load())
			}
			if round%100 == 99 {
				time.Sleep(2 * time.Millisecond) // lets the workers park
			}
		}
		p.close()
	}
}

// TestPoolPanics: a panic comes out of run, and the pool still works.
func TestPoolPanics(t *testing.T) {
	p := newPool(2)
	defer p.close()
	for range 50 {
		require.PanicsWithError(t, "boom", func() {
			defer func() {
				if f, ok := recover().(*taskPanic); ok {
					panic(f.value)
				}
			}()
			p.run(40, func(_, task int) {
				if task == 13 {
					panic(errBoom)
				}
			})
		})
		var n atomic.Int32
		p.run(40, func(_, _ int) { n.Add(1) })
		require.Equal(t, int32(40), n.Load())
	}
}

type boom struct{}

func (boom) Error() string { return "boom" }

var errBoom = boom{}

// TestCloseEndsWorkers: no goroutine is left behind.
func TestCloseEndsWorkers(t *testing.T) {
	before := runtime.NumGoroutine()
	p := newPool(5)
	p.run(9, func(_, _ int) {})
	p.close()
	deadline := time.Now().Add(5 * time.Second)
	for runtime.NumGoroutine() > before && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	require.LessOrEqual(t, runtime.NumGoroutine(), before)
}
