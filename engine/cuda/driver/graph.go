//go:build cuda

package driver

/*
#include <cuda.h>
static CUresult beginCapture(void *s) { return cuStreamBeginCapture((CUstream)s, CU_STREAM_CAPTURE_MODE_RELAXED); }
static CUresult endCapture(void *s, void **graph) { return cuStreamEndCapture((CUstream)s, (CUgraph *)graph); }
static CUresult instantiate(void **exec, void *g) { return cuGraphInstantiateWithFlags((CUgraphExec *)exec, (CUgraph)g, 0); }
static CUresult graphNodes(void *g, size_t *n) { return cuGraphGetNodes((CUgraph)g, NULL, n); }
static CUresult graphDestroy(void *g) { return cuGraphDestroy((CUgraph)g); }
static CUresult upload(void *e, void *s) { return cuGraphUpload((CUgraphExec)e, (CUstream)s); }
// The context is set here, so that a step is one call whatever thread the caller's goroutine is on.
static CUresult graphLaunch(void *c, void *e, void *s) {
	CUresult r = cuCtxSetCurrent((CUcontext)c);
	return r ? r : cuGraphLaunch((CUgraphExec)e, (CUstream)s);
}
static CUresult execDestroy(void *e) { return cuGraphExecDestroy((CUgraphExec)e); }
static CUresult execUpdate(void *e, void *g) {
#if CUDA_VERSION >= 12000
	CUgraphExecUpdateResultInfo info = {0};
	return cuGraphExecUpdate((CUgraphExec)e, (CUgraph)g, &info);
#else
	CUgraphNode n; CUgraphExecUpdateResult result;
	return cuGraphExecUpdate((CUgraphExec)e, (CUgraph)g, &n, &result);
#endif
}
static CUresult query(void *c, void *s) {
	CUresult r = cuCtxSetCurrent((CUcontext)c);
	return r ? r : cuStreamQuery((CUstream)s);
}
*/
import "C"

import "unsafe"

func (c *Context) raw() unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&c.ctx)) } // cu.CUContext is a struct of one handle
func (s Stream) raw() unsafe.Pointer   { return unsafe.Pointer(s.s.C()) }

// Query tells whether s, a stream of the context, is empty. A kernel's fault comes back as an error. The calling thread need not
// be bound.
func (c *Context) Query(s Stream) (idle bool, err error) {
	r := C.query(c.raw(), s.raw())
	if r == C.CUDA_ERROR_NOT_READY {
		return false, nil
	}
	return r == C.CUDA_SUCCESS, check("cuStreamQuery", r)
}

// Graph is an instantiated CUDA graph: a step that is launched with one call.
type Graph struct {
	exec  unsafe.Pointer
	Nodes int
}

// Capture records what enqueue puts on s, instead of running it, and makes it a graph.
func Capture(s Stream, enqueue func() error) (*Graph, error) {
	graph, err := record(s, enqueue)
	if err != nil {
		return nil, err
	}
	defer C.graphDestroy(graph)
	g := &Graph{}
	var nodes C.size_t
	if err := check("cuGraphGetNodes", C.graphNodes(graph, &nodes)); err != nil {
		return nil, err
	}
	g.Nodes = int(nodes)
	if err := check("cuGraphInstantiate", C.instantiate(&g.exec, graph)); err != nil {
		return nil, err
	}
	if err := check("cuGraphUpload", C.upload(g.exec, s.raw())); err != nil {
		g.Destroy()
		return nil, err
	}
	return g, nil
}

func record(s Stream, enqueue func() error) (unsafe.Pointer, error) {
	if err := check("cuStreamBeginCapture", C.beginCapture(s.raw())); err != nil {
		return nil, err
	}
	failed := enqueue()
	var graph unsafe.Pointer
	err := check("cuStreamEndCapture", C.endCapture(s.raw(), &graph)) // always: it takes the stream out of capture
	if failed != nil {
		if graph != nil {
			C.graphDestroy(graph)
		}
		return nil, failed
	}
	return graph, err
}

// Update gives the graph the parameters that enqueue uses now; the kernels and their order must be the same.
func (g *Graph) Update(s Stream, enqueue func() error) error {
	graph, err := record(s, enqueue)
	if err != nil {
		return err
	}
	defer C.graphDestroy(graph)
	return check("cuGraphExecUpdate", C.execUpdate(g.exec, graph))
}

// Launch enqueues a graph on s, a stream of the context, in one call. The calling thread need not be bound.
func (c *Context) Launch(g *Graph, s Stream) error {
	return check("cuGraphLaunch", C.graphLaunch(c.raw(), g.exec, s.raw()))
}

// Destroy frees the graph; a running launch ends first.
func (g *Graph) Destroy() error {
	if g == nil || g.exec == nil {
		return nil
	}
	err := check("cuGraphExecDestroy", C.execDestroy(g.exec))
	g.exec = nil
	return err
}
