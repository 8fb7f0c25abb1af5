package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/engine/server"
	"github.com/tokamak-engine/tokamak/profiling"
	"github.com/tokamak-engine/tokamak/profiling/sources"
)

// Exit codes; main's comment and --help tell them.
const (
	exitOK        = 0
	exitStart     = 1
	exitUsage     = 2
	exitBackend   = 3
	exitCancelled = 4
	exitSignal    = 128 // plus the signal's number
)

// run is the command without its process.
func run(args []string, stdout, stderr io.Writer) int {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	f, err := parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		help(stdout, f.table)
		return exitOK
	case err != nil:
		fmt.Fprintf(stderr, "launch_server: %v\nrun launch_server --help for the list of flags\n", err)
		return exitUsage
	case f.version:
		fmt.Fprintln(stdout, "tokamak", server.Version())
		return exitOK
	}
	log := newLog(f.server, stderr)
	ln, err := net.Listen("tcp", f.server.Address())
	if err != nil {
		log.Error("cannot listen", "error", err)
		return exitStart
	}
	if err := sources.Setup(); err != nil {
		ln.Close()
		fmt.Fprintf(stderr, "launch_server: %v\n", err)
		return exitUsage
	}
	stopHostProfile, err := profiling.HostProfile(os.Getenv("TOKAMAK_CPUPROFILE"), os.Getenv("TOKAMAK_GO_TRACE"))
	if err != nil {
		ln.Close()
		fmt.Fprintf(stderr, "launch_server: profile of Go: %v\n", err)
		return exitStart
	}
	defer func() {
		if err := stopHostProfile(); err != nil {
			log.Error("profile of Go", "error", err)
		}
	}()
	profiler := &profiler{log: log}
	srv, err := server.New(f.server, profiler, log)
	if err != nil {
		ln.Close()
		fmt.Fprintf(stderr, "launch_server: %v\n", err)
		return exitUsage
	}
	l := &launch{flags: f, log: log, server: srv, profiler: profiler, signals: signals, stderr: stderr, url: url(f.server.Host, ln)}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	code := l.run(served)
	return code
}

// launch is a server on its way from loading to its end.
type launch struct {
	flags    *flags
	log      *slog.Logger
	server   *server.Server
	profiler *profiler
	signals  <-chan os.Signal
	stderr   io.Writer
	url      string
}

// run loads the model, serves until a signal or a failure, and stops.
func (l *launch) run(served <-chan error) int {
	if host := net.ParseIP(l.flags.server.Host); l.flags.server.APIKey == "" && (host == nil || !host.IsLoopback()) && l.flags.server.Host != "localhost" {
		l.log.Warn("open to the network without a key: anyone who can reach it may use it; set TOKAMAK_API_KEY", "host", l.flags.server.Host)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	opened := make(chan opening, 1)
	go func() { opened <- l.open(ctx) }()

	var o opening
	select {
	case o = <-opened:
	case s := <-l.signals: // nothing has to be drained, and what is loaded goes with the process
		return exitSignal + number(s)
	case err := <-served:
		l.log.Error("cannot serve", "error", err)
		return exitStart
	}
	if o.err != nil {
		l.stop(0)
		fmt.Fprintf(l.stderr, "launch_server: %v\n", o.err)
		var option *engine.OptionError
		if errors.As(o.err, &option) {
			return exitUsage
		}
		return exitStart
	}
	l.profiler.onGPU.Store(o.engine.Info().Name == "cuda")
	l.server.Start(o.engine)
	fmt.Fprintf(l.stderr, "listening on %s\nThe server is fired up and ready to roll!\n", l.url)

	select {
	case s := <-l.signals:
		l.log.Info("stopping: requests may finish, a second signal ends them at once", "signal", s.String(), "within", l.flags.server.ShutdownTimeout)
		return l.drain(o.engine)
	case <-l.server.Failed():
		l.stop(0)
		return exitBackend
	case err := <-served:
		l.log.Error("cannot serve any more", "error", err)
		o.engine.Close()
		return exitStart
	}
}

// drain stops the server and the engine; a second signal ends it at once.
func (l *launch) drain(e *engine.Engine) int {
	done := make(chan bool, 1)
	go func() {
		drained := l.stop(l.flags.server.ShutdownTimeout)
		if err := e.Close(); err != nil {
			l.log.Error("closing the engine", "error", err)
		}
		done <- drained
	}()
	select {
	case drained := <-done:
		l.log.Info("stopped", "all_requests_finished", drained)
		if !drained {
			return exitCancelled
		}
		return exitOK
	case s := <-l.signals:
		l.log.Warn("second signal: exiting at once", "signal", s.String())
		return exitSignal + number(s)
	}
}

func number(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return int(n)
	}
	return 0
}

// stop shuts the server down and tells whether all requests finished within the time.
func (l *launch) stop(within time.Duration) bool {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	return l.server.Shutdown(ctx)
}

type opening struct {
	engine *engine.Engine
	err    error
}

// open loads the model and, unless told not to, generates a few tokens so that the first client does not pay for first times.
func (l *launch) open(ctx context.Context) opening {
	start := time.Now()
	progress := newProgress(l.stderr, l.log)
	e, err := engine.Open(ctx, l.flags.engine.ModelPath, engine.WithOptions(l.flags.engine), engine.WithProgress(progress.report))
	progress.end()
	if err != nil {
		return opening{err: err}
	}
	info := e.Info()
	l.log.Info("model loaded", "backend", info.Name, "device", info.Device, "dtype", info.DType, "took", time.Since(start).Round(time.Millisecond),
		"max_total_num_tokens", info.NumPages*info.PageSize, "max_running_requests", info.MaxRows, "context_len", info.MaxContext)
	if !l.flags.server.SkipWarmup {
		if err := warmUp(ctx, e); err != nil {
			e.Close()
			return opening{err: fmt.Errorf("warm-up request: %w", err)}
		}
	}
	return opening{engine: e}
}

func warmUp(ctx context.Context, e *engine.Engine) error {
	const promptTokens, newTokens = 8, 8
	prompt := make([]int32, min(promptTokens, e.Info().MaxContext/2))
	for i := range prompt {
		prompt[i] = int32(i % e.Info().VocabSize)
	}
	s := engine.DefaultSampling(newTokens)
	s.IgnoreEOS = true
	if _, err := e.Generate(ctx, engine.Request{InputIDs: prompt, Sampling: s, CacheSalt: "warm-up"}); err != nil {
		return err
	}
	return e.FlushCache()
}

// url is where clients reach ln: with the host as it was asked for, since a wildcard address prints in many ways.
func url(host string, ln net.Listener) string {
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		return ln.Addr().String()
	}
	return "http://" + net.JoinHostPort(host, port)
}

func newLog(o server.Options, w io.Writer) *slog.Logger {
	level := map[string]slog.Level{"debug": slog.LevelDebug, "warn": slog.LevelWarn, "warning": slog.LevelWarn, "error": slog.LevelError}[o.LogLevel]
	handler := &slog.HandlerOptions{Level: level}
	if o.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, handler))
	}
	return slog.New(slog.NewTextHandler(w, handler))
}
