//go:build cuda

package cuda

import (
	"fmt"
	"maps"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/tokamak-engine/tokamak/engine/cuda/driver"
	"github.com/tokamak-engine/tokamak/engine/kernels"
)

// testShapes are the models whose kernels are compiled: every family, head size, and awkward sizes.
func testShapes() map[string]shape {
	common := shape{Eps: 1e-5, Page: 64, MaxRows: 256, MaxTokens: 8192, MaxContext: 8192, MaxPages: 128, NumPages: 1024, Layers: 2, Prefixes: true}
	with := func(f func(s *shape)) shape { s := common; f(&s); return s }
	return map[string]shape{
		"llama-8b": with(func(s *shape) {
			s.Hidden, s.Inter, s.Heads, s.KVHeads, s.Dim, s.Vocab = 4096, 14336, 32, 8, 128, 128256
		}),
		"llama-1b": with(func(s *shape) {
			s.Hidden, s.Inter, s.Heads, s.KVHeads, s.Dim, s.Vocab, s.TiedHead = 2048, 8192, 32, 8, 64, 128256, true
		}),
		"qwen3-8b": with(func(s *shape) {
			s.Hidden, s.Inter, s.Heads, s.KVHeads, s.Dim, s.Vocab, s.QKNorm, s.Eps = 4096, 12288, 32, 8, 128, 151936, true, 1e-6
		}),
		"qwen2.5-7b": with(func(s *shape) {
			s.Hidden, s.Inter, s.Heads, s.KVHeads, s.Dim, s.Vocab, s.QKVBias = 3584, 18944, 28, 4, 128, 152064, true
		}),
		"smollm2-135m": with(func(s *shape) {
			s.Hidden, s.Inter, s.Heads, s.KVHeads, s.Dim, s.Vocab, s.TiedHead = 576, 1536, 9, 3, 64, 49152, true
		}),
		"qwen3-30b-a3b": with(func(s *shape) {
			s.Hidden, s.Inter, s.Heads, s.KVHeads, s.Dim, s.Vocab, s.QKNorm, s.Eps = 2048, 6144, 32, 4, 128, 151936, true, 1e-6
			s.MoE = moeShape{Experts: 128, TopK: 8, Inter: 768, NormTopK: true}
		}),
		"tiny-moe": with(func(s *shape) {
			s.Hidden, s.Inter, s.Heads, s.KVHeads, s.Dim, s.Vocab, s.QKNorm = 72, 64, 4, 2, 16, 515, true
			s.MoE = moeShape{Experts: 60, TopK: 4, Inter: 40, Uniform: true}
		}),
		"tiny-window": with(func(s *shape) {
			s.Hidden, s.Inter, s.Heads, s.KVHeads, s.Dim, s.Vocab, s.Window, s.Page, s.MaxPages = 64, 176, 4, 2, 16, 515, 40, 16, 32
		}),
	}
}

var testDevices = map[string]device{
	"sm_80": {Name: "A100", SM: 80, SMs: 108, L2Bytes: 40 << 20, MaxSmem: 163 << 10}, "sm_86": {Name: "A10", SM: 86, SMs: 72, L2Bytes: 6 << 20, MaxSmem: 99 << 10},
	"sm_89": {Name: "L4", SM: 89, SMs: 58, L2Bytes: 48 << 20, MaxSmem: 99 << 10}, "sm_90": {Name: "H200", SM: 90, SMs: 132, L2Bytes: 50 << 20, MaxSmem: 227 << 10},
	"sm_100": {Name: "B200", SM: 100, SMs: 148, L2Bytes: 126 << 20, MaxSmem: 227 << 10}, "sm_120": {Name: "RTX 5090", SM: 120, SMs: 170, L2Bytes: 96 << 20, MaxSmem: 99 << 10},
}

// plannerOf plans for a model of one layer, without memory.
func plannerOf(d device, s shape, l layerWeights) *planner {
	return &planner{device: d, shape: s, buffers: &buffers{}, layers: []layerWeights{l}}
}

// allUnits is what an engine compiles at Open.
func allUnits(d device, s shape) []unit {
	s.MaxVerify = 48
	units := plannerOf(d, s, layerWeights{}).units()
	for way := range readProbes {
		units = append(units, readProbeOp(d, 0, 0, 0, way).Unit)
	}
	units = append(units, flopProbeUnits(d)...)
	return append(units, unit{File: "fill.cu", Symbol: "fill"}, unit{File: "rope_table.cu", Symbol: "rope_table"})
}

// spillsAllowed lists kernels that may use local memory: how much, bytes a thread, and why.
var spillsAllowed = map[string]struct {
	bytes  int
	reason string
}{
	"rope_table": {40, "sincos in fp64 reduces large angles in local memory; it runs once, at start"},
	"gemv_mma":   {16, "two pointers of 128 registers are put aside once for each block of rows; the loop over the weights has none"},
	"w4_gemm":    {16, "a pointer or two of 255 registers"},
	"w4_gemv":    {64, "x of 16 tokens passes through the registers at the start, when the first weights are there; the loop has none with groups of 128"},
}

var resourceLine = regexp.MustCompile(`(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads`)

// TestKernelsCompile compiles every kernel to machine code with the engine's own options. For sm_90a it refuses local memory.
// Without TOKAMAK_KERNELS=all it takes one model; with it, all models, and one model for each other architecture.
func TestKernelsCompile(t *testing.T) {
	nvrtc, err := driver.OpenCompiler()
	if err != nil {
		t.Skipf("no compiler: %v", err)
	}
	all := os.Getenv("TOKAMAK_KERNELS") == "all"
	for _, name := range slices.Sorted(maps.Keys(testShapes())) {
		if !all && name != "smollm2-135m" {
			continue
		}
		t.Run("sm_90/"+name, func(t *testing.T) { compileAll(t, nvrtc, testDevices["sm_90"], testShapes()[name], true) })
	}
	for _, sm := range slices.Sorted(maps.Keys(testDevices)) {
		if all && sm != "sm_90" {
			t.Run(sm, func(t *testing.T) { compileAll(t, nvrtc, testDevices[sm], testShapes()["llama-8b"], false) })
		}
	}
}

func compileAll(t *testing.T, nvrtc *driver.Compiler, d device, s shape, strict bool) {
	compileUnits(t, nvrtc, d, s, allUnits(d, s), strict)
}

func compileUnits(t *testing.T, nvrtc *driver.Compiler, d device, s shape, units []unit, strict bool) {
	c := newCompiler(d, s, nil)
	var group errgroup.Group
	group.SetLimit(runtime.GOMAXPROCS(0))
	var mu sync.Mutex
	for _, u := range units {
		group.Go(func() error {
			source, err := kernels.Source(u.File)
			if err != nil {
				return err
			}
			_, log, err := nvrtc.Compile(u.File, source, c.headers, append(c.options(u), "--ptxas-options=-v"))
			if err != nil {
				return fmt.Errorf("%s: %w", u, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, m := range resourceLine.FindAllStringSubmatch(log, -1) {
				stack, _ := strconv.Atoi(m[1])
				stores, _ := strconv.Atoi(m[2])
				if strict && max(stack, stores) > spillsAllowed[u.Symbol].bytes {
					t.Errorf("%s uses local memory: %s", u, m[0])
				}
			}
			for line := range strings.Lines(log) {
				if strings.Contains(line, "warning") {
					t.Errorf("%s: %s", u, line)
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
	t.Logf("%d kernels for %s", len(units), d.arch())
}

// TestPlansKeepTheirUnits holds that no step needs a kernel that Open did not compile.
func TestPlansKeepTheirUnits(t *testing.T) {
	for name, s := range testShapes() {
		for _, rows := range []int{1, 5, 16, 100, 256} {
			s := s
			s.MaxRows, s.MaxVerify = bucketFor(rows), rows
			keepsUnits(t, fmt.Sprintf("%s, %d rows at most", name, rows), plannerOf(testDevices["sm_90"], s, layerWeights{}), rows)
		}
	}
}

// keepsUnits holds p to it for steps of up to so many rows.
func keepsUnits(t *testing.T, what string, p *planner, rows int) {
	known := map[unit]bool{}
	for _, u := range p.units() {
		known[u] = true
	}
	for n := 1; n <= rows; n++ {
		for _, full := range []bool{false, true} {
			steps := []stepShape{{rows: n, decode: n, tokens: n, samples: n, full: full}}
			if p.shape.MaxVerify > 0 {
				steps = append(steps, stepShape{rows: n, decode: n, tokens: n, samples: n, full: full, drafts: true},
					stepShape{rows: n + 1, decode: n, tokens: n + 30, samples: n, longest: 30, full: full, drafts: true})
			}
			for _, tokens := range []int{1, 2, 7, 15, 16, 17, 63, 64, 200, 1024} {
				steps = append(steps, stepShape{rows: 1, tokens: tokens, samples: 1, longest: tokens, full: full}, stepShape{rows: 1, tokens: tokens, longest: tokens},
					stepShape{rows: n, decode: n - 1, tokens: n - 1 + tokens, samples: n, longest: tokens, full: full})
			}
			for _, st := range steps {
				for _, node := range p.step(st.padded(), hooks{}) {
					if node.op != nil {
						require.True(t, known[node.op.Unit], "%s: %+v needs %s", what, st, node.op.Unit)
					}
				}
			}
		}
	}
}

func TestBuckets(t *testing.T) {
	for _, c := range []struct{ n, want int }{{1, 1}, {5, 6}, {16, 16}, {17, 24}, {129, 160}, {512, 512}, {513, 576}, {1024, 1024}, {1025, 1088}} {
		assert.Equal(t, c.want, bucketFor(c.n), "%d rows", c.n)
	}
	for _, c := range []struct{ in, want stepShape }{
		{stepShape{rows: 3, decode: 3, tokens: 3, samples: 3}, stepShape{rows: 3, decode: 3, tokens: 3, samples: 3}},
		{stepShape{rows: 5, decode: 5, tokens: 5, samples: 5}, stepShape{rows: 6, decode: 6, tokens: 6, samples: 6}},
		{stepShape{rows: 17, decode: 17, tokens: 17, samples: 17}, stepShape{rows: 24, decode: 24, tokens: 24, samples: 24}},
		{stepShape{rows: 49, decode: 49, tokens: 49, samples: 49}, stepShape{rows: 64, decode: 64, tokens: 64, samples: 64}},
		{stepShape{rows: 129, decode: 129, tokens: 129, samples: 129}, stepShape{rows: 160, decode: 160, tokens: 160, samples: 160, full: true}},
		{stepShape{rows: 1, tokens: 5, samples: 1, longest: 5}, stepShape{rows: 1, tokens: 6, samples: 1, longest: 6}},
		{stepShape{rows: 6, decode: 5, tokens: 105, samples: 5, longest: 100}, stepShape{rows: 6, decode: 5, tokens: 128, samples: 6, longest: 128}},
		{stepShape{rows: 1, tokens: 100, longest: 100}, stepShape{rows: 1, tokens: 128, longest: 128}},
	} {
		assert.Equal(t, c.want, c.in.padded(), "%+v", c.in)
	}
}
