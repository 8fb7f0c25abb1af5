//go:build cuda

package cuda

import (
	"fmt"
	"maps"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/backend"
	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/weights"
)

// BenchmarkFP8 times decode steps and prompts of the 8B shape with weights of e4m3, with gemm_fp8_sm90 and with cuBLASLt, and then the products of
// a layer in chains of all layers, so that weights are cold: each tile, and cuBLASLt.
func BenchmarkFP8(b *testing.B) {
	cfg := benchModels()["llama-8b"]
	be := openTest(b, cfg, weights.NewDummy(cfg), backend.Options{MaxRows: 64, MaxTokens: 8192, MaxContext: 4096, MemFraction: 0.85, Quantization: "fp8"}, settings{})
	fmt.Printf("fp8 on %s, read %.3f TB/s\n", be.info.Device, *be.info.ReadBandwidth/1e12)
	decodeCase(b, be, "8b-fp8", 1, 512)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(b, be.context.Bind())
	blasOnly := func(only bool) {
		be.planner.blasOnly, be.copied.blasOnly = only, only
		for shape, g := range be.graphs {
			require.NoError(b, g.Destroy())
			delete(be.graphs, shape)
		}
		clear(be.seen)
		clear(be.eager)
	}
	both := func(rows int) { // in turn on the same card
		decodeCase(b, be, "8b-fp8 gemm_fp8", rows, 512)
		blasOnly(true)
		decodeCase(b, be, "8b-fp8 cuBLASLt", rows, 512)
		blasOnly(false)
	}
	both(32)
	for _, c := range []struct{ rows, in int }{{32, 512}, {1, 2048}} {
		var times []time.Duration
		for range 3 {
			times = append(times, prefill(b, be, c.rows, c.in))
		}
		fmt.Printf("prefill 8b-fp8 %d x %d: %v, %.0f tok/s\n", c.rows, c.in, median(times), float64(c.rows*c.in)/median(times).Seconds())
	}
	fp8Products(b, be)
	both(64)
	for _, rows := range []int{8, 16} {
		decodeCase(b, be, "8b-fp8", rows, 512)
	}
}

// prefill times rows prompts of n tokens, as many in a step as it has room for, each step launched before the last is awaited.
func prefill(b testing.TB, be *Backend, rows, n int) time.Duration {
	info := be.Info()
	per := (n + info.PageSize - 1) / info.PageSize
	var ids []backend.StepID
	var out backend.Result
	began := time.Now()
	for at := 0; at < rows; {
		var batch backend.Batch
		for ; at < rows && (len(batch.Rows)+1)*n <= info.MaxTokens; at++ {
			pages := make([]int32, per)
			for j := range pages {
				pages[j] = int32(at*per + j)
			}
			batch.Rows = append(batch.Rows, backend.Row{Slot: at, Start: &backend.Start{Sampling: backend.Sampling{TopP: 1, RepetitionPenalty: 1}},
				Tokens: randomPrompt(uint64(at), n, info.VocabSize), Pages: pages, Sample: true})
		}
		id, err := be.Launch(&batch)
		require.NoError(b, err)
		if ids = append(ids, id); len(ids) > 1 {
			require.NoError(b, be.Wait(ids[len(ids)-2], &out))
		}
	}
	require.NoError(b, be.Wait(ids[len(ids)-1], &out))
	return time.Since(began)
}

// fp8Products prints a line for each product and number of tokens: microseconds, and in brackets the share of the read bandwidth.
func fp8Products(b *testing.B, be *Backend) {
	type way struct {
		what  string
		nodes []node
	}
	var ways []way
	var units []unit
	add := func(what string, make func(w layerWeights) node) {
		var nodes []node
		for _, w := range be.planner.layers {
			nodes = append(nodes, make(w))
		}
		if o := nodes[0].op; o != nil {
			units = append(units, o.Unit)
		}
		ways = append(ways, way{what, nodes})
	}
	buf := &be.buffers
	for i, product := range []func(m int) linear{be.shape.qkv, be.shape.o, be.shape.gateUp, be.shape.down} {
		of := func(l layerWeights) weight { return [...]weight{l.WQKV, l.WO, l.WGU, l.WDown}[i] }
		x, y := buf.X, buf.QKV
		if i > 0 {
			x, y = buf.Act, buf.GU
		}
		one := product(1)
		one.fp8 = true
		add(one.name+" m=1 gemv", func(w layerWeights) node {
			o := one.op(be.device, linearParams{W: of(w).Data, X: x, Gamma: w.Norm1, Y: y, RowScale: of(w).Scales})
			return node{op: &o}
		})
		for _, m := range []int{16} {
			l := product(m)
			l.fp8 = true
			for blocks := 1; blocks <= 2; blocks++ {
				t := l.mmaTileOf(be.device, blocks)
				add(fmt.Sprintf("%s m=%d gemv blocks=%d", l.name, m, blocks), func(w layerWeights) node {
					o := l.op(be.device, linearParams{W: of(w).Data, X: x, Gamma: w.Norm1, Y: y, RowScale: of(w).Scales})
					o.Unit.Defines = o.Unit.Defines[:strings.Index(o.Unit.Defines, "BLOCKS=")] + fmt.Sprintf("BLOCKS=%d", blocks)
					o.Grid[0], o.Smem = t.grid, t.smem
					return node{op: &o}
				})
			}
		}
		for _, m := range []int{32} {
			l := product(m)
			best := l.fp8Tile(be.device).cost(l, be.device)
			for _, t := range l.fp8Tiles(be.device) {
				if t.cost(l, be.device) > 1.5*best {
					continue
				}
				add(fmt.Sprintf("%s m=%d gemm g=%d t=%d s=%d", l.name, m, t.groups, t.turns, t.split), func(w layerWeights) node {
					o := (&fp8Call{linear: l, tile: t, w: of(w), x: x, params: gemmFP8Params{Y: y}, xF16: i != 1, yF16: l.end == epilogueSwiGLU}).op(be.device)
					return node{op: &o}
				})
			}
		}
		for _, m := range []int{32, 8192} {
			l := product(m)
			add(fmt.Sprintf("%s m=%d cuBLASLt", l.name, m), func(w layerWeights) node {
				return node{gemm: &driver.GEMM{M: m, N: l.n, K: l.k, W: of(w).Data, X: buf.Act, Y: buf.GU, FP8: true, WScale: of(w).Scales, XScale: buf.QScale}}
			})
		}
	}
	code, err := be.compiler.all(units, nil)
	require.NoError(b, err)
	maps.Copy(be.code, code)
	line := ""
	for _, w := range ways {
		for i := range w.nodes {
			require.NoError(b, be.ready(&w.nodes[i]))
		}
		g, err := driver.Capture(be.stream, func() error { return be.enqueue(w.nodes) })
		require.NoError(b, err)
		us := timeGraph(b, be, g, 5) * 1e3 / float64(len(w.nodes))
		require.NoError(b, g.Destroy())
		words := strings.Fields(w.what)
		if head := strings.Join(words[:3], " "); line != head {
			fmt.Printf("\n%s:", head)
			line = head
		}
		var bytes float64
		if o := w.nodes[0].op; o != nil {
			bytes = float64(o.Bytes)
		} else {
			bytes = float64(w.nodes[0].gemm.N) * float64(w.nodes[0].gemm.K)
		}
		fmt.Printf(" %s %.1f (%.2f)", strings.Join(words[3:], ","), us, bytes/us*1e6 / *be.info.ReadBandwidth)
	}
	fmt.Println()
}
