package check

import (
	"bytes"
	"debug/elf"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestCPUImageRuns does what the cpu image is, without a container engine: the static program alone in a root that nobody can write,
// as user 65532. It loads a model, answers, and ends with 0.
func TestCPUImageRuns(t *testing.T) {
	root := t.TempDir()
	program := filepath.Join(root, "launch_server")
	build := exec.Command("go", "build", "-C", "../..", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", program, "./engine/cmd/launch_server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	f, err := elf.Open(program)
	require.NoError(t, err)
	for _, p := range f.Progs {
		assert.NotEqual(t, elf.PT_INTERP, p.Type, "the program needs a dynamic linker: scratch has none")
	}
	require.NoError(t, f.Close())

	config, err := os.ReadFile("../../fixtures/configs/tiny/config.json")
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(root, "models", "tiny"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(root, "models", "tiny", "config.json"), config, 0o644))
	for dir := root; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		require.NoError(t, os.Chmod(dir, 0o755))
	}
	if err := syscall.Mount(root, root, "", syscall.MS_BIND, ""); err != nil {
		t.Skipf("mounting a root needs privileges: %v", err)
	}
	defer func() { assert.NoError(t, syscall.Unmount(root, syscall.MNT_DETACH)) }()
	require.NoError(t, syscall.Mount("", root, "", syscall.MS_REMOUNT|syscall.MS_BIND|syscall.MS_RDONLY, ""))

	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	url := fmt.Sprintf("http://%s", ln.Addr())
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	require.NoError(t, ln.Close())
	var stderr bytes.Buffer
	cmd := &exec.Cmd{
		Path: "/launch_server", Dir: "/", Stderr: &stderr,
		Args: []string{"/launch_server", "--model-path", "/models/tiny", "--load-format", "dummy", "--skip-tokenizer-init"},
		Env:  []string{"TOKAMAK_HOST=127.0.0.1", "TOKAMAK_PORT=" + port, "TOKAMAK_DEVICE=cpu"},
		SysProcAttr: &syscall.SysProcAttr{
			Chroot: root, Credential: &syscall.Credential{Uid: 65532, Gid: 65532}, Pdeathsig: syscall.SIGKILL,
		},
	}
	require.NoError(t, cmd.Start())
	defer cmd.Process.Kill()
	require.Eventually(t, func() bool {
		resp, err := http.Get(url + "/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	}, 30*time.Second, 20*time.Millisecond, "not ready")
	resp, err := http.Post(url+"/generate", "application/json", strings.NewReader(`{"input_ids":[1,2],"sampling_params":{"max_new_tokens":4}}`))
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	require.NoError(t, cmd.Wait(), "%s", &stderr)
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	assert.Len(t, entries, 2, "the program and the model, nothing else")
}
