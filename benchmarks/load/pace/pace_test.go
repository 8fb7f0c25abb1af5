package pace

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestUntil(t *testing.T) {
	var late []time.Duration
	for i := range 30 {
		due := time.Now().Add(time.Duration(i%7) * 700 * time.Microsecond)
		assert.True(t, Until(due, nil))
		late = append(late, time.Since(due))
	}
	slices.Sort(late)
	assert.GreaterOrEqual(t, late[0], -10*time.Microsecond, "never early")
	assert.Less(t, late[len(late)/4], 500*time.Microsecond, "a busy machine may delay the others")
}

func TestUntilStopped(t *testing.T) {
	stop := make(chan struct{})
	close(stop)
	started := time.Now()
	assert.False(t, Until(started.Add(time.Hour), stop))
	assert.Less(t, time.Since(started), time.Second)
}
