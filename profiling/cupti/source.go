//go:build cuda

package cupti

/*
#cgo LDFLAGS: -ldl -lpthread
#include <stdlib.h>
#include "records.h"
*/
import "C"

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// Source is a profiling.Source. CUPTI belongs to the process, so that one recording runs at a time.
type Source struct {
	clock time.Time // of this process, at origin of CUPTI's
	at    uint64
}

// open loads the library once; a failure is kept.
var open = sync.OnceValue(func() error {
	var problems []error
	for _, path := range candidates() {
		c := C.CString(path)
		message := C.tokamak_cupti_open(c)
		C.free(unsafe.Pointer(c))
		if message == nil {
			return nil
		}
		problems = append(problems, errors.New(C.GoString(message)))
	}
	return fmt.Errorf("GPU profiling needs libcupti.so.13 of the CUDA toolkit (pip install nvidia-cuda-cupti, or set TOKAMAK_CUPTI to its path): %w", errors.Join(problems[len(problems)-1]))
})

func candidates() []string {
	if path := os.Getenv("TOKAMAK_CUPTI"); path != "" {
		return []string{path}
	}
	paths := []string{"libcupti.so.13"}
	for _, home := range []string{os.Getenv("CUDA_HOME"), "/usr/local/cuda"} {
		if home != "" {
			for _, dir := range []string{"extras/CUPTI/lib64", "lib64", "lib"} {
				paths = append(paths, filepath.Join(home, dir, "libcupti.so.13"))
			}
		}
	}
	return paths
}

// Start begins recording.
func (s *Source) Start() error {
	if err := open(); err != nil {
		return err
	}
	if message := C.tokamak_cupti_start(); message != nil {
		return fmt.Errorf("CUPTI: %s", C.GoString(message))
	}
	s.at, s.clock = uint64(C.tokamak_cupti_now()), time.Now()
	return nil
}

// gpuPID is the process under which device 0's streams are drawn; the next device's is one more.
const gpuPID = 10

// Stop ends recording and returns what was recorded.
func (s *Source) Stop() (profiling.Recording, error) {
	var err error
	if message := C.tokamak_cupti_stop(); message != nil {
		err = fmt.Errorf("CUPTI: %s", C.GoString(message))
	}
	var n, dropped C.uint64_t
	taken := C.tokamak_cupti_take(&n, &dropped)
	defer C.free(unsafe.Pointer(taken))
	records := unsafe.Slice((*C.tokamak_record)(taken), int(n))
	if taken == nil {
		records = nil
	}
	if !slices.ContainsFunc(records, func(r C.tokamak_record) bool { return r.kind == C.TOKAMAK_KERNEL }) {
		err = errors.Join(err, errors.New("CUPTI saw no kernel: another profiler, such as nsys or ncu, holds it; run without that one, or ask for activity CPU alone"))
	}
	r := profiling.Recording{Processes: map[int]string{}, Threads: map[chrometrace.Track]string{}, Meta: map[string]string{}}
	if dropped > 0 {
		r.Meta["cupti_records_dropped"] = fmt.Sprint(uint64(dropped))
	}
	r.Threads[profiling.Calls] = "CUDA calls"
	calls := map[uint32]*C.tokamak_record{}
	for i := range records {
		if records[i].kind == C.TOKAMAK_API {
			calls[uint32(records[i].correlation)] = &records[i]
		}
	}
	for i := range records {
		c := &records[i]
		e := profiling.Event{Name: C.GoString(&c.name[0]), Start: s.time(c.start), Length: time.Duration(c.end - c.start)}
		if c.kind == C.TOKAMAK_API {
			e.Category, e.Track, e.Launched = "cuda_driver", profiling.Calls, e.Start
			r.Events = append(r.Events, e)
			continue
		}
		e.Track = chrometrace.Track{PID: gpuPID + int(c.device), TID: int(c.stream)}
		r.Processes[e.Track.PID] = fmt.Sprintf("GPU %d", c.device)
		r.Threads[e.Track] = fmt.Sprintf("stream %d", c.stream)
		if call := calls[uint32(c.correlation)]; call != nil {
			e.Launched, e.LaunchedFrom, e.Flow = s.time(call.start), profiling.Calls, uint64(c.correlation)
		}
		e.Args = append(e.Args, chrometrace.Arg{Key: "stream", Value: uint32(c.stream)}, chrometrace.Arg{Key: "correlation", Value: uint32(c.correlation)})
		if c.node != 0 {
			e.Args = append(e.Args, chrometrace.Arg{Key: "graph", Value: uint32(c.graph)}, chrometrace.Arg{Key: "graph node", Value: uint64(c.node)})
		}
		switch c.kind {
		case C.TOKAMAK_KERNEL:
			e.Category = profiling.KernelCategory
			e.Args = append(e.Args,
				chrometrace.Arg{Key: "grid", Value: fmt.Sprintf("%dx%dx%d", c.grid[0], c.grid[1], c.grid[2])},
				chrometrace.Arg{Key: "block", Value: fmt.Sprintf("%dx%dx%d", c.block[0], c.block[1], c.block[2])},
				chrometrace.Arg{Key: "registers", Value: uint32(c.registers)},
				chrometrace.Arg{Key: "shared memory", Value: uint32(c.shared_static + c.shared_dynamic)})
			if c.cluster[0] > 1 {
				e.Args = append(e.Args, chrometrace.Arg{Key: "cluster", Value: fmt.Sprintf("%dx%dx%d", c.cluster[0], c.cluster[1], c.cluster[2])})
			}
			if c.local > 0 {
				e.Args = append(e.Args, chrometrace.Arg{Key: "local memory", Value: uint32(c.local)})
			}
		default:
			e.Category = "memory"
			e.Args = append(e.Args, chrometrace.Arg{Key: "bytes", Value: uint64(c.bytes)})
		}
		r.Events = append(r.Events, e)
	}
	return r, err
}

func (s *Source) time(ns C.uint64_t) time.Time {
	return s.clock.Add(time.Duration(int64(ns) - int64(s.at)))
}
