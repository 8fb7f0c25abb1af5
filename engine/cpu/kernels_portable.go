//go:build !amd64 || purego

package cpu

var levels = []*kernels{&portable}

// pause has nothing to tell the processor here.
func pause() {}
