// Package pace waits for points in time more precisely than Go's timers do: those are late by up to the millisecond that the
// network poller sleeps in.
package pace

import "time"

// timerSlack is how late a timer of Go's may fire.
const timerSlack = 1500 * time.Microsecond

// Until waits for due, or until stop is closed, and tells which: false if it was stopped. The last stretch blocks a thread.
func Until(due time.Time, stop <-chan struct{}) bool {
	if wait := time.Until(due) - timerSlack; wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-stop:
			return false
		}
	}
	sleepShort(time.Until(due))
	return true
}
