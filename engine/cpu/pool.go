package cpu

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
)

// spinRounds is how often a waiting thread looks again before it parks (a worker) or yields (the caller). Between two loops of
// one step lie a few microseconds of serial work; waking a parked goroutine costs more than that.
const spinRounds = 4000

// pool runs loops over independent tasks on persistent workers. One goroutine at a time calls run; it takes part itself as
// worker 0.
type pool struct {
	workers []worker // [threads-1]; worker i has number i+1
	wg      sync.WaitGroup

	// The loop being run, written before generation advances.
	task  func(worker, task int)
	tasks int64

	next       atomic.Int64 // next task to take
	left       atomic.Int32 // workers that have not finished the loop
	generation atomic.Uint32
	closing    atomic.Bool
	failure    atomic.Pointer[taskPanic]
}

type worker struct {
	parked atomic.Bool
	wake   chan struct{}
	_      [48]byte // keeps two workers' flags on different cache lines
}

// taskPanic carries a panic of a worker to the goroutine that called run.
type taskPanic struct {
	value any
	stack []byte
}

func (p *taskPanic) Error() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }

func newPool(threads int) *pool {
	p := &pool{workers: make([]worker, max(threads, 1)-1)}
	for i := range p.workers {
		p.workers[i].wake = make(chan struct{}, 1)
		p.wg.Add(1)
		go p.work(i)
	}
	return p
}

// threads is the number of goroutines that share a loop.
func (p *pool) threads() int { return len(p.workers) + 1 }

// run calls fn once for each task in 0..tasks-1, with the number of the worker that runs it, and returns when all are done. A
// panic in fn is a panic of run.
func (p *pool) run(tasks int, fn func(worker, task int)) {
	if tasks <= 1 || len(p.workers) == 0 {
		for i := range tasks {
			fn(0, i)
		}
		return
	}
	p.task, p.tasks = fn, int64(tasks)
	p.next.Store(0)
	p.left.Store(int32(len(p.workers)))
	p.generation.Add(1)
	for i := range p.workers {
		if w := &p.workers[i]; w.parked.CompareAndSwap(true, false) {
			w.wake <- struct{}{}
		}
	}
	p.take(0)
	for spins := 0; p.left.Load() > 0; spins++ {
		pause()
		if spins > spinRounds {
			runtime.Gosched()
		}
	}
	p.task = nil
	if f := p.failure.Swap(nil); f != nil {
		panic(f)
	}
}

func (p *pool) take(number int) {
	defer func() {
		if v := recover(); v != nil {
			p.next.Store(p.tasks)
			p.failure.CompareAndSwap(nil, &taskPanic{v, debug.Stack()})
		}
	}()
	for {
		i := p.next.Add(1) - 1
		if i >= p.tasks {
			return
		}
		p.task(number, int(i))
	}
}

func (p *pool) work(index int) {
	defer p.wg.Done()
	debug.SetPanicOnFault(true) // a weight file cut short under its mapping is an error of the step, not the end of the process
	w := &p.workers[index]
	for seen := uint32(0); ; {
		if seen = p.await(w, seen); p.closing.Load() {
			return
		}
		p.take(index + 1)
		p.left.Add(-1)
	}
}

// await returns the generation that follows seen.
func (p *pool) await(w *worker, seen uint32) uint32 {
	for {
		for range spinRounds {
			if g := p.generation.Load(); g != seen {
				return g
			}
			pause()
		}
		w.parked.Store(true)
		if g := p.generation.Load(); g != seen && w.parked.CompareAndSwap(true, false) {
			return g
		}
		<-w.wake // also drains the signal of a run that saw parked before it was taken back
	}
}

// close ends the workers. No loop may be running.
func (p *pool) close() {
	p.closing.Store(true)
	p.generation.Add(1)
	for i := range p.workers {
		if w := &p.workers[i]; w.parked.CompareAndSwap(true, false) {
			w.wake <- struct{}{}
		}
	}
	p.wg.Wait()
}
