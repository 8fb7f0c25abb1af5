package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"golang.org/x/term"
)

// progress shows how loading goes: one line that is rewritten on a terminal, one log line a phase elsewhere.
type progress struct {
	terminal io.Writer // nil if there is none
	log      *slog.Logger
	phase    string
	shown    time.Time
}

func newProgress(w io.Writer, log *slog.Logger) *progress {
	p := &progress{log: log}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.terminal = w
	}
	return p
}

// report is called by one goroutine at a time.
func (p *progress) report(phase string, done, total float64, unit string) {
	if p.terminal == nil {
		if phase != p.phase {
			p.phase = phase
			p.log.Info("loading", "phase", phase, "total", fmt.Sprintf("%.4g %s", total, unit))
		}
		return
	}
	const refresh = 50 * time.Millisecond
	if phase == p.phase && done < total && time.Since(p.shown) < refresh {
		return
	}
	p.phase, p.shown = phase, time.Now()
	const eraseLine = "\r\x1b[K"
	fmt.Fprintf(p.terminal, "%s%s %.3g of %.3g %s", eraseLine, phase, done, total, unit)
}

// end closes the line.
func (p *progress) end() {
	if p.terminal != nil && p.phase != "" {
		fmt.Fprintln(p.terminal)
	}
}
