// Package report sums up the kernels of a capture: where the time went, how near each operation came to the card's ceilings, and how long
// the card had nothing to do.
package report

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/tokamak-engine/tokamak/profiling"
)

// Ceilings are what a card was measured to do at most; nil where nobody measured.
type Ceilings struct {
	BytesPerSecond *float64 // reading
	BF16, FP8      *float64 // FLOPs a second of the matrix units
}

// Row is an operation, or a kernel without one.
type Row struct {
	Name         string
	Kernels      []string // by name, in the order of their first call
	Calls        int
	Time         time.Duration // that its kernels add: what runs beside an earlier kernel is the earlier one's
	Share        float64       // of all rows' time
	Bytes, FLOPs int64
	FP8          bool // FLOPs are the matrix units' of fp8
}

// Report is a capture's kernels, summed up.
type Report struct {
	Steps   int
	Kernels int
	Rows    []Row // most time first; their times sum up to Busy
	// Busy is the time in which at least one kernel ran, Span from the first kernel's start to the last one's end, step by step.
	Busy, Span time.Duration
	// Overlap is the time in which kernels ran beside an earlier one: with dependent launches a kernel's start waits for the one before it.
	Overlap time.Duration
	// Gaps between kernels within steps: how many, and how long in all; LongestGap with the kernel after it.
	Gaps         int
	Idle         time.Duration
	LongestGap   time.Duration
	LongestAfter string
	Ceilings     Ceilings
	// Layers is the time that the kernels of each layer add, of all steps together.
	Layers []time.Duration
}

// GBs is the row's rate in GB/s, or nil if its bytes are not known.
func (r Row) GBs() *float64 {
	if r.Bytes == 0 || r.Time == 0 {
		return nil
	}
	v := float64(r.Bytes) / r.Time.Seconds() / 1e9
	return &v
}

// MB is what one call must move, or nil if that is not known.
func (r Row) MB() *float64 { return perCall(r.Bytes, r.Calls, 1e6) }

// GFLOP is the arithmetic of one call, or nil if that is not known.
func (r Row) GFLOP() *float64 { return perCall(r.FLOPs, r.Calls, 1e9) }

func perCall(total int64, calls int, unit float64) *float64 {
	if total == 0 || calls == 0 {
		return nil
	}
	v := float64(total) / float64(calls) / unit
	return &v
}

// kernel names the row's kernels in a table: a library's names are long.
func (r Row) kernel() string {
	const most = 24
	if len(r.Kernels) == 0 || (len(r.Kernels) == 1 && r.Kernels[0] == r.Name) {
		return ""
	}
	name := r.Kernels[0]
	if len(name) > most {
		name = name[:most] + "..."
	}
	if more := len(r.Kernels) - 1; more > 0 {
		name += fmt.Sprintf(" +%d", more)
	}
	return strings.ReplaceAll(name, "|", "_")
}

// TFLOPs is the row's rate in TFLOP/s, or nil if its operations are not known.
func (r Row) TFLOPs() *float64 {
	if r.FLOPs == 0 || r.Time == 0 {
		return nil
	}
	v := float64(r.FLOPs) / r.Time.Seconds() / 1e12
	return &v
}

// OfCeiling is the share of the ceiling that binds, and which one that is: "read" bandwidth, or arithmetic of "bf16" or "fp8", whichever the
// row is nearer to. It is nil where neither was measured.
func (r Row) OfCeiling(c Ceilings) (share *float64, which string) {
	consider := func(rate *float64, unit float64, ceiling *float64, name string) {
		if rate == nil || ceiling == nil || *ceiling == 0 {
			return
		}
		if v := *rate * unit / *ceiling; share == nil || v > *share {
			share, which = &v, name
		}
	}
	consider(r.GBs(), 1e9, c.BytesPerSecond, "read")
	if r.FP8 {
		consider(r.TFLOPs(), 1e12, c.FP8, "fp8")
	} else {
		consider(r.TFLOPs(), 1e12, c.BF16, "bf16")
	}
	return share, which
}

// New sums up kernels, which come in the order of their start.
func New(kernels []profiling.Kernel, c Ceilings) *Report {
	r := &Report{Kernels: len(kernels), Ceilings: c}
	rows := map[string]*Row{}
	ends := map[uint64]time.Time{} // by step: when its kernels so far have ended
	begins := map[uint64]time.Time{}
	added := profiling.Added(kernels)
	for i, k := range kernels {
		name := k.Op
		if name == "" {
			name = k.Name
		}
		row := rows[name]
		if row == nil {
			row = &Row{Name: name}
			rows[name] = row
		}
		if !slices.Contains(row.Kernels, k.Name) {
			row.Kernels = append(row.Kernels, k.Name)
		}
		row.Calls++
		row.Bytes += k.Bytes
		row.FLOPs += k.FLOPs
		row.FP8 = row.FP8 || k.FP8
		end, later := ends[k.Step]
		if !later {
			begins[k.Step], end = k.Start, k.Start
		}
		if gap := k.Start.Sub(end); gap > 0 {
			r.Gaps++
			r.Idle += gap
			if gap > r.LongestGap {
				r.LongestGap, r.LongestAfter = gap, k.Name
			}
			end = k.Start
		}
		adds := added[i]
		row.Time += adds
		if k.Layer >= 0 {
			r.Layers = append(r.Layers, make([]time.Duration, max(0, k.Layer+1-len(r.Layers)))...)
			r.Layers[k.Layer] += adds
		}
		r.Busy += adds
		r.Overlap += k.Length - adds
		ends[k.Step] = end.Add(adds)
	}
	r.Steps = len(ends)
	for step, begin := range begins {
		r.Span += ends[step].Sub(begin)
	}
	for _, row := range rows {
		row.Share = float64(row.Time) / float64(max(1, r.Busy))
		r.Rows = append(r.Rows, *row)
	}
	slices.SortFunc(r.Rows, func(a, b Row) int { return cmp.Or(cmp.Compare(b.Time, a.Time), cmp.Compare(a.Name, b.Name)) })
	return r
}

// header of the columns that Text and Markdown share.
var header = []string{"op", "kernel", "calls/step", "us/call", "ms/step", "share", "MB/call", "GFLOP/call", "GB/s", "TFLOP/s", "of ceiling"}

func (r *Report) cells(row Row) []string {
	steps := float64(max(1, r.Steps))
	show := func(v *float64, format string, scale float64) string {
		if v == nil {
			return ""
		}
		return fmt.Sprintf(format, *v*scale)
	}
	ceiling, which := row.OfCeiling(r.Ceilings)
	return []string{row.Name, row.kernel(), fmt.Sprintf("%.4g", float64(row.Calls)/steps), fmt.Sprintf("%.2f", row.Time.Seconds()*1e6/float64(row.Calls)),
		fmt.Sprintf("%.4f", row.Time.Seconds()*1e3/steps), fmt.Sprintf("%.1f%%", 100*row.Share),
		show(row.MB(), "%.4g", 1), show(row.GFLOP(), "%.4g", 1), show(row.GBs(), "%.0f", 1), show(row.TFLOPs(), "%.1f", 1), strings.TrimSpace(show(ceiling, "%.1f%% ", 100) + which)}
}

func (r *Report) foot() string {
	steps := float64(max(1, r.Steps))
	text := fmt.Sprintf("%d steps, %.4g kernels each: %.4f ms from first to last kernel, busy %.1f%%", r.Steps, float64(r.Kernels)/steps,
		r.Span.Seconds()*1e3/steps, 100*float64(r.Busy)/float64(max(1, r.Span)))
	if r.Gaps > 0 {
		text += fmt.Sprintf(", %.4g gaps of %.2f us, the longest %.2f us before %s", float64(r.Gaps)/steps, r.Idle.Seconds()*1e6/float64(r.Gaps),
			r.LongestGap.Seconds()*1e6, r.LongestAfter)
	}
	if r.Overlap > 0 {
		text += fmt.Sprintf(", %.1f us of overlap", r.Overlap.Seconds()*1e6/steps)
	}
	if len(r.Layers) > 0 {
		var sum time.Duration
		slowest := 0
		for l, t := range r.Layers {
			sum += t
			if t > r.Layers[slowest] {
				slowest = l
			}
		}
		text += fmt.Sprintf("; %d layers of %.2f us, the slowest %d with %.2f us", len(r.Layers), sum.Seconds()*1e6/steps/float64(len(r.Layers)), slowest,
			r.Layers[slowest].Seconds()*1e6/steps)
	}
	if c := r.Ceilings.BytesPerSecond; c != nil {
		text += fmt.Sprintf("; ceiling %.0f GB/s of reads, measured on this card", *c/1e9)
	}
	if c := r.Ceilings; c.BF16 != nil && c.FP8 != nil {
		text += fmt.Sprintf(", and of %.0f TFLOP/s of bf16 and %.0f of fp8", *c.BF16/1e12, *c.FP8/1e12)
	}
	return text
}

// Text writes the table for a terminal.
func (r *Report) Text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, strings.Join(header, "\t")+"\t")
	for _, row := range r.Rows {
		fmt.Fprintln(t, strings.Join(r.cells(row), "\t")+"\t")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, r.foot())
	return err
}

// Markdown writes the table for a page.
func (r *Report) Markdown(w io.Writer) error {
	fmt.Fprintf(w, "| %s |\n|--|%s\n", strings.Join(header, " | "), strings.Repeat("--:|", len(header)-1))
	for _, row := range r.Rows {
		fmt.Fprintf(w, "| %s |\n", strings.Join(r.cells(row), " | "))
	}
	_, err := fmt.Fprintf(w, "\n%s\n", r.foot())
	return err
}
