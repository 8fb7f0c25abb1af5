package benchmarks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/report"
)

// kernelMetrics are the units of rows that a profiled pass adds.
var kernelMetrics = []metric{
	{"us", "lower", "one call of the operation: the time that its kernels add to the step"},
	{"step-us", "lower", "the operation's calls of one step"},
	{"calls", "lower", "of the operation in one step"},
	{"MB", "lower", "device memory that one call must move, as planned"},
	{"GFLOP", "lower", "arithmetic of one call, as planned"},
	{"GB/s", "higher", "device memory that the operation must move, over its time"},
	{"TFLOP/s", "higher", "arithmetic that the operation must do, over its time"},
	{"pct-of-ceiling", "higher", "of the read bandwidth or of the matrix units' arithmetic, whichever is nearer, as measured on this card when the engine was opened"},
	{"ceiling-GB/s", "higher", "read bandwidth, measured on this card when the engine was opened"},
	{"ceiling-bf16-TFLOP/s", "higher", "the matrix units' arithmetic in bfloat16, likewise"},
	{"ceiling-fp8-TFLOP/s", "higher", "the matrix units' arithmetic in fp8, likewise"},
	{"kernels-us", "lower", "one step from its first kernel's start to its last one's end"},
	{"gpu-idle-pct", "lower", "of the time from the first launch to the last token: no kernel ran"},
	{"host-idle-pct", "lower", "of the same time: no kernel ran, and the host was not waiting for one"},
}

// reportKernels prints what captures of the same pass came to, one for each repetition: a table of each on stderr, and under row a row for
// each operation, whose samples are the repetitions. On a CPU its operations stand for kernels.
func reportKernels(b *testing.B, e *engine.Engine, row string, captures []*profiling.Capture) {
	info := e.Info()
	samples := map[string][][]figure{} // of each operation's row, in the order of the repetitions
	var order []string
	add := func(name string, figures []figure) {
		if samples[name] == nil {
			order = append(order, name)
		}
		samples[name] = append(samples[name], figures)
	}
	for _, c := range captures {
		kernels := c.Kernels()
		if len(kernels) == 0 {
			return
		}
		r := report.New(kernels, report.Ceilings{BytesPerSecond: info.ReadBandwidth, BF16: info.BF16FLOPs, FP8: info.FP8FLOPs})
		var text strings.Builder
		if err := r.Text(&text); err != nil {
			b.Fatal(err)
		}
		page := strings.TrimSuffix(c.Paths()[0], ".trace.json.gz") + ".kernels.md"
		if err := writeMarkdown(page, row, r); err != nil {
			b.Fatal(err)
		}
		whole := []figure{{"kernels-us", r.Span.Seconds() * 1e6 / float64(r.Steps)}}
		if info.Name == "cuda" {
			idle := report.NewIdle(c.Steps(), kernels)
			whole = append(whole, figure{"gpu-idle-pct", 100 * idle.Share()}, figure{"host-idle-pct", 100 * idle.HostShare()})
			fmt.Fprintf(&text, "GPU idle %.1f %% of the time, the host's part %.1f %%", 100*idle.Share(), 100*idle.HostShare())
		}
		for _, c := range []struct {
			unit  string
			value *float64
			scale float64
		}{{"ceiling-GB/s", info.ReadBandwidth, 1e-9}, {"ceiling-bf16-TFLOP/s", info.BF16FLOPs, 1e-12}, {"ceiling-fp8-TFLOP/s", info.FP8FLOPs, 1e-12}} {
			if c.value != nil {
				whole = append(whole, figure{c.unit, *c.value * c.scale})
			}
		}
		term.note("%s\n%s", row, strings.TrimSpace(text.String()))
		add("all", whole)
		for _, op := range r.Rows {
			add(rowSafe(op.Name), opFigures(r, op))
		}
	}
	for _, name := range order {
		repetition := 0
		leaf(b, row+"/kernel="+name, func(b *testing.B) {
			for b.Loop() {
			}
			if repetition == len(samples[name]) {
				b.Skipf("%s did not run in every repetition", name)
			}
			table.report(b, samples[name][repetition])
			repetition++
		})
	}
}

// opFigures are an operation's row.
func opFigures(r *report.Report, op report.Row) []figure {
	us, steps := op.Time.Seconds()*1e6, float64(r.Steps)
	ceiling, _ := op.OfCeiling(r.Ceilings)
	figures := []figure{{"us", us / float64(op.Calls)}, {"step-us", us / steps}, {"calls", float64(op.Calls) / steps}}
	for _, f := range []struct {
		unit  string
		value *float64
		scale float64
	}{{"MB", op.MB(), 1}, {"GFLOP", op.GFLOP(), 1}, {"GB/s", op.GBs(), 1}, {"TFLOP/s", op.TFLOPs(), 1}, {"pct-of-ceiling", ceiling, 100}} {
		if f.value != nil {
			figures = append(figures, figure{f.unit, *f.value * f.scale})
		}
	}
	return figures
}

// writeMarkdown keeps the table beside the trace.
func writeMarkdown(path, row string, r *report.Report) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "### %s\n\n", row)
	return errors.Join(err, r.Markdown(f), f.Close())
}

// rowSafe makes a library's kernel name a part of a row's name.
func rowSafe(name string) string {
	return strings.Map(func(r rune) rune {
		if r > ' ' && r != '/' && r != '=' && r < 0x7f {
			return r
		}
		return '_'
	}, name)
}

func TestKernelRowNames(t *testing.T) {
	assert.Equal(t, "void_gemm_x_y_<T_4>", rowSafe("void gemm/x=y <T\n4>"))
	for _, m := range append(kernelMetrics, cardMetrics...) {
		assert.NotEmpty(t, m.definition, m.unit)
		assert.NotNil(t, findMetric(m.unit))
		assert.NotContains(t, m.unit, " ")
	}
}

func TestMarkdownBesideTheTrace(t *testing.T) {
	bandwidth := 3e12
	r := report.New([]profiling.Kernel{{Name: "gemv", Op: "gemv_qkv", Start: time.Now(), Length: time.Millisecond, Bytes: 2e9}}, report.Ceilings{BytesPerSecond: &bandwidth})
	path := filepath.Join(t.TempDir(), "x.kernels.md")
	require.NoError(t, writeMarkdown(path, "model=m/phase=decode", r))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Contains(t, string(text), "| gemv_qkv | gemv | 1 | 1000.00 | 1.0000 | 100.0% | 2000 |  | 2000 |")
	assert.Contains(t, string(text), "ceiling 3000 GB/s")
	assert.Error(t, writeMarkdown(filepath.Join(path, "no"), "", r))
}

func TestARepetitionIsASampleOfEachKernel(t *testing.T) {
	out, errs, code := benchmark(t, "OneBatch", "-test.count=3", "--device=cpu", "--batch-size=1", "--input-len=16", "--output-len=12", "--profile", "--profile-steps=4", "--profiler-dir="+t.TempDir())
	require.Zero(t, code, errs)
	samples := map[string][]float64{}
	for _, row := range read(t, out) {
		name := row.Name.String()
		assert.NotContains(t, name, "#", "a name of its own is no sample")
		if strings.Contains(name, "/kernel=") {
			us, ok := row.Value("step-us")
			if !ok {
				us, ok = row.Value("kernels-us")
			}
			require.True(t, ok, name)
			samples[name] = append(samples[name], us)
		}
	}
	require.Len(t, samples, 20, "ten rows of prefill, ten of decode")
	for name, us := range samples {
		require.Len(t, us, 3, name)
		assert.False(t, us[0] == us[1] && us[1] == us[2], "%s: %v is one sample thrice", name, us)
	}
}
