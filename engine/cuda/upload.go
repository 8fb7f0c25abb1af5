//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

const (
	// stagingBytes is the size of a reader's pinned buffer. 16 MiB keeps a PCIe 5 link busy and the first copy early.
	stagingBytes = 16 << 20
	// maxReaders bounds the goroutines that read files into pinned memory: a core fills about 10 GB/s, the link takes 50.
	maxReaders = 8
)

// upload brings every tensor to its place in device memory as bf16. Dummy tensors are made there; the others are read by
// several goroutines into pinned buffers, decoded on the way, and copied on one stream. It returns when all are there.
func (b *Backend) upload(w *weights.Store, parts []part, progress func(done, total float64)) error {
	var total, done atomic.Int64
	var tasks []readTask
	for _, p := range parts {
		t, ok := w.Tensor(p.name)
		if !ok {
			return fmt.Errorf("weight %s is missing", p.name)
		}
		size := int64(t.Rows()) * int64(t.RowLen()) * bf16Bytes
		total.Add(size)
		dst := *p.to + ptr(p.shift)
		if t.Dummy != nil {
			if err := b.launch(fillOp(b.device, dst, t, p.order), b.stream); err != nil {
				return err
			}
			done.Add(size)
			continue
		}
		tasks = append(tasks, split(t, dst, p.order)...)
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

// readTask is rows first..first+rows-1 of a tensor.
type readTask struct {
	tensor      *weights.Tensor
	dst         ptr // of the whole tensor's first row
	order       int
	first, rows int
}

// split cuts a tensor into tasks of at most a staging buffer. Interleaved tensors are cut between blocks of 8 rows.
func split(t *weights.Tensor, dst ptr, order int) []readTask {
	rowBytes, step := t.RowLen()*bf16Bytes, 1
	if order != rowsInOrder {
		step = 8
	}
	chunk := max(1, stagingBytes/rowBytes/step) * step
	var tasks []readTask
	for first := 0; first < t.Rows(); first += chunk {
		tasks = append(tasks, readTask{t, dst, order, first, min(chunk, t.Rows()-first)})
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
	var row []float32
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
		bytes := t.rows * t.tensor.RowLen() * bf16Bytes
		if bytes > len(buf.pinned.Bytes) {
			return fmt.Errorf("weight %s: a row of %d bytes is longer than a staging buffer", t.tensor.Name, bytes)
		}
		staged := buf.pinned.Bytes[:bytes]
		row = fillStaging(staged, t, row)
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

// fillStaging writes the task's rows as bf16. row is scratch for one decoded row.
func fillStaging(staged []byte, t readTask, row []float32) []float32 {
	if t.tensor.DType == weights.BF16 {
		size := t.tensor.RowBytes()
		copy(staged, t.tensor.Data[t.first*size:(t.first+t.rows)*size])
		return row
	}
	n := t.tensor.RowLen()
	if cap(row) < n {
		row = make([]float32, n)
	}
	row = row[:n]
	out := unsafe.Slice((*uint16)(unsafe.Pointer(unsafe.SliceData(staged))), len(staged)/bf16Bytes)
	for r := range t.rows {
		t.tensor.Row(t.first+r, row)
		for i, v := range row {
			out[r*n+i] = weights.BF16FromFloat32(v)
		}
	}
	return row
}

// copy enqueues the copy of the task's rows to their places.
func (t readTask) copy(staged []byte, s driver.Stream) error {
	rowBytes := int64(t.tensor.RowLen() * bf16Bytes)
	if t.order == rowsInOrder {
		return driver.CopyToDevice(t.dst+ptr(int64(t.first)*rowBytes), staged, s)
	}
	// Row 8j+i goes to row 16j+i, that of up 8 rows further: blocks of 8 rows, 16 rows apart. A last block may be shorter.
	dst := t.dst + ptr(int64(t.first)*2*rowBytes)
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
