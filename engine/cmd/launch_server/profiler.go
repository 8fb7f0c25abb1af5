package main

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tokamak-engine/tokamak/engine/server"
	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/sources"
)

// profiler runs the captures that clients ask for, below the directory that the server's own environment names.
type profiler struct {
	log   *slog.Logger
	onGPU atomic.Bool // the engine runs on one

	mu      sync.Mutex
	capture *profiling.Capture
}

// StartProfile implements server.Profiler.
func (p *profiler) StartProfile(_ context.Context, r server.ProfileRequest) (string, error) {
	o := profiling.Options{Dir: sources.Dir(), Name: r.Name, StartStep: r.StartStep, NumSteps: r.NumSteps, Stage: strings.ToLower(r.Stage), Stacks: r.WithStack}
	switch {
	case r.ByStage || len(r.Stages) > 1:
		o.Stage = "both"
	case len(r.Stages) == 1:
		o.Stage = strings.ToLower(r.Stages[0])
	}
	if r.When != "" {
		text, ok := strings.CutPrefix(strings.ReplaceAll(r.When, " ", ""), "batch>=")
		n, err := strconv.Atoi(text)
		if !ok || err != nil || n < 0 {
			return "", fmt.Errorf("when %q: want a condition such as \"batch>=8\"", r.When)
		}
		o.MinBatch = n
	}
	var err error
	if o.Sources, err = sources.For(r.Activities, p.onGPU.Load()); err != nil {
		return "", err
	}
	c, err := profiling.Start(o)
	if err != nil {
		return "", err
	}
	p.log.Info("profile begun", "output", strings.Join(c.Paths(), ", "), "steps", r.NumSteps, "stage", o.Stage)
	p.mu.Lock()
	p.capture = c
	p.mu.Unlock()
	go func() {
		files, err := c.Result()
		if err != nil {
			p.log.Warn("profile", "error", err)
		}
		if len(files) > 0 {
			p.log.Info("profile written", "files", strings.Join(files, ", "))
		}
	}()
	return strings.Join(c.Paths(), ", "), nil
}

// StopProfile implements server.Profiler. A capture that has ended by itself gives its files once.
func (p *profiler) StopProfile(context.Context) ([]string, error) {
	p.mu.Lock()
	c := p.capture
	p.capture = nil
	p.mu.Unlock()
	if c == nil {
		return nil, profiling.ErrNotRunning
	}
	return c.Stop()
}
