//go:build invariants

package scheduler

// audit ends the process at the first contradiction.
func (s *Scheduler) audit() {
	if err := s.Check(); err != nil {
		panic("scheduler: " + err.Error())
	}
}
