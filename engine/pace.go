package engine

import (
	"time"

	"github.com/tokamak-engine/tokamak/engine/trace"
)

// pace foretells when the running step ends. The loop plans the step behind it only shortly before: a request that comes
// meanwhile is in that step and not in the one after, and the device never waits, since a plan takes a fraction of paceMargin. A step is
// taken to last as long as the one like it that ended last: steady decoding repeats itself, and where nothing is alike nothing is foretold.
type pace struct {
	last  [trace.Mixed + 1]paced // by phase
	timer *time.Timer
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
)

// ended notes how long a step took.
func (p *pace) ended(s *trace.Step, took time.Duration) {
	p.last[s.Phase] = paced{s.Tokens, took}
}

// wait is how long a step may be left to itself, from its beginning.
func (p *pace) wait(s *trace.Step) time.Duration {
	like := p.last[s.Phase]
	if took := like.took; took >= paceAtLeast && 8*s.Tokens >= 7*like.tokens {
		return took - took/6 - paceMargin
	}
	return 0
}

// linger takes messages until the running step is about to end, and returns false once the engine closes.
func (l *loop) linger() bool {
	f := &l.flights[0]
	left := f.began.Add(l.pace.wait(&f.step)).Sub(l.now())
	if left <= 0 {
		return true
	}
	if l.pace.timer == nil {
		l.pace.timer = time.NewTimer(left)
	} else {
		l.pace.timer.Reset(left)
	}
	for {
		select {
		case <-l.inbox.wake:
			if !l.receive(false) {
				l.pace.timer.Stop()
				return false
			}
		case <-l.pace.timer.C:
			return true
		}
	}
}
