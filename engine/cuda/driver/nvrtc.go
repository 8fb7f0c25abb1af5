//go:build cuda

package driver

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"unsafe"

	"github.com/ebitengine/purego"
)

// Compiler is NVRTC: CUDA C++ to machine code in memory. It needs no GPU and no driver, and may be used by many goroutines.
type Compiler struct {
	Path         string // of the library
	Major, Minor int

	create  func(prog *uintptr, src, name *byte, n int32, headers, names **byte) int32
	compile func(prog uintptr, n int32, options **byte) int32
	destroy func(prog *uintptr) int32
	logSize func(prog uintptr, n *uintptr) int32
	log     func(prog uintptr, log *byte) int32
	size    func(prog uintptr, n *uintptr) int32
	cubin   func(prog uintptr, cubin *byte) int32
	message func(code int32) string
}

var nvrtcLibrary = library{"nvrtc", "TOKAMAK_NVRTC", "install the CUDA toolkit, or: pip install nvidia-cuda-nvrtc"}

// OpenCompiler opens libnvrtc once a process.
var OpenCompiler = sync.OnceValues(func() (*Compiler, error) {
	h, path, err := nvrtcLibrary.open(func(path string) {
		// libnvrtc has no RUNPATH: it finds libnvrtc-builtins beside it only if that is loaded already.
		builtins, _ := filepath.Glob(filepath.Join(filepath.Dir(path), "libnvrtc-builtins.so.*"))
		for _, b := range builtins {
			if _, err := purego.Dlopen(b, purego.RTLD_NOW|purego.RTLD_GLOBAL); err == nil {
				break
			}
		}
	})
	if err != nil {
		return nil, err
	}
	c := &Compiler{Path: path}
	var version func(major, minor *int32) int32
	for _, f := range []struct {
		fn   any
		name string
	}{
		{&c.create, "nvrtcCreateProgram"}, {&c.compile, "nvrtcCompileProgram"}, {&c.destroy, "nvrtcDestroyProgram"},
		{&c.logSize, "nvrtcGetProgramLogSize"}, {&c.log, "nvrtcGetProgramLog"}, {&c.size, "nvrtcGetCUBINSize"}, {&c.cubin, "nvrtcGetCUBIN"},
		{&c.message, "nvrtcGetErrorString"}, {&version, "nvrtcVersion"},
	} {
		symbol, err := purego.Dlsym(h, f.name)
		if err != nil {
			return nil, fmt.Errorf("%s has no %s: %w", path, f.name, err)
		}
		purego.RegisterFunc(f.fn, symbol)
	}
	var major, minor int32
	if r := version(&major, &minor); r != 0 {
		return nil, fmt.Errorf("%s: nvrtcVersion: %s", path, c.message(r))
	}
	c.Major, c.Minor = int(major), int(minor)
	return c, nil
})

// CompileError is a source that NVRTC refused.
type CompileError struct {
	Name string // file and symbol
	Log  string
}

func (e *CompileError) Error() string { return "compile " + e.Name + ":\n" + e.Log }

// Compile compiles source, called name in messages, to a cubin. headers are what #include finds, by name. The log holds
// warnings, and with --ptxas-options=-v each kernel's resources.
func (c *Compiler) Compile(name, source string, headers map[string]string, options []string) (cubin []byte, log string, err error) {
	var texts, names []*byte
	for n, text := range headers {
		texts, names = append(texts, cString(text)), append(names, cString(n))
	}
	var prog uintptr
	if r := c.create(&prog, cString(source), cString(name), int32(len(texts)), unsafe.SliceData(texts), unsafe.SliceData(names)); r != 0 {
		return nil, "", fmt.Errorf("nvrtcCreateProgram %s: %s", name, c.message(r))
	}
	defer c.destroy(&prog)
	opts := make([]*byte, len(options))
	for i, o := range options {
		opts[i] = cString(o)
	}
	result := c.compile(prog, int32(len(opts)), unsafe.SliceData(opts))
	var n uintptr
	if c.logSize(prog, &n) == 0 && n > 1 {
		text := make([]byte, n)
		c.log(prog, &text[0])
		log = strings.TrimRight(string(text), "\x00\n")
	}
	if result != 0 {
		if log == "" {
			log = c.message(result)
		}
		return nil, log, &CompileError{name, log}
	}
	if r := c.size(prog, &n); r != 0 || n == 0 {
		return nil, log, fmt.Errorf("nvrtcGetCUBINSize %s: %s", name, c.message(r))
	}
	cubin = make([]byte, n)
	if r := c.cubin(prog, &cubin[0]); r != 0 {
		return nil, log, fmt.Errorf("nvrtcGetCUBIN %s: %s", name, c.message(r))
	}
	return cubin, log, nil
}

func cString(s string) *byte { return unsafe.StringData(s + "\x00") }
