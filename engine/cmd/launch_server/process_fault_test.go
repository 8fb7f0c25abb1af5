package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/fixtures/checkout"
	"github.com/tokamak-engine/tokamak/fixtures/configs"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// freePort returns a port that nothing listens on just now.
func freePort(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	return strconv.Itoa(ln.Addr().(*net.TCPAddr).Port)
}

// load starts n streams of many tokens and returns where their answers go once they end.
func (p *process) load(t *testing.T, n int, tokens string) (answers []<-chan string) {
	for range n {
		first, whole := p.generate(t, tokens)
		<-first
		answers = append(answers, whole)
	}
	return answers
}

// TestTerminateUnderLoad stops a server with running and waiting streams: all are answered in full, and it ends with 0.
func TestTerminateUnderLoad(t *testing.T) {
	p := launchTiny(t, "--max-running-requests", "4", "--shutdown-timeout", "60")
	answers := p.load(t, 12, "100")
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	for _, whole := range answers {
		assert.Contains(t, <-whole, `"finish_reason":{"type":"length","length":100}`)
	}
	assert.Equal(t, exitOK, p.exit(t), p.log())
}

// TestKillUnderLoad kills a server with running streams: its clients see that their answers are not whole, and a new one takes the
// same port at once.
func TestKillUnderLoad(t *testing.T) {
	port := freePort(t)
	p := launchTiny(t, "--port", port)
	answers := p.load(t, 8, "8000")
	require.NoError(t, p.cmd.Process.Kill())
	for _, whole := range answers {
		body := <-whole
		assert.NotContains(t, body, "[DONE]")
		assert.NotContains(t, body, `"type":"length"`)
	}
	assert.Equal(t, -1, p.exit(t), "killed")
	again := launchTiny(t, "--port", port)
	for _, whole := range again.load(t, 2, "5") {
		assert.Contains(t, <-whole, "[DONE]")
	}
}

// damagedModel copies a tiny checkpoint, so that its weights can be cut short.
func damagedModel(t *testing.T) (dir string, damage func()) {
	from, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	dir = t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(from)))
	return dir, func() {
		files, err := filepath.Glob(filepath.Join(dir, "*.safetensors"))
		require.NoError(t, err)
		require.NotEmpty(t, files)
		for _, file := range files {
			require.NoError(t, os.Truncate(file, 0))
		}
	}
}

// TestBackendFailureEndsTheProcess cuts the weights short under their mapping while streams run: each client is told, and the process
// ends with its code for a failed backend, for a supervisor to start it again.
func TestBackendFailureEndsTheProcess(t *testing.T) {
	dir, damage := damagedModel(t)
	p := launchTiny(t, "--model-path", dir, "--load-format", "auto", "--log-format", "json")
	// The model's context ends a stream after some 250 tokens: ask until one is met by the fault.
	ends := make(chan string, 4)
	for range cap(ends) {
		go func() {
			for {
				resp, err := http.Post(p.url+"/generate", "application/json", strings.NewReader(
					`{"input_ids":[1,2,3],"stream":true,"sampling_params":{"max_new_tokens":200,"ignore_eos":true}}`))
				if err != nil {
					ends <- err.Error()
					return
				}
				b, err := io.ReadAll(resp.Body)
				resp.Body.Close()
				if err != nil || resp.StatusCode != 200 || bytes.Contains(b, []byte(`"error"`)) {
					ends <- fmt.Sprintf("%d %s %v", resp.StatusCode, b, err)
					return
				}
			}
		}()
	}
	time.Sleep(200 * time.Millisecond) // a while under load
	damage()
	told := 0
	for range cap(ends) {
		end := <-ends
		if strings.Contains(end, `"error":{"message":"`) {
			told++
		}
		assert.NotContains(t, end, dir)
	}
	assert.Positive(t, told, "nobody was told why")
	assert.Equal(t, exitBackend, p.exit(t), p.log())
	assert.Contains(t, p.log(), `"msg":"backend failed"`)
}

// TestNoDevice asks for a GPU where there is none, by this build or this machine: one line says what to do.
func TestNoDevice(t *testing.T) {
	if _, err := os.Stat("/dev/nvidiactl"); err == nil {
		t.Skip("this machine has a GPU")
	}
	dir, err := configs.Dir("tiny")
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0], "--model-path", dir, "--load-format", "dummy", "--device", "cuda", "--port", "0")
	cmd.Env = append(os.Environ(), asCommand+"=1", "LIBCUDA_PATH=/no/such/libcuda.so.1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Contains(t, []int{exitStart, exitUsage}, exit.ExitCode())
	lines := strings.Split(strings.TrimSpace(stderr.String()), "\n")
	last := lines[len(lines)-1]
	assert.Regexp(t, regexp.MustCompile(`build with -tags cuda|install the NVIDIA driver|no CUDA-capable device`), last)
}

// TestLogOnAFullDisk writes the log where nothing can be written: the server serves on, and stops as ever.
func TestLogOnAFullDisk(t *testing.T) {
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skipf("this system has no full device: %v", err)
	}
	defer full.Close()
	dir, err := configs.Dir("tiny")
	require.NoError(t, err)
	port := freePort(t)
	cmd := exec.Command(os.Args[0], "--model-path", dir, "--load-format", "dummy", "--skip-tokenizer-init", "--device", "cpu", "--port", port,
		"--log-requests", "--log-level", "debug")
	cmd.Env = append(os.Environ(), asCommand+"=1")
	cmd.Stderr, cmd.Stdout = full, full
	require.NoError(t, cmd.Start())
	defer cmd.Process.Kill()
	url := "http://127.0.0.1:" + port
	ready(t, url)
	resp, err := http.Post(url+"/generate", "application/json", strings.NewReader(`{"input_ids":[1],"sampling_params":{"max_new_tokens":3}}`))
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, 200, resp.StatusCode)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	assert.NoError(t, cmd.Wait())
}

// ready waits until the server at url says that it is.
func ready(t *testing.T, url string) {
	require.Eventually(t, func() bool {
		resp, err := http.Get(url + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == 200
	}, 30*time.Second, 10*time.Millisecond, "not ready")
}

// TestSupervisorStartsTheServerAgain runs the server under deploy/supervise.sh: after a kill and after a failed backend it is back;
// SIGTERM drains and ends both.
func TestSupervisorStartsTheServerAgain(t *testing.T) {
	root, err := checkout.Root()
	require.NoError(t, err)
	dir, damage := damagedModel(t)
	port := freePort(t)
	cmd := exec.Command("sh", filepath.Join(root, "deploy", "supervise.sh"), os.Args[0], "--model-path", dir, "--skip-tokenizer-init",
		"--device", "cpu", "--port", port)
	cmd.Env = append(os.Environ(), asCommand+"=1", "SUPERVISE_PAUSE=1")
	var stderr bytes.Buffer // read only once the supervisor has ended
	cmd.Stderr = &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() { _ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) })
	url := "http://127.0.0.1:" + port
	ready(t, url)

	require.NoError(t, syscall.Kill(serverBelow(t, cmd.Process.Pid), syscall.SIGKILL))
	require.Eventually(t, func() bool { _, err := http.Get(url + "/readyz"); return err != nil }, 10*time.Second, time.Millisecond, "still there")
	ready(t, url)

	from, err := tinymodel.Dir("llama")
	require.NoError(t, err)
	damage()
	status := make(chan int, 1)
	go func() {
		resp, err := http.Post(url+"/generate", "application/json", strings.NewReader(`{"input_ids":[1,2],"sampling_params":{"max_new_tokens":4}}`))
		if err != nil {
			status <- 0
			return
		}
		resp.Body.Close()
		status <- resp.StatusCode
	}()
	assert.NotEqual(t, 200, <-status)
	require.Eventually(t, func() bool { _, err := http.Get(url + "/readyz"); return err != nil }, 10*time.Second, time.Millisecond, "still there")
	files, err := filepath.Glob(filepath.Join(from, "*.safetensors"))
	require.NoError(t, err)
	for _, file := range files { // the cause is mended
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(file)), data, 0o600))
	}
	ready(t, url)

	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-ended:
		assert.NoError(t, err, stderr.String())
	case <-time.After(20 * time.Second):
		t.Fatal("the supervisor does not end")
	}
	assert.Contains(t, stderr.String(), "supervise: exit code 137, starting again in 1 s")
	assert.Contains(t, stderr.String(), "supervise: exit code 3, starting again in 2 s")
}

// serverBelow returns the process that the supervisor waits for.
func serverBelow(t *testing.T, supervisor int) int {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", supervisor, supervisor))
	if err != nil {
		t.Skipf("this system does not tell a process's children: %v", err)
	}
	require.Len(t, strings.Fields(string(children)), 1)
	pid, err := strconv.Atoi(strings.Fields(string(children))[0])
	require.NoError(t, err)
	return pid
}
