package benchmarks

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/tokamak-engine/tokamak/engine"
)

const serverPackage = "github.com/tokamak-engine/tokamak/engine/cmd/launch_server"

// How long the server may take to end after SIGTERM before it is killed.
const serverStopTime = 20 * time.Second

// server is our own server, in a process of its own, so that it and the client share no scheduler and no garbage collector.
type server struct {
	url     string
	command *exec.Cmd
	dir     string // of the binary
	log     *os.File
	ended   chan struct{} // closed when the process has ended
	err     error         // how it ended
	mu      sync.Mutex
	keepLog bool
}

// startServer builds and starts the server on a free loopback port, and waits until it listens.
func startServer(ctx context.Context) (_ *server, err error) {
	o := set.engine
	if err := model.pick(&o); err != nil {
		return nil, err
	}
	s := &server{ended: make(chan struct{})}
	if s.dir, err = os.MkdirTemp("", "tokamak-server-"); err != nil {
		return nil, err
	}
	if s.log, err = os.CreateTemp("", "tokamak-server-*.log"); err != nil {
		return nil, err
	}
	binary := set.serving.serverBinary
	if binary == "" {
		binary = filepath.Join(s.dir, "launch_server")
		if err := buildServer(ctx, binary); err != nil {
			return nil, err
		}
	}
	bar := term.start("start the server", 1, "")
	defer bar.done()
	s.command = exec.Command(binary, serverArgs(&o)...)
	output, err := s.command.StderrPipe()
	if err != nil {
		return nil, err
	}
	s.command.Stdout = s.log
	if set.profile.on {
		s.command.Env = append(os.Environ(), "TOKAMAK_PROFILER_DIR="+set.profile.folder())
	}
	endWithParent(s.command)
	listening := make(chan string, 1)
	started := make(chan error, 1)
	go func() {
		// The system ends the child with the thread that made it: keep the thread until the child has ended.
		runtime.LockOSThread()
		if err := s.command.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		s.follow(output, listening)
		s.err = s.command.Wait()
		close(s.ended)
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start the server: %w", err)
	}
	select {
	case s.url = <-listening:
		return s, nil
	case <-s.ended:
		return nil, s.explain(fmt.Errorf("the server ended before it listened (%v): %s", s.err, lastLine(s.log.Name())))
	case <-time.After(set.serving.readyTimeout):
		return nil, s.explain(errors.Join(fmt.Errorf("the server does not listen after %v", set.serving.readyTimeout), s.stop()))
	}
}

// follow copies the server's words to the log and finds the address it listens on.
func (s *server) follow(output io.Reader, listening chan<- string) {
	lines := bufio.NewReader(output)
	for {
		line, err := lines.ReadString('\n')
		_, _ = s.log.WriteString(line)
		if _, url, ok := strings.Cut(strings.TrimSpace(line), "listening on http"); ok {
			select {
			case listening <- "http" + url:
			default:
			}
		}
		if err != nil {
			return
		}
	}
}

// buildServer compiles the server with the tags that this test binary was built with.
func buildServer(ctx context.Context, binary string) error {
	args := []string{"build", "-o", binary}
	env := os.Environ()
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "-tags":
				args = append(args, "-tags", s.Value)
			case "CGO_ENABLED", "CGO_LDFLAGS", "CGO_CFLAGS":
				env = append(env, s.Key+"="+s.Value)
			}
		}
	}
	cmd := exec.CommandContext(ctx, "go", append(args, serverPackage)...)
	cmd.Env = env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the server: %w: %s", err, strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

// serverArgs hands the engine's options on, and makes room for the load.
func serverArgs(o *engine.Options) []string {
	args := []string{"--host=127.0.0.1", "--port=0", "--model-path=" + o.ModelPath, "--load-format=" + o.LoadFormat}
	if o.SkipTokenizerInit {
		args = append(args, "--skip-tokenizer-init")
	}
	for _, row := range o.Table() {
		switch row.Name {
		case "model-path", "load-format", "skip-tokenizer-init":
			continue
		}
		if set.given[row.Name] {
			args = append(args, "--"+row.Name+"="+defaultText(row.Value))
		}
	}
	if !set.given["max-queued-requests"] {
		args = append(args, fmt.Sprintf("--max-queued-requests=%d", max(o.MaxQueuedRequests, set.numPrompts)))
	}
	const spareConnections = 64
	args = append(args, fmt.Sprintf("--max-connections=%d", max(4096, set.numPrompts+spareConnections)))
	return append(args, strings.Fields(set.serving.serverExtraArgs)...)
}

// stop ends the server: SIGTERM, and SIGKILL if that does not help in time. It may be called twice.
func (s *server) stop() error {
	select {
	case <-s.ended:
	default:
		_ = s.command.Process.Signal(syscall.SIGTERM)
		select {
		case <-s.ended:
		case <-time.After(serverStopTime):
			_ = s.command.Process.Kill()
			<-s.ended
			s.err = fmt.Errorf("killed: it did not end within %v of SIGTERM", serverStopTime)
		}
	}
	_ = os.RemoveAll(s.dir)
	s.log.Close()
	if s.err != nil {
		return s.explain(fmt.Errorf("the server ended badly: %w", s.err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.keepLog {
		_ = os.Remove(s.log.Name())
	}
	return nil
}

// explain names the server's log.
func (s *server) explain(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keepLog = true
	return fmt.Errorf("%w (server's log: %s)", err, s.log.Name())
}

func lastLine(path string) string {
	data, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}
