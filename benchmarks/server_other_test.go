//go:build !linux

package benchmarks

import "os/exec"

func endWithParent(*exec.Cmd) {}
