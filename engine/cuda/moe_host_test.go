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
)

// TestMixtureKernelsOnTheHost is TestInt4KernelsOnTheHost for the kernels of mixtures' small steps, at the engine's own grids and sizes of shared memory.
func TestMixtureKernelsOnTheHost(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles ten programs")
	}
	d, b := testDevices["sm_90"], &buffers{}
	compiler, dir := onHost(t, "moe.cc", "moe_router", "moe_gate_up", "moe_down", "moe_topk", "moe_combine")
	var group errgroup.Group
	group.SetLimit(2)
	for i, c := range []struct {
		hidden int
		moe    moeShape
		tokens int
		ties   bool
	}{
		{256, mixtureShapes[1].moe, 1, false}, {256, mixtureShapes[1].moe, 3, false}, {256, mixtureShapes[1].moe, 16, true}, {72, mixtureShapes[2].moe, 5, false}, {72, mixtureShapes[2].moe, 1, true},
		{320, mixtureShapes[3].moe, 8, false}, {1000, mixtureShapes[4].moe, 9, false}, {64, mixtureShapes[5].moe, 13, false}, {2048, moeShape{Experts: 8, TopK: 2, Inter: 768, NormTopK: true}, 2, false},
		{64, moeShape{Experts: 16, TopK: 8, Inter: 1536}, 11, false},
	} {
		group.Go(func() error {
			s := mixtureShape(c.hidden, c.moe)
			class := 1
			for class < c.tokens {
				class *= 2
			}
			ops := []op{moeRouterOp(s, b, layerWeights{}, c.tokens, class), moeGateUpOp(d, s, b, layerWeights{}, c.tokens), moeDownOp(d, s, b, layerWeights{}, c.tokens),
				moeTopKOp(s, b, layerWeights{}, c.tokens), moeCombineOp(s, b, c.tokens)}
			args := []string{fmt.Sprint(c.tokens), fmt.Sprint(map[bool]int{true: 1}[c.ties])}
			var source strings.Builder
			fmt.Fprintf(&source, "#define HIDDEN %d\n#define RMS_EPS %g\n%s#include \"run.h\"\n#include \"moe.cuh\"\n", c.hidden, s.Eps, defineLines(c.moe.defines(""), "#define %s %s\n"))
			for _, o := range ops {
				own := strings.TrimPrefix(o.Unit.Defines, c.moe.defines(""))
				fmt.Fprintf(&source, "%snamespace %s {\n#include \"%s.cc\"\n}\n#undef THREADS\n%s", defineLines(own, "#define %s %s\n"), o.Unit.Symbol, o.Unit.Symbol, defineLines(own, "#undef %s // %s\n"))
				args = append(args, fmt.Sprint(o.Grid[0]), fmt.Sprint(o.Block), fmt.Sprint(o.Smem))
			}
			program := filepath.Join(dir, fmt.Sprint("case", i))
			if err := os.WriteFile(program+".cc", []byte(source.String()+"#include \"moe.cc\"\n"), 0o644); err != nil {
				return err
			}
			if out, err := exec.Command(compiler, "-O1", "-w", "-std=c++17", program+".cc", "-o", program).CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w\n%s", c, err, out)
			}
			if out, err := exec.Command(program, args...).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "ok") {
				return fmt.Errorf("%v: %s (%v)", c, strings.TrimSpace(string(out)), err)
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// defineLines puts each of "A=1 B=2" into format.
func defineLines(defines, format string) string {
	var lines strings.Builder
	for _, define := range strings.Fields(defines) {
		name, value, _ := strings.Cut(define, "=")
		fmt.Fprintf(&lines, format, name, value)
	}
	return lines.String()
}
