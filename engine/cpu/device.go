package cpu

import (
	"fmt"
	"os"
	"runtime"
	"strings"
)

// deviceName names the processor for a person: model, threads, instruction level.
func deviceName(threads int, level string) string {
	name := runtime.GOARCH
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
				name = strings.TrimSpace(value)
				break
			}
		}
	}
	return fmt.Sprintf("%s, %d threads, %s", name, threads, level)
}
