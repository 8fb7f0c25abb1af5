//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
)

const (
	// stagingBytes is the size of a reader's pinned buffer. 16 MiB keeps a PCIe 5 link busy and the first copy early.
	stagingBytes = 16 << 20
	// maxReaders bounds the goroutines that read files into pinned memory: a core fills about 10 GB/s, the link takes 50.
	maxReaders = 8
)

// upload brings every tensor to its place in device memory, in its weight's format. Dummy tensors are made there; the others are read
// by several goroutines into pinned buffers, encoded on the way, and copied on one stream. It returns when all are there.
func (b *Backend) upload(parts []part, progress func(done, total float64)) error {
	var total, done atomic.Int64
	var tasks []readTask
	for _, p := range parts {
		size := int64(p.tensor.Rows()) * int64(p.rowBytes)
		total.Add(size)
		if p.tensor.Dummy != nil {
			if err := b.launch(p.fill(b.device, *p.to+ptr(p.shift), p.tensor, p.order), b.stream); err != nil {
				return err
			}
			done.Add(size)
			continue
		}
		tasks = append(tasks, p.split()...)
	}
	report := func(bytes int64) {
		if progress != nil {
			progress(float64(done.Add(bytes))/(1<<30), float64(total.Load())/(1<<30))
		}
	}
	if err := b.read(tasks, report); err != nil {
		return err
	}
	if err := b.stream.Synchronize(); err != nil {
		return fmt.Errorf("make dummy weights: %w", err)
	}
	report(0)
	return nil
}

// readTask is rows first..first+rows-1 of a part's tensor.
type readTask struct {
	part
	first, rows int
}

// split cuts a part into tasks of at most a staging buffer, between blocks of 8 rows: those lie together where tensors are interleaved
// or have four bits.
func (p part) split() []readTask {
	const step = 8
	chunk := max(1, stagingBytes/p.rowBytes/step) * step
	var tasks []readTask
	for first := 0; first < p.tensor.Rows(); first += chunk {
		tasks = append(tasks, readTask{p, first, min(chunk, p.tensor.Rows()-first)})
	}
	return tasks
}

// read works off tasks on several goroutines.
func (b *Backend) read(tasks []readTask, report func(bytes int64)) error {
	if len(tasks) == 0 {
		return nil
	}
	copies, err := driver.NewStream()
	if err != nil {
		return err
	}
	defer copies.Destroy()
	queue := make(chan readTask)
	readers := min(maxReaders, max(2, runtime.GOMAXPROCS(0)), len(tasks))
	failures := make([]error, readers)
	var wg sync.WaitGroup
	var failed atomic.Bool
	for i := range readers {
		wg.Go(func() {
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			failures[i] = b.reader(queue, copies, report)
			if failures[i] != nil {
				failed.Store(true)
				for range queue { // let the sender finish
				}
			}
		})
	}
	for _, t := range tasks {
		if failed.Load() {
			break
		}
		queue <- t
	}
	close(queue)
	wg.Wait()
	return errors.Join(append(failures, copies.Synchronize())...)
}

// reader fills one of its two pinned buffers while the other one is being copied.
func (b *Backend) reader(queue <-chan readTask, copies driver.Stream, report func(bytes int64)) (err error) {
	if err := b.context.Bind(); err != nil {
		return err
	}
	var buffers [2]struct {
		pinned *driver.Pinned
		copied driver.Event
		busy   bool
	}
	for i := range buffers {
		if buffers[i].pinned, err = driver.AllocPinned(stagingBytes + 1<<20); err != nil {
			return fmt.Errorf("pinned staging buffer: %w", err)
		}
		defer buffers[i].pinned.Free()
		if buffers[i].copied, err = driver.NewEvent(); err != nil {
			return err
		}
		defer buffers[i].copied.Destroy()
		defer func() {
			if buffers[i].busy {
				err = errors.Join(err, buffers[i].copied.Synchronize())
			}
		}()
	}
	var scratch []float32
	for n := 0; ; n++ {
		t, ok := <-queue
		if !ok {
			return nil
		}
		buf := &buffers[n%2]
		if buf.busy {
			if err := buf.copied.Synchronize(); err != nil {
				return err
			}
		}
		bytes := t.rows * t.rowBytes
		if bytes > len(buf.pinned.Bytes) {
			return fmt.Errorf("weight %s: a row of %d bytes is longer than a staging buffer", t.tensor.Name, bytes)
		}
		staged := buf.pinned.Bytes[:bytes]
		t.encode(staged, t.tensor, t.first, t.rows, &scratch)
		if err := t.copy(staged, copies); err != nil {
			return fmt.Errorf("weight %s: %w", t.tensor.Name, err)
		}
		if err := buf.copied.Record(copies); err != nil {
			return err
		}
		buf.busy = true
		report(int64(bytes))
	}
}

// copy enqueues the copy of the task's rows to their places.
func (t readTask) copy(staged []byte, s driver.Stream) error {
	to, rowBytes := *t.to+ptr(t.shift), int64(t.rowBytes)
	if t.order == rowsInOrder {
		return driver.CopyToDevice(to+ptr(int64(t.first)*rowBytes), staged, s)
	}
	// Row 8j+i goes to row 16j+i, that of up 8 rows further: blocks of 8 rows, 16 rows apart. A last block may be shorter.
	dst := to + ptr(int64(t.first)*2*rowBytes)
	if t.order == rowsOfUp {
		dst += ptr(8 * rowBytes)
	}
	whole := t.rows / 8 * 8
	if whole > 0 {
		if err := driver.CopyToDevice2D(dst, 16*rowBytes, staged[:int64(whole)*rowBytes], int(8*rowBytes), s); err != nil {
			return err
		}
	}
	if whole < t.rows {
		return driver.CopyToDevice(dst+ptr(int64(whole)*2*rowBytes), staged[int64(whole)*rowBytes:], s)
	}
	return nil
}
