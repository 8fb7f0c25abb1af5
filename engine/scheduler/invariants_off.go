//go:build !invariants

package scheduler

func (s *Scheduler) audit() {}
