//go:build cuda

package cuda

import (
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// rig runs single kernels on the GPU for tests: memory that starts as NaN, uploads, downloads.
type rig struct {
	testing.TB
	device   device
	shape    shape
	context  *driver.Context
	stream   driver.Stream
	compiler *compiler
	random   *rand.Rand
}

// rigKernels keeps the process's one test context and what was compiled, so that a case costs no new context.
var rigKernels struct {
	context   *driver.Context
	functions map[string]*driver.Function // by the compiler's options and the unit
}

func newRig(t testing.TB, s shape) *rig {
	t.Helper()
	needGPU(t)
	found, err := pickDevice()
	require.NoError(t, err)
	if rigKernels.context == nil {
		rigKernels.context, err = driver.Open(found)
		require.NoError(t, err)
		rigKernels.functions = map[string]*driver.Function{}
	}
	own(t, rigKernels.context)
	r := &rig{TB: t, shape: s, context: rigKernels.context, random: newRandom()}
	r.device = device{Name: found.Name, SM: found.Major*10 + found.Minor, SMs: found.SMs, L2Bytes: found.L2Bytes, MaxSmem: found.SharedMemory, TotalMem: found.TotalMemory}
	r.stream, err = driver.NewStream()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.stream.Destroy()) })
	r.compiler = newCompiler(r.device, s, nil)
	return r
}

// own makes the context current to the test's goroutine, and keeps that on its thread, until the test ends. A subtest has a goroutine of
// its own, so each that calls the driver owns the context itself: newRig, rig.in and openTest see to it.
func own(t testing.TB, c *driver.Context) {
	t.Helper()
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	require.NoError(t, c.Bind())
}

// in is r in a subtest: what it allocates is freed, and what it requires fails, there.
func (r *rig) in(t testing.TB) *rig {
	t.Helper()
	own(t, r.context)
	sub := *r
	sub.TB = t
	return &sub
}

func newRandom() *rand.Rand { return rand.New(rand.NewPCG(1, 2)) }

// room allocates bytes of NaNs (all bits set), so that what a kernel reads too much or leaves unwritten shows.
func (r *rig) room(bytes int) ptr {
	r.Helper()
	p, err := driver.Alloc(int64(max(bytes, 16)))
	require.NoError(r, err)
	r.Cleanup(func() { _ = driver.Free(p) })
	require.NoError(r, driver.Memset(p, 0xFF, int64(max(bytes, 16)), r.stream))
	require.NoError(r, r.stream.Synchronize())
	return p
}

func put[T any](r *rig, values []T) ptr {
	r.Helper()
	var zero T
	p := r.room(len(values) * int(unsafe.Sizeof(zero)))
	require.NoError(r, driver.Write(p, bytesOf(values)))
	return p
}

func get[T any](r *rig, p ptr, n int) []T {
	r.Helper()
	values := make([]T, n)
	require.NoError(r, driver.Read(bytesOf(values), p))
	return values
}

// putBF16 uploads values, which it rounds in place to what the device has.
func (r *rig) putBF16(values []float32) ptr {
	r.Helper()
	bits := make([]uint16, len(values))
	for i, v := range values {
		bits[i] = weights.BF16FromFloat32(v)
		values[i] = fromBF16(bits[i])
	}
	return put(r, bits)
}

func (r *rig) getBF16(p ptr, n int) []float32 {
	r.Helper()
	out := make([]float32, n)
	for i, b := range get[uint16](r, p, n) {
		out[i] = fromBF16(b)
	}
	return out
}

// normal gives n values of a bell shape (the sum of four uniform ones, which is quick) and a standard deviation.
func (r *rig) normal(n int, deviation float64) []float32 {
	out := make([]float32, n)
	scale := float32(deviation * math.Sqrt(3.0/4) / (1 << 15))
	for i := range out {
		u := r.random.Uint64()
		out[i] = float32(int16(u))*scale + float32(int16(u>>16))*scale + float32(int16(u>>32))*scale + float32(int16(u>>48))*scale
	}
	return out
}

// prepare compiles what the ops need on every processor, through the cache of the environment if there is one.
func (r *rig) prepare(ops ...op) {
	r.Helper()
	c := newCompiler(r.device, r.shape, nil)
	if os.Getenv("TOKAMAK_CACHE_DIR") != "" {
		c.cache = openCache("")
	}
	seen := map[unit]bool{}
	for _, o := range ops {
		seen[o.Unit] = true
	}
	units := slices.Collect(maps.Keys(seen))
	code, err := c.all(units, nil)
	require.NoError(r, err)
	for _, u := range units {
		m, err := driver.LoadModule(code[u])
		require.NoError(r, err, u)
		f, err := m.Function(u.Symbol)
		require.NoError(r, err)
		rigKernels.functions[r.key(u)] = f
	}
}

// key names a compiled unit among rigKernels.
func (r *rig) key(u unit) string { return strings.Join(r.compiler.options(u), " ") + u.String() }

// run launches ops one behind the other and waits.
func (r *rig) run(ops ...op) {
	r.Helper()
	r.enqueue(ops...)
	require.NoError(r, r.stream.Synchronize())
}

func (r *rig) enqueue(ops ...op) {
	r.Helper()
	for _, o := range ops {
		key := r.key(o.Unit)
		f := rigKernels.functions[key]
		if f == nil {
			code, err := r.compiler.cubin(o.Unit)
			require.NoError(r, err)
			m, err := driver.LoadModule(code)
			require.NoError(r, err, o.Unit)
			f, err = m.Function(o.Unit.Symbol)
			require.NoError(r, err)
			rigKernels.functions[key] = f
		}
		require.NoError(r, f.AllowSharedMemory(o.Smem), o.Unit)
		err := f.Launch(r.stream, driver.Geometry{Grid: o.Grid, Block: o.Block, Smem: o.Smem, Cluster: o.Cluster, PDL: o.PDL}, o.Params)
		require.NoError(r, err, "%s grid %v", o.Unit, o.Grid)
	}
}

// time is the median of b.N launches, at least 5, in milliseconds, each timed by events of its own.
func (r *rig) time(b *testing.B, o op) float64 {
	b.Helper()
	r.run(o, o)
	before, err := driver.NewEvent()
	require.NoError(b, err)
	after, err := driver.NewEvent()
	require.NoError(b, err)
	var all []float64
	b.ResetTimer()
	for range max(b.N, 5) {
		require.NoError(b, before.Record(r.stream))
		r.enqueue(o)
		require.NoError(b, after.Record(r.stream))
		require.NoError(b, after.Synchronize())
		ms, err := before.Milliseconds(after)
		require.NoError(b, err)
		all = append(all, ms)
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func fromBF16(b uint16) float32 { return math.Float32frombits(uint32(b) << 16) }
func toBF16(v float32) float32  { return fromBF16(weights.BF16FromFloat32(v)) }

// requireClose holds a kernel's result against the exact one: its error may be twice that of plain bf16 arithmetic, which rounds
// after every operation as Hugging Face does, in the mean (root of mean square) and at the worst place.
func requireClose(t testing.TB, exact, plain, got []float32, what string) {
	t.Helper()
	require.Len(t, got, len(exact))
	var meanPlain, meanGot, worstPlain, worstGot float64
	worstAt := 0
	for i, e := range exact {
		g := float64(got[i])
		require.False(t, math.IsNaN(g) || math.IsInf(g, 0), "%s: element %d is %v", what, i, g)
		p, d := math.Abs(float64(plain[i])-float64(e)), math.Abs(g-float64(e))
		meanPlain, meanGot = meanPlain+p*p, meanGot+d*d
		worstPlain = max(worstPlain, p)
		if d > worstGot {
			worstGot, worstAt = d, i
		}
	}
	n := float64(len(exact))
	meanPlain, meanGot = math.Sqrt(meanPlain/n), math.Sqrt(meanGot/n)
	require.LessOrEqual(t, meanGot, 2*meanPlain, "%s: rms error", what)
	require.LessOrEqual(t, worstGot, 2*worstPlain, "%s: worst error, element %d: want %v, plain %v, got %v", what, worstAt, exact[worstAt], plain[worstAt], got[worstAt])
}
