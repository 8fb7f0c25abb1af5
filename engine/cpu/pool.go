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
// worker 0. A loop waits for its tasks, not for the workers: one that the operating system does not let run is not missed
// until it holds a task.
type pool struct {
	spin    int      // spinRounds, or few if there are more workers than processors to run them
	workers []worker // [threads-1]; worker i has number i+1
	wg      sync.WaitGroup

	current atomic.Pointer[loop] // the latest one; a worker may still look at an older one, in which no task is left
	closing atomic.Bool
}

type worker struct {
	parked atomic.Bool
	wake   chan struct{}
	_      [48]byte // keeps two workers' flags on different cache lines
}

// loop is one call of run.
type loop struct {
	fn    func(worker, task int)
	tasks int64

	next    atomic.Int64 // task to take
	done    atomic.Int64 // tasks finished, or given up after a panic
	failure atomic.Pointer[taskPanic]
}

// taskPanic carries a panic of a worker to the goroutine that called run.
type taskPanic struct {
	value any
	stack []byte
}

func (p *taskPanic) Error() string { return fmt.Sprintf("%v\n%s", p.value, p.stack) }

func newPool(threads int) *pool {
	p := &pool{spin: spinRounds, workers: make([]worker, max(threads, 1)-1)}
	if threads > runtime.GOMAXPROCS(0) {
		p.spin = 1
	}
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
	l := &loop{fn: fn, tasks: int64(tasks)}
	p.publish(l)
	l.take(0)
	for spins := 0; l.done.Load() < l.tasks; spins++ {
		pause()
		if spins > p.spin {
			runtime.Gosched()
		}
	}
	if f := l.failure.Load(); f != nil {
		panic(f)
	}
}

// publish makes l the current loop and wakes the workers that are parked.
func (p *pool) publish(l *loop) {
	p.current.Store(l)
	for i := range p.workers {
		if w := &p.workers[i]; w.parked.CompareAndSwap(true, false) {
			w.wake <- struct{}{}
		}
	}
}

// take runs tasks until none is left.
func (l *loop) take(number int) {
	defer func() {
		if v := recover(); v != nil {
			l.failure.CompareAndSwap(nil, &taskPanic{v, debug.Stack()})
			untaken := l.tasks - l.next.Swap(l.tasks)
			l.done.Add(1 + max(untaken, 0))
		}
	}()
	for {
		i := l.next.Add(1) - 1
		if i >= l.tasks {
			return
		}
		l.fn(number, int(i))
		l.done.Add(1)
	}
}

func (p *pool) work(index int) {
	defer p.wg.Done()
	debug.SetPanicOnFault(true) // a weight file cut short under its mapping is an error of the step, not the end of the process
	w := &p.workers[index]
	for seen := (*loop)(nil); ; {
		if seen = p.await(w, seen); p.closing.Load() {
			return
		}
		seen.take(index + 1)
	}
}

// await returns the first loop other than seen that the worker finds.
func (p *pool) await(w *worker, seen *loop) *loop {
	for {
		for range p.spin {
			if l := p.current.Load(); l != seen {
				return l
			}
			pause()
		}
		w.parked.Store(true)
		if l := p.current.Load(); l != seen && w.parked.CompareAndSwap(true, false) {
			return l
		}
		<-w.wake // if publish saw parked just before it was taken back, this is its signal
	}
}

// close ends the workers. No loop may be running.
func (p *pool) close() {
	p.closing.Store(true)
	p.publish(&loop{})
	p.wg.Wait()
}
