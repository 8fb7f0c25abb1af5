package benchmarks

import (
	"os/exec"
	"syscall"
)

// endWithParent has the system end the server if the benchmark is killed: it would hold the device's memory.
func endWithParent(c *exec.Cmd) { c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM} }
