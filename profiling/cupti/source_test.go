//go:build cuda

package cupti

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestALibraryThatIsNotThere(t *testing.T) {
	t.Setenv("TOKAMAK_CUPTI", "/nonexistent/libcupti.so.13")
	err := new(Source).Start()
	assert.ErrorContains(t, err, "GPU profiling needs libcupti.so.13")
	assert.ErrorContains(t, err, "/nonexistent")
}
