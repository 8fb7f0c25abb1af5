//go:build cuda

package nvtx_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/trace"
	"github.com/tokamak-engine/tokamak/profiling/nvtx"
)

// underTool is set in the process that marks while a tool listens.
const underTool = "NVTX_TEST_UNDER_TOOL"

func TestMain(m *testing.M) {
	if os.Getenv(underTool) != "" {
		markForTool()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func markForTool() {
	nvtx.Annotate("description", nvtx.Color("blue"), nvtx.Int(-3)).End()
	nvtx.Mark("moment", nvtx.Float(1.5), nvtx.RGB(0x00FF00), nvtx.Category("mine"), nvtx.In(nvtx.NewDomain("theirs")))
	trace.SetSink(nvtx.NewSink())
	trace.Begin("schedule", trace.Scheduler).End()
	trace.BeginArg("launch", trace.Backend, 7).End()
	trace.SpanBegin("running", trace.Request, 9)
	trace.SpanEnd("running", trace.Request, 9)
	trace.StepDone(trace.Step{ID: 7, Phase: trace.Prefill, Rows: 2})
	trace.NextNode(3, "gemv_qkv")
	trace.NextNode(3, "attn_decode")
	trace.NextNode(-1, "publish")
	trace.NodesDone()
}

// TestAToolSeesTheRanges injects a tool as Nsight Systems does and reads what it was told.
func TestAToolSeesTheRanges(t *testing.T) {
	cc := os.Getenv("CC")
	if cc == "" {
		cc = "cc"
	}
	if _, err := exec.LookPath(cc); err != nil {
		t.Skipf("no C compiler to build the tool with: %v", err)
	}
	dir := t.TempDir()
	lib, record := filepath.Join(dir, "tool.so"), filepath.Join(dir, "record")
	args := append(strings.Fields(os.Getenv("CGO_CFLAGS")), "-shared", "-fPIC", "-o", lib, "testdata/tool.c")
	if out, err := exec.Command(cc, args...).CombinedOutput(); err != nil {
		t.Fatalf("build the tool: %v\n%s", err, out)
	}
	for _, on := range []string{"1", "0"} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), underTool+"=1", "TOKAMAK_NVTX="+on, "NVTX_INJECTION64_PATH="+lib, "NVTX_TOOL_RECORD="+record)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		text, err := os.ReadFile(record)
		if on == "0" { // the sink is the only one that marks then
			require.NoError(t, err)
			assert.NotContains(t, string(text), "description")
			assert.NotContains(t, string(text), "layer 3")
			continue
		}
		require.NoError(t, err)
		for _, want := range []string{"domain tokamak\n", "domain theirs\n", "category mine\n", "start description color=ff1f77b4 int=-3\nend\n", "mark moment color=ff00ff00 double=1.5\n",
			"start schedule", "start launch color=ff2ca02c int=7\nend\n", "start running color=ff1f77b4 int=9\nend\n", "mark prefill step color=00000000 int=2\n",
			"start layer 3 color=00000000 int=3\ncategory op\nstart gemv_qkv color=00000000 int=3\nend\nstart attn_decode color=00000000 int=3\nend\nend\n" +
				"start outside of the layers color=00000000 int=-1\nstart publish color=00000000 int=-1\nend\nend\n"} {
			assert.Contains(t, string(text), want)
		}
		require.NoError(t, os.Remove(record))
	}
}
