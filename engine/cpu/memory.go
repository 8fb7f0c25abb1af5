package cpu

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// defaultMemFraction is the part of free memory for weights and KV pages where the options name none.
const defaultMemFraction = 0.8

// unknownMemory stands for free memory on systems that do not tell.
const unknownMemory = 8 << 30

// MemoryError tells that weights and KV pages do not fit in memory.
type MemoryError struct {
	Needed, Free int64 // bytes
}

func (e *MemoryError) Error() string {
	const mib = 1 << 20
	return fmt.Sprintf("weights and KV pages need %d MiB, %d MiB of memory may be used: lower --max-total-tokens or --context-length, or raise --mem-fraction-static",
		(e.Needed+mib-1)/mib, e.Free/mib)
}

// sizePages returns the number of KV pages: asked if it is not 0, else as many as the slots can fill, within what fraction of
// free memory leaves beside the weights. Pages are allocated when first written, so a bound that is never reached costs
// nothing.
func sizePages(asked, mostUseful int, pageBytes, weightBytes, free int64, fraction float64) (int, error) {
	if asked > 0 {
		if need := int64(asked)*pageBytes + weightBytes; need > free {
			return 0, &MemoryError{need, free}
		}
		return asked, nil
	}
	if fraction == 0 {
		fraction = defaultMemFraction
	}
	budget := int64(float64(free) * fraction)
	if need := weightBytes + pageBytes; need > budget {
		return 0, &MemoryError{need, budget}
	}
	return int(min(int64(mostUseful), (budget-weightBytes)/pageBytes)), nil
}

// freeMemory is the memory that can be taken without swapping: what Linux calls available (clean file pages included), within
// the control group's limit.
func freeMemory() int64 {
	free := int64(unknownMemory)
	if text, err := os.ReadFile("/proc/meminfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if rest, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
				if kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64); err == nil {
					free = kib << 10
				}
			}
		}
	}
	const group = "/sys/fs/cgroup/memory."
	limit, errLimit := readInt(group + "max")
	used, errUsed := readInt(group + "current")
	if errLimit == nil && errUsed == nil {
		free = min(free, max(0, limit-used))
	}
	return free
}

func readInt(path string) (int64, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
}
