package pace

import (
	"time"

	"golang.org/x/sys/unix"
)

// sleepShort blocks the thread for d, to some 50 microseconds.
func sleepShort(d time.Duration) {
	if d > 0 {
		t := unix.NsecToTimespec(int64(d))
		_ = unix.Nanosleep(&t, nil) // woken early by a signal: the request goes out early by less than timerSlack
	}
}
