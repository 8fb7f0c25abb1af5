//go:build cuda

package cuda

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/tokamak-engine/tokamak/engine/kernels"
)

// hostCase is one kernel of four-bit weights and how it is launched.
type hostCase struct {
	op   op
	m, n int // tokens, rows of W
}

// hostCases take every epilogue, size of groups, place of x and ragged end once, on as many CTAs as the engine has and on fewer.
func hostCases() []hostCase {
	d := testDevices["sm_90"]
	var cases []hostCase
	for _, c := range []struct {
		n, k, group int
		tokens      []int
	}{
		{48, 64, 32, []int{1, 7, 16, 17}}, {72, 96, 32, []int{2, 9, 100}}, {176, 2048, 32, []int{8, 16}}, {176, 1000, 1000, []int{5, 33}}, {40, 3584, 3584, []int{1, 9}},
		{136, 5120, 256, []int{7, 16, 64}}, {80, 8192, 64, []int{3, 16}}, {48, 14336, 128, []int{1, 8, 9, 64}},
	} {
		for i, m := range c.tokens {
			end := []epilogue{epilogueResidual, epilogueSwiGLU, epilogueBias, epilogueStore}[i]
			if end == epilogueSwiGLU && c.n%16 != 0 {
				end = epilogueStore
			}
			g := product{linear: linear{m: m, n: c.n, k: c.k, norm: i%2 == 1, end: end}, w: weight{Group: c.group}}
			if t, ok := g.w4GemvTile(d, c.group); ok {
				cases = append(cases, hostCase{g.w4GemvOp(d, t), m, c.n})
				continue
			}
			g.norm = false
			cases = append(cases, hostCase{g.w4GEMMOp(d, &buffers{}), m, c.n})
		}
		o := dequantOp(d, weight{Group: c.group}, c.n, c.k, 0)
		cases = append(cases, hostCase{o, 1, c.n})
	}
	return cases
}

// TestInt4KernelsOnTheHost compiles the kernels of four-bit weights with the host's compiler, with warps, matrix products and asynchronous copies
// in C++ (testdata/onhost), and holds them to exact products. It needs no GPU. It says nothing of races: threads take turns.
func TestInt4KernelsOnTheHost(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles 30 programs")
	}
	compiler, dir := onHost(t, "main.cc", "w4_gemv", "w4_gemm", "w4_dequant")
	var group errgroup.Group
	group.SetLimit(2)
	for i, c := range hostCases() {
		group.Go(func() error {
			symbol, program := c.op.Unit.Symbol, filepath.Join(dir, fmt.Sprint("case", i))
			args := []string{"-O1", "-w", "-std=c++17", "-DKERNEL=\"" + symbol + ".cc\"", "-DKERNEL_FN=" + symbol, "-DRMS_EPS=1e-5f", "-D" + strings.ToUpper(strings.TrimPrefix(symbol, "w4_"))}
			for _, define := range strings.Fields(c.op.Unit.Defines) {
				args = append(args, "-D"+define)
			}
			if out, err := exec.Command(compiler, append(args, filepath.Join(dir, "main.cc"), "-o", program)...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", c.op.Unit, err, out)
			}
			for _, ctas := range []int{c.op.Grid[0], min(2, c.op.Grid[0])} {
				out, err := exec.Command(program, fmt.Sprint(c.m), fmt.Sprint(ctas), fmt.Sprint(c.op.Grid[1]), fmt.Sprint(c.op.Block), fmt.Sprint(max(c.op.Smem, 64))).CombinedOutput()
				if err != nil || !strings.HasPrefix(string(out), "ok") {
					return fmt.Errorf("%s, %d tokens, %d CTAs: %s (%v)", c.op.Unit, c.m, ctas, strings.TrimSpace(string(out)), err)
				}
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// onHost gives the host's compiler, and a folder with the program of that name and the kernels it includes, whose headers but the GPU's own are theirs.
func onHost(t *testing.T, program string, symbols ...string) (compiler, dir string) {
	t.Helper()
	compiler, err := exec.LookPath("g++")
	if err != nil {
		t.Skipf("no C++ compiler: %v", err)
	}
	dir = t.TempDir()
	for name, text := range kernels.Headers() {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	for _, name := range []string{"ptx.cuh", "head.cuh", "run.h", program} { // in place of the GPU's
		text, err := os.ReadFile(filepath.Join("testdata", "onhost", name))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), text, 0o644))
	}
	for _, symbol := range symbols {
		source, err := kernels.Source(symbol + ".cu")
		require.NoError(t, err)
		source = strings.Replace(source, "extern __shared__ uint4 smem[];", "uint4* smem = emu_smem;", 1)
		require.NoError(t, os.WriteFile(filepath.Join(dir, symbol+".cc"), []byte(strings.Replace(source, `extern "C" __global__`, "static", 1)), 0o644))
	}
	return compiler, dir
}
