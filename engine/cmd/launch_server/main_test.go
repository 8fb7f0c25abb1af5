package main

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
)

// The test binary is the command itself when this variable is set: signals and exit codes need a process of their own.
const asCommand = "LAUNCH_SERVER_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	os.Exit(m.Run())
}

// process is a running launch_server.
type process struct {
	cmd *exec.Cmd
	url string

	mu     sync.Mutex
	stderr bytes.Buffer
	ready  chan string // the URL, once
	ended  chan error
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// launchTiny starts the command with a tiny model and waits until it is ready.
func launchTiny(t *testing.T, args ...string) *process {
	dir, err := configs.Dir("tiny")
	require.NoError(t, err)
	args = append([]string{"--model-path", dir, "--load-format", "dummy", "--skip-tokenizer-init", "--device", "cpu", "--port", "0",
		"--max-running", "8", "--max-total-tokens", "65536"}, args...)
	p := start(t, args...)
	select {
	case p.url = <-p.ready:
	case err := <-p.ended:
		t.Fatalf("ended before it was ready: %v\n%s", err, p.log())
	case <-time.After(30 * time.Second):
		t.Fatalf("not ready:\n%s", p.log())
	}
	return p
}

func start(t *testing.T, args ...string) *process {
	return startCommand(t, exec.Command(os.Args[0], args...))
}

// startCommand starts what runs the command.
func startCommand(t *testing.T, cmd *exec.Cmd) *process {
	p := &process{cmd: cmd, ready: make(chan string, 1), ended: make(chan error, 1)}
	if cmd.Env == nil {
		cmd.Env = append(os.Environ(), asCommand+"=1")
	}
	pipe, err := p.cmd.StderrPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	go func() {
		lines := bufio.NewScanner(pipe)
		for lines.Scan() {
			p.mu.Lock()
			p.stderr.WriteString(lines.Text() + "\n")
			p.mu.Unlock()
			if url, ok := strings.CutPrefix(lines.Text(), "listening on "); ok {
				p.ready <- url
			}
		}
		p.ended <- p.cmd.Wait()
	}()
	return p
}

// exit waits for the process and returns its exit code.
func (p *process) exit(t *testing.T) int {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(20 * time.Second):
		t.Fatalf("did not end:\n%s", p.log())
		return -1
	}
}

// generate asks for n tokens in a stream and returns a channel with the whole answer.
func (p *process) generate(t *testing.T, n string) (first <-chan struct{}, whole <-chan string) {
	begun, done := make(chan struct{}), make(chan string, 1)
	go func() {
		body := `{"input_ids":[1,2,3],"stream":true,"stream_mode":"delta","sampling_params":{"max_new_tokens":` + n + `,"ignore_eos":true}}`
		resp, err := http.Post(p.url+"/generate", "application/json", strings.NewReader(body))
		if !assert.NoError(t, err) {
			close(begun)
			done <- ""
			return
		}
		defer resp.Body.Close()
		close(begun)
		b, _ := io.ReadAll(resp.Body)
		done <- string(b)
	}()
	return begun, done
}

func TestServeAndStop(t *testing.T) {
	p := launchTiny(t)
	assert.Contains(t, p.log(), "The server is fired up and ready to roll!")
	assert.True(t, strings.HasPrefix(p.url, "http://127.0.0.1:"), p.url)
	first, whole := p.generate(t, "200")
	<-first
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	assert.Contains(t, <-whole, `"finish_reason":{"type":"length","length":200}`, "a running request may finish")
	assert.Equal(t, exitOK, p.exit(t), p.log())
	assert.Contains(t, p.log(), "all_requests_finished=true")
}

func TestDrainDeadlineCancels(t *testing.T) {
	p := launchTiny(t, "--shutdown-timeout", "100ms")
	first, whole := p.generate(t, "8000")
	<-first
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGINT))
	assert.Contains(t, <-whole, `"code":"shutting_down"`)
	assert.Equal(t, exitCancelled, p.exit(t), p.log())
}

func TestSecondSignalExitsAtOnce(t *testing.T) {
	p := launchTiny(t, "--shutdown-timeout", "60")
	first, whole := p.generate(t, "8000")
	<-first
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	for deadline := time.Now().Add(5 * time.Second); !strings.Contains(p.log(), "msg=\"stopping"); time.Sleep(5 * time.Millisecond) {
		require.True(t, time.Now().Before(deadline), p.log())
	}
	start := time.Now()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, exitSignal+int(syscall.SIGTERM), p.exit(t), p.log())
	assert.Less(t, time.Since(start), 3*time.Second)
	assert.NotContains(t, <-whole, `"finish_reason":{"type":"length"`)
}

func TestStartFailures(t *testing.T) {
	dir, err := configs.Dir("tiny")
	require.NoError(t, err)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	_, port, err := net.SplitHostPort(taken.Addr().String())
	require.NoError(t, err)
	broken := filepath.Join(t.TempDir(), "broken")
	require.NoError(t, os.Mkdir(broken, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(broken, "config.json"), []byte("{"), 0o644))

	tests := []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no model", nil, exitUsage, "give --model-path"},
		{"unknown flag", []string{"--model-path", dir, "--frobnicate"}, exitUsage, "there is no flag --frobnicate"},
		{"bad value", []string{"--model-path", dir, "--port", "many"}, exitUsage, "port"},
		{"port out of range", []string{"--model-path", dir, "--port", "70000"}, exitUsage, "0 to 65535"},
		{"bad choice", []string{"--model-path", dir, "--dtype", "int3"}, exitUsage, "float32"},
		{"bad duration", []string{"--model-path", dir, "--write-timeout", "soon"}, exitUsage, "write-timeout"},
		{"zero timeout", []string{"--model-path", dir, "--write-timeout", "0"}, exitUsage, "more than 0"},
		{"argument", []string{"--model-path", dir, "serve"}, exitUsage, "unexpected argument"},
		{"port in use", []string{"--model-path", dir, "--load-format", "dummy", "--port", port}, exitStart, "address already in use"},
		{"no such model", []string{"--model-path", filepath.Join(broken, "nowhere"), "--port", "0"}, exitUsage, "model-path"},
		{"broken model", []string{"--model-path", broken, "--port", "0"}, exitStart, "config.json"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			assert.Equal(t, tt.code, run(tt.args, &stdout, &stderr), stderr.String())
			assert.Contains(t, stderr.String(), tt.want)
			assert.Empty(t, stdout.String())
		})
	}
}

func TestHelp(t *testing.T) {
	t.Setenv("TOKAMAK_API_KEY", "hunter2")
	t.Setenv("TOKAMAK_PORT", "1234")
	var stdout, stderr bytes.Buffer
	assert.Equal(t, exitOK, run([]string{"--help"}, &stdout, &stderr))
	assert.Empty(t, stderr.String())
	text := stdout.String()
	assert.NotContains(t, text, "hunter2")
	assert.Contains(t, text, "(default 1234) [$TOKAMAK_PORT]", "what holds when no flag is given")
	e := engine.DefaultOptions()
	for _, o := range e.Table() {
		assert.Contains(t, text, "--"+o.Name)
	}
	assert.Contains(t, text, "Exit codes:")
}

func TestParse(t *testing.T) {
	f, err := parse([]string{"some/dir/model-7b", "--max-run", "4", "--served", "m", "--log-interval", "2.5"})
	require.NoError(t, err)
	assert.Equal(t, "some/dir/model-7b", f.engine.ModelPath)
	assert.Equal(t, 4, f.engine.MaxRunningRequests)
	assert.Equal(t, "m", f.server.ServedModelName)
	assert.Equal(t, 2500*time.Millisecond, f.server.LogInterval)
	f, err = parse([]string{"--model", "x/y.gguf"})
	require.NoError(t, err)
	assert.Equal(t, "y", f.server.ServedModelName)
	assert.Equal(t, "127.0.0.1:30000", f.server.Address())
}

// Signals while the model loads end the process without a drain.
func TestSignalWhileLoading(t *testing.T) {
	dir, err := configs.Dir("llama-3.2-1b")
	require.NoError(t, err)
	p := start(t, "--model-path", dir, "--load-format", "dummy", "--skip-tokenizer-init", "--device", "cpu", "--port", "0", "--context-length", "2048")
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	select {
	case <-ctx.Done():
	case <-p.ready:
		t.Skip("the model was loaded before a signal could be sent")
	}
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	assert.Equal(t, exitSignal+int(syscall.SIGTERM), p.exit(t), p.log())
}
