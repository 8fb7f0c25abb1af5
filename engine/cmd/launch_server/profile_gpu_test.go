//go:build cuda

package main

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/fixtures/configs"
	"github.com/tokamak-engine/tokamak/profiling/chrometrace"
)

// onGPU are the arguments of a small server on this machine's GPU.
func onGPU(t *testing.T) []string {
	if _, err := os.Stat("/dev/nvidiactl"); err != nil && os.Getenv("TOKAMAK_REQUIRE_GPU") == "" {
		t.Skipf("no NVIDIA GPU on this machine: %v", err)
	}
	dir, err := configs.Dir("smollm2-135m")
	require.NoError(t, err)
	return []string{"--model-path", dir, "--load-format", "dummy", "--skip-tokenizer-init", "--device", "cuda", "--port", "0", "--max-running", "8",
		"--max-total-tokens", "65536", "--max-prefill-tokens", "1024"}
}

// launched starts cmd, which runs the server somehow, and waits until it is ready.
func launched(t *testing.T, cmd *exec.Cmd) *process {
	p := startCommand(t, cmd)
	select {
	case p.url = <-p.ready:
	case err := <-p.ended:
		t.Fatalf("ended before it was ready: %v\n%s", err, p.log())
	case <-time.After(60 * time.Second):
		t.Fatalf("not ready:\n%s", p.log())
	}
	return p
}

// read gives the events of a trace.
func read(t *testing.T, path string) []chrometrace.Event {
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	events, err := chrometrace.Read(f)
	require.NoError(t, err)
	return events
}

func TestNoCUPTI(t *testing.T) {
	args := onGPU(t)
	t.Setenv("TOKAMAK_PROFILER_DIR", t.TempDir())
	t.Setenv("TOKAMAK_CUPTI", "/nonexistent/libcupti.so.13")
	c := client{t, launched(t, exec.Command(os.Args[0], args...)).url}
	code, text := c.post("/start_profile", `{"activities":["GPU"]}`)
	t.Log(text)
	assert.Equal(t, 409, code)
	assert.Contains(t, text, "GPU profiling needs libcupti.so.13")
	c.generate("10")
	var begun started
	c.ok("/start_profile", `{"activities":["CPU"],"num_steps":3}`, &begun)
	c.generate("10")
	c.ok("/stop_profile", "", nil)
	assert.FileExists(t, begun.Output)
}

// TestStampsOfAServer asks a live server for the time of its layers, noted by the kernels themselves and by nothing else.
func TestStampsOfAServer(t *testing.T) {
	args := onGPU(t)
	t.Setenv("TOKAMAK_PROFILER_DIR", t.TempDir())
	t.Setenv("TOKAMAK_STAMPS", "1")
	c := client{t, launched(t, exec.Command(os.Args[0], args...)).url}
	c.generate("10")
	var begun started
	c.ok("/start_profile", `{"activities":["CPU"],"stage":"decode","num_steps":16}`, &begun)
	c.generate("40")
	c.ok("/stop_profile", "", nil)
	layers, steps := map[string]float64{}, 0
	for _, e := range read(t, begun.Output) {
		assert.NotEqual(t, "kernel", e.Category, "no profiler was asked for")
		switch e.Category {
		case "step":
			steps++
		case "layer":
			layers[e.Name] += e.Length
		}
	}
	require.Equal(t, 16, steps)
	require.Len(t, layers, 31, "30 layers, and what is outside of them")
	for name, us := range layers {
		t.Logf("%s: %.2f us a step", name, us/16)
		assert.Greater(t, us/16, 5.0, name)
	}
}

// findNsys is Nsight Systems: one that is installed, or the one that comes with Nsight Compute.
func findNsys(t *testing.T) string {
	if path := os.Getenv("NSYS"); path != "" {
		return path
	}
	if path, err := exec.LookPath("nsys"); err == nil {
		return path
	}
	for _, pattern := range []string{"/opt/nvidia/nsight-*/*/host/target-linux-x64/nsys", "/opt/nvidia/nsight-systems/*/target-linux-x64/nsys", "/usr/local/cuda/nsight-compute-*/host/target-linux-x64/nsys"} {
		if found, _ := filepath.Glob(pattern); len(found) > 0 {
			return found[len(found)-1]
		}
	}
	t.Skip("no nsys on this machine: install Nsight Systems or Nsight Compute, or set NSYS")
	return ""
}

// running are the processes of a program that have setting in their environment.
func running(program, setting string) (pids []int) {
	paths, _ := filepath.Glob("/proc/[0-9]*")
	for _, path := range paths {
		exe, _ := os.Readlink(path + "/exe")
		environ, _ := os.ReadFile(path + "/environ")
		if pid, err := strconv.Atoi(filepath.Base(path)); err == nil && exe == program && bytes.Contains(environ, []byte(setting)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// ended tells whether a child process has ended, awaited or not.
func ended(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return err != nil || bytes.HasPrefix(rest, []byte("Z"))
}

// recorded is all that nsys wrote, with what is packed in it unpacked: a report, or where there is no importer its raw form. KEEP names a folder
// to keep them in.
func recorded(t *testing.T, nsys, dir string) []byte {
	written, err := filepath.Glob(filepath.Join(dir, "server.*"))
	require.NoError(t, err)
	keep := func(path string, text []byte) {
		if dir := os.Getenv("KEEP"); dir != "" {
			assert.NoError(t, os.WriteFile(filepath.Join(dir, filepath.Base(t.Name())+"-"+filepath.Base(path)), text, 0o644))
		}
	}
	for _, path := range written {
		if text, err := os.ReadFile(path); assert.NoError(t, err) {
			keep(path, text)
		}
	}
	if importers, _ := filepath.Glob(filepath.Join(filepath.Dir(nsys), "../linux-desktop-*/QdstrmImporter")); len(importers) > 0 && len(written) == 1 && filepath.Ext(written[0]) == ".qdstrm" {
		report := filepath.Join(dir, "server.nsys-rep")
		out, err := exec.Command("timeout", "10", importers[0], "-i", written[0], "-o", report).CombinedOutput()
		t.Logf("import: %v\n%s", err, out)
		written = append(written, report)
	}
	var whole []byte
	for _, path := range written {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Log(err)
			continue
		}
		t.Logf("%s: %d bytes, begins with %q", filepath.Base(path), len(text), text[:min(16, len(text))])
		keep(path, text)
		whole = append(append(whole, text...), unpacked(text)...)
	}
	return whole
}

// unpacked is what the zlib and gzip streams within text hold.
func unpacked(text []byte) (all []byte) {
	for at := range text {
		var in io.Reader
		var err error
		switch rest := text[at:]; {
		case len(rest) > 2 && rest[0] == 0x78 && (int(rest[0])<<8|int(rest[1]))%31 == 0:
			in, err = zlib.NewReader(bytes.NewReader(rest))
		case bytes.HasPrefix(rest, []byte{0x1f, 0x8b, 8}):
			in, err = gzip.NewReader(bytes.NewReader(rest))
		default:
			continue
		}
		if err != nil {
			continue
		}
		if piece, _ := io.ReadAll(io.LimitReader(in, 64<<20)); len(piece) > 64 {
			all = append(all, piece...)
		}
	}
	return all
}

// TestServerUnderNsys records a live server with the real Nsight Systems, as `make nsys-server` does: what it writes has our ranges and
// kernels. Meanwhile CUPTI is taken, which the server says when it is asked for a profile of its own, and goes on.
func TestServerUnderNsys(t *testing.T) {
	args := onGPU(t)
	nsys := findNsys(t)
	program, err := os.Executable()
	require.NoError(t, err)
	script, err := filepath.Abs("../../../profiling/nsys/record.sh")
	require.NoError(t, err)
	// Only NVTX knows these; the kernels' names are in either record.
	ranges, kernels := []string{"decode step", "layer 7", "gemv_qkv", "schedule"}, []string{"attn_decode", "sample_fast"}
	for _, on := range []string{"1", "0"} {
		t.Run("nvtx="+on, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			cmd := exec.Command("sh", append([]string{script, "server", "--sample=none", "--cpuctxsw=none", "--"}, args...)...)
			cmd.Env = append(os.Environ(), asCommand+"=1", "NSYS="+nsys, "BIN="+program, "OUT="+filepath.Join(dir, "server"), "MODEL=", "STEPS=", "SESSION=test"+on, "TOKAMAK_NVTX="+on,
				"TOKAMAK_PROFILER_DIR="+dir)
			p := launched(t, cmd)
			c := client{t, p.url}
			c.generate("20")
			code, text := c.post("/start_profile", `{"activities":["GPU"],"num_steps":5}`)
			if code == 200 { // it is told when there is nothing to tell
				c.generate("20")
				code, text = c.post("/stop_profile", "")
			}
			t.Logf("CUPTI under nsys: %d %s", code, text)
			assert.Equal(t, 409, code)
			assert.Contains(t, text, "another profiler")
			var begun started
			c.ok("/start_profile", `{"activities":["CPU"],"num_steps":3}`, &begun)
			c.generate("20")
			c.ok("/stop_profile", "", nil)
			assert.FileExists(t, begun.Output)

			pids := running(program, "TOKAMAK_PROFILER_DIR="+dir)
			require.NotEmpty(t, pids)
			for _, pid := range pids {
				require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
			}
			// What it leaves running may hold its output open, so that only its own end is waited for.
			require.Eventually(t, func() bool { return ended(cmd.Process.Pid) }, 60*time.Second, 50*time.Millisecond, "nsys goes on")
			t.Log(p.log())
			names := recorded(t, nsys, dir)
			for _, name := range kernels {
				assert.True(t, bytes.Contains(names, []byte(name)), "kernel %s, TOKAMAK_NVTX=%s", name, on)
			}
			for _, name := range ranges {
				assert.Equal(t, on == "1", bytes.Contains(names, []byte(name)), "range %q, TOKAMAK_NVTX=%s", name, on)
			}
		})
	}
}
