package engine

import (
	"time"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// pace foretells when the running step ends. The loop plans the step behind it only shortly before: a request that comes
// meanwhile is in that step and not in the one after, and the device does not wait, since the launch has its time. A step is
// taken to last as long as the one like it that ended last: steady decoding repeats itself, and where nothing is alike nothing is foretold.
type pace struct {
	last     [trace.Mixed + 1]paced         // by phase
	launches [trace.Mixed + 1]time.Duration // how long a launch takes, by phase: the longest of late
	timer    *time.Timer
}

type paced struct {
	tokens int
	took   time.Duration
}

const (
	// paceMargin is kept free before the foretold end, and a sixth of the step's time, for what the forecast misses.
	paceMargin = time.Millisecond
	// paceAtLeast is the shortest step that is worth a wait.
	paceAtLeast = 3 * time.Millisecond
	// timerSlack is how late a timer may be where all threads sleep: the runtime then waits for whole milliseconds.
	timerSlack = time.Millisecond
)

// launched notes how long the host took to plan and launch a step. Prompts take milliseconds where their kernels are launched one by one.
func (p *pace) launched(s *trace.Step, took time.Duration) {
	p.launches[s.Phase] = max(took, p.launches[s.Phase]*15/16)
}

// ended notes how long a step took.
func (p *pace) ended(s *trace.Step, took time.Duration) {
	p.last[s.Phase] = paced{s.Tokens, took}
}

// wait is how long step s may be left to itself, from its beginning, before one of decode rows or one with prompts is planned.
func (p *pace) wait(s *trace.Step, prompts bool) time.Duration {
	like := p.last[s.Phase]
	if like.took < paceAtLeast || 8*s.Tokens < 7*like.tokens {
		return 0
	}
	launch := p.launches[trace.Decode]
	if prompts {
		launch = max(p.launches[trace.Prefill], p.launches[trace.Mixed])
	}
	return like.took - like.took/6 - paceMargin - launch
}

// linger takes messages until the running step is about to end, and returns false once the engine closes.
func (l *loop) linger() bool {
	f := &l.flights[0]
	for {
		left := f.began.Add(l.pace.wait(&f.step, l.sched.HasPrompts())).Sub(l.now()) - timerSlack
		if left <= 0 {
			return true
		}
		if l.pace.timer == nil {
			l.pace.timer = time.NewTimer(left)
		} else {
			l.pace.timer.Reset(left)
		}
		select {
		case <-l.inbox.wake:
			if !l.receive(false) {
				return false
			}
		case <-l.pace.timer.C:
		}
	}
}
