//go:build cuda

package cuda

import (
	"errors"
	"fmt"
	"runtime"
	"time"
	"unsafe"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/trace"
)

// Backend runs a model on a GPU. See [backend.Backend].
type Backend struct {
	info    backend.Info
	device  device
	shape   shape
	context *driver.Context
	stream  driver.Stream
	blas    *driver.BlasLt
	memory  []ptr // what alloc gave
	buffers buffers
	planner *planner
	copied  *planner   // the same, with the plan read from its copy on the device
	head    *draftHead // nil: there is none

	compiler     *compiler
	code         map[unit][]byte
	functions    map[unit]*driver.Function
	modules      map[unit]driver.Module
	graphs       map[stepShape]*driver.Graph
	eager        map[stepShape][]node      // decode steps without a graph
	graphOps     map[stepShape][]plannedOp // what each graph holds, for profilers
	stamps       *stamps                   // nil: kernels note nothing
	seen         map[stepShape]int         // how often a small step with prompts came
	noGraph      bool
	mixedGraphs  bool // of decode rows and prompts
	promptGraphs int  // of graphs
	openTime     time.Duration

	pinned pinned

	// Owned by the goroutine that calls the methods.
	slots    []slot
	prefixes prefixes
	checker  *backend.Checker
	launched backend.StepID // id of the next step to launch
	awaited  backend.StepID // id of the next step to await
	steps    [backend.MaxInFlight]step
	closed   bool
	failure  error
}

var _ backend.Backend = (*Backend)(nil)

// slot is what the host knows of a sequence on the device.
type slot struct {
	full     bool // its sampling needs stored logits
	logProbs bool
	top      int // TopLogProbs
	pages    int // entries of its page table that the device has
	// token is the last one of a sequence whose last row had drafts, which only the host knows; else -1.
	token int32
}

// Stats counts what a backend did since it was opened.
type Stats struct {
	CompiledKernels, CachedKernels, DamagedKernels int64 // made, taken from the cache, made again as the cache was damaged
	Graphs                                         int
	OpenTime                                       time.Duration
}

// Stats returns the counters.
func (b *Backend) Stats() Stats {
	return Stats{b.compiler.compiled.Load(), b.compiler.cached.Load(), b.compiler.corrupt.Load(), len(b.graphs), b.openTime}
}

// Info describes the backend.
func (b *Backend) Info() backend.Info { return b.info }

func (b *Backend) alloc(bytes int64) (ptr, error) {
	p, err := driver.Alloc(max(bytes, 256))
	if err == nil {
		b.memory = append(b.memory, p)
	}
	return p, err
}

// function loads a compiled kernel once.
func (b *Backend) function(u unit) (*driver.Function, error) {
	if f := b.functions[u]; f != nil {
		return f, nil
	}
	code, ok := b.code[u]
	if !ok { // a plan that units did not foresee: correct, but late
		var err error
		if code, err = b.compiler.cubin(u); err != nil {
			return nil, err
		}
	}
	m, err := driver.LoadModule(code)
	if err != nil {
		return nil, fmt.Errorf("load kernel %s: %w", u, err)
	}
	f, err := m.Function(u.Symbol)
	if err != nil {
		return nil, err
	}
	if b.stamps != nil {
		if err := b.stamps.attach(u, m); err != nil {
			return nil, err
		}
	}
	b.functions[u], b.modules[u] = f, m
	return f, nil
}

// launch enqueues one kernel.
func (b *Backend) launch(o op, s driver.Stream) error {
	f, err := b.function(o.Unit)
	if err != nil {
		return err
	}
	if o.Smem > 0 {
		if err := f.AllowSharedMemory(o.Smem); err != nil {
			return fmt.Errorf("kernel %s: %d bytes of shared memory: %w", o.Name, o.Smem, err)
		}
	}
	if o.Cluster > 8 {
		if err := f.AllowWideCluster(); err != nil {
			return err
		}
	}
	err = f.Launch(s, driver.Geometry{Grid: o.Grid, Block: o.Block, Smem: o.Smem, Cluster: o.Cluster, PDL: o.PDL}, o.Params)
	if err != nil {
		return fmt.Errorf("kernel %s (grid %v, block %d, %d bytes of shared memory): %w", o.Name, o.Grid, o.Block, o.Smem, err)
	}
	return nil
}

// enqueue puts nodes on the stream, one by one.
func (b *Backend) enqueue(nodes []node) error {
	marked := trace.WantNodes()
	if marked {
		defer trace.NodesDone()
	}
	for i := range nodes {
		if marked {
			b.markNode(&nodes[i])
		}
		var err error
		switch n := &nodes[i]; {
		case n.op != nil:
			err = b.launch(*n.op, b.stream)
		case n.gemm != nil:
			err = b.blas.Run(*n.gemm, b.stream)
		case n.hook != nil:
			err = n.hook()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// graph is the step of a padded shape, captured at its first use.
func (b *Backend) graph(st stepShape) (*driver.Graph, error) {
	if g := b.graphs[st]; g != nil {
		return g, nil
	}
	nodes := b.plannerFor(st).step(st, hooks{})
	for i := range nodes { // what loads a module or asks cuBLASLt is done outside of the capture
		if err := b.ready(&nodes[i]); err != nil {
			return nil, err
		}
	}
	g, err := driver.Capture(b.stream, func() error { return b.enqueue(nodes) })
	if err != nil {
		return nil, fmt.Errorf("capture the graph for %d rows of %d tokens: %w", st.rows, st.tokens, err)
	}
	b.graphs[st] = g
	b.noteGraph(st, nodes)
	return g, nil
}

func (b *Backend) ready(n *node) error {
	switch {
	case n.op != nil:
		f, err := b.function(n.op.Unit)
		if err != nil {
			return err
		}
		return f.AllowSharedMemory(n.op.Smem)
	case n.gemm != nil:
		return b.blas.Plan(*n.gemm)
	}
	return nil
}

// Launch checks batch and enqueues it. A batch that is refused leaves the backend as it was.
func (b *Backend) Launch(batch *backend.Batch) (backend.StepID, error) {
	if err := b.usable(); err != nil {
		return 0, err
	}
	if b.launched-b.awaited == backend.MaxInFlight {
		return 0, backend.ErrTooManySteps
	}
	if err := b.check(batch); err != nil {
		return 0, err
	}
	b.checker.Launched(batch)
	id := b.launched
	st := &b.steps[id%backend.MaxInFlight]
	shape, err := b.fill(batch, st, id)
	if err == nil {
		err = b.submit(batch, st, shape)
	}
	if err != nil {
		b.failure = fmt.Errorf("step %d: %w", id, err)
		return 0, b.failure
	}
	if b.head != nil {
		b.head.launched(batch, st, id)
	}
	b.launched++
	return id, nil
}

const (
	// promptGraphTokens is the most tokens of a step with prompts that is worth a graph: launching its 350 kernels one by one takes the
	// host 2 to 5 ms, which more tokens than these hide.
	promptGraphTokens = 1024
	// maxPromptGraphs bounds the memory of such graphs, some 10 KB a kernel.
	maxPromptGraphs = 128
)

// plannerFor is the planner of steps like st: only decode steps read the plan where the host wrote it.
func (b *Backend) plannerFor(st stepShape) *planner {
	if st.decodeOnly() {
		return b.planner
	}
	return b.copied
}

// worthGraph tells whether a padded step is to be a graph: every decode step is, and one with prompts if it is small and comes a second
// time.
func (b *Backend) worthGraph(st stepShape) bool {
	if st.decodeOnly() || b.graphs[st] != nil {
		return true
	}
	if st.decode > 0 && !b.mixedGraphs || st.tokens > promptGraphTokens || b.promptGraphs == maxPromptGraphs {
		return false
	}
	if len(b.seen) > 16*maxPromptGraphs {
		clear(b.seen)
	}
	if b.seen[st]++; b.seen[st] == 1 {
		return false
	}
	b.promptGraphs++
	return true
}

// exactRows is what smaller decode steps are padded to if rows may have drafts: from there on, up to gemvRows, one kernel makes every
// product and each token's sums have one order. So drafts change no bit of what is sampled.
const exactRows = coreTokens + 1

// padded gives the sizes that a step is run at.
func (b *Backend) padded(st stepShape) stepShape {
	if b.shape.MaxVerify > 0 && st.decodeOnly() && st.rows < exactRows {
		st.rows, st.decode, st.tokens, st.samples = exactRows, exactRows, exactRows, exactRows
	}
	return st.padded()
}

// submit enqueues a filled step: a graph, or kernel by kernel if it asks for more than tokens or is not worth one.
func (b *Backend) submit(batch *backend.Batch, st *step, shape stepShape) error {
	special := st.logits || st.targets > 0
	shape = b.padded(shape)
	if shape.decodeOnly() && !special && !st.starts && !st.masks && !b.noGraph {
		if g := b.graphs[shape]; g != nil { // one call
			b.tellGraph(shape, batch)
			return b.context.Launch(g, b.stream)
		}
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := b.context.Bind(); err != nil {
		return err
	}
	if st.starts {
		if err := b.start(batch, st); err != nil {
			return err
		}
	}
	if st.masks {
		if err := b.copyMasks(st); err != nil {
			return err
		}
	}
	if !shape.decodeOnly() {
		if err := b.copyPlan(st); err != nil {
			return err
		}
	}
	if !special && !b.noGraph && b.worthGraph(shape) {
		g, err := b.graph(shape)
		if err != nil {
			return err
		}
		b.tellGraph(shape, batch)
		return b.context.Launch(g, b.stream)
	}
	nodes := b.eager[shape]
	if special || nodes == nil {
		h, err := b.hooks(batch, st)
		if err != nil {
			return err
		}
		nodes = b.plannerFor(shape).step(shape, h)
		if !special && shape.decodeOnly() {
			b.eager[shape] = nodes
		}
	}
	b.tell(nodes, batch)
	return b.enqueue(nodes)
}

// Wait fills out with the results of step id, which must be the oldest one not awaited.
func (b *Backend) Wait(id backend.StepID, out *backend.Result) error {
	if err := b.usable(); err != nil {
		return err
	}
	if id != b.awaited || id == b.launched {
		return fmt.Errorf("wait for step %d: steps %d..%d are in flight, the first of them is next", id, b.awaited, b.launched-1)
	}
	if err := b.await(id); err != nil {
		b.failure = fmt.Errorf("step %d: %w", id, err)
		return b.failure
	}
	b.awaited++
	b.checker.Awaited()
	if b.stamps != nil {
		b.stamps.tell(uint64(id) - 1)
	}
	b.collect(&b.steps[id%backend.MaxInFlight], id, out)
	if b.head != nil {
		if err := b.head.follow(id, out); err != nil {
			b.failure = fmt.Errorf("draft head behind step %d: %w", id, err)
			return b.failure
		}
	}
	return nil
}

func (b *Backend) usable() error {
	if b.closed {
		return backend.ErrClosed
	}
	return b.failure
}

// Close waits for launched steps and frees the device.
func (b *Backend) Close() error {
	if b.closed {
		return nil
	}
	b.closed = true
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := b.context.Bind()
	var fault *CUDAError
	sync := b.stream.Synchronize()
	if b.failure == nil || !errors.As(b.failure, &fault) {
		err = errors.Join(err, sync) // a fault was told already
	}
	for _, g := range b.graphs {
		g.Destroy()
	}
	if b.blas != nil {
		b.blas.Close()
	}
	for _, p := range b.memory {
		driver.Free(p)
	}
	b.pinned.free()
	b.head.close()
	b.stamps.free()
	b.stream.Destroy()
	return errors.Join(err, b.context.Close())
}

// bytesOf is v's memory.
func bytesOf[T any](v []T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(unsafe.SliceData(v))), len(v)*int(unsafe.Sizeof(*new(T))))
}
