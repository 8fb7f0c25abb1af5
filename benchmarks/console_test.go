package benchmarks

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	xterm "golang.org/x/term"
)

// console writes what is meant for a person. `go test` sends the test binary's stderr where its stdout goes, so every line
// begins with "#": benchstat passes over such lines, where a "key: value" would become configuration.
type console struct {
	mu      sync.Mutex
	w       io.Writer
	tty     bool
	showing *mpb.Progress // the bar's, nil if none is shown
	// rows tells that benchmark rows go to a terminal, too; halfRow that a row's name stands there and waits for its figures.
	rows, halfRow bool
}

func newConsole(f *os.File) *console {
	return &console{w: f, tty: xterm.IsTerminal(int(f.Fd())), rows: xterm.IsTerminal(int(os.Stdout.Fd()))}
}

// note writes lines, above the bar if one is shown.
func (c *console) note(format string, args ...any) {
	text := strings.TrimRight(fmt.Sprintf(format, args...), "\n")
	var lines strings.Builder
	for _, line := range strings.Split(text, "\n") {
		lines.WriteString(strings.TrimRight("# "+line, " ") + "\n")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.w
	if c.showing != nil {
		w = c.showing
	}
	_, _ = io.WriteString(w, lines.String())
}

// progress is a bar, shown only on a terminal.
type progress struct {
	console *console
	all     *mpb.Progress
	bar     *mpb.Bar

	mu    sync.Mutex
	label string
	unit  string
	scale float64 // steps of the bar for one unit
}

// start shows a bar of total steps; one at a time, a second stays hidden.
func (c *console) start(label string, total int, unit string) *progress {
	p := &progress{console: c, label: label, unit: unit, scale: 1}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.tty || c.showing != nil {
		return p
	}
	if c.halfRow && c.rows {
		_, _ = io.WriteString(c.w, "\n") // the bar's line is wiped, and the name must not be on it
		c.halfRow = false
	}
	p.all = mpb.New(mpb.WithOutput(c.w), mpb.WithWidth(40))
	text := func(f func() string) decor.Decorator { return decor.Any(func(decor.Statistics) string { return f() }) }
	p.bar = p.all.AddBar(int64(total), mpb.BarRemoveOnComplete(),
		mpb.PrependDecorators(text(func() string { p.mu.Lock(); defer p.mu.Unlock(); return "# " + p.label + " " })),
		mpb.AppendDecorators(decor.Any(p.counts), decor.OnComplete(decor.AverageETA(decor.ET_STYLE_GO), "")))
	c.showing = p.all
	return p
}

func (p *progress) counts(s decor.Statistics) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf(" %.4g/%.4g %s ", float64(s.Current)/p.scale, float64(s.Total)/p.scale, p.unit)
}

// add counts n more steps.
func (p *progress) add(n int) {
	if p.bar != nil {
		p.bar.IncrBy(n)
	}
}

// phase shows done of total in unit, as the engine tells of its start.
func (p *progress) phase(label string, done, total float64, unit string) {
	if p.bar == nil {
		return
	}
	const steps = 1000
	p.mu.Lock()
	p.label, p.unit = label, unit
	p.scale = 1
	if total > 0 {
		p.scale = steps / total
	}
	p.mu.Unlock()
	// Never quite complete: a complete bar is gone, and the next phase has another total.
	p.bar.SetTotal(steps, false)
	p.bar.SetCurrent(int64(min(done*p.scale, steps-1)))
}

// done takes the bar away.
func (p *progress) done() {
	if p.bar == nil {
		return
	}
	p.bar.Abort(true)
	p.all.Wait()
	p.console.mu.Lock()
	p.console.showing = nil
	p.console.mu.Unlock()
}
