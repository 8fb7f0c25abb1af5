//go:build cuda

package driver

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/ebitengine/purego"
)

// library is a shared library of the toolkit that is opened at run time.
type library struct {
	stem string // "nvrtc"
	env  string // variable that names the file
	get  string // how a person gets it
}

// majors are the toolkit versions whose libraries are tried, newest first.
var majors = []string{"13", "12"}

// candidates lists the files that may be lib<stem>.so: the variable's, what the dynamic linker knows, then the usual places.
func (l library) candidates() []string {
	if path := os.Getenv(l.env); path != "" {
		return []string{path}
	}
	var dirs []string
	for _, v := range []string{"CUDA_HOME", "CUDA_PATH"} {
		if home := os.Getenv(v); home != "" {
			dirs = append(dirs, filepath.Join(home, "lib64"), filepath.Join(home, "lib"))
		}
	}
	if dir := os.Getenv("TOKAMAK_CUDA_TOOLCHAIN"); dir != "" {
		dirs = append(dirs, filepath.Join(dir, "nvidia", "cu13", "lib"))
	}
	names := []string{}
	for _, major := range majors {
		names = append(names, fmt.Sprintf("lib%s.so.%s", l.stem, major))
	}
	var files []string
	for _, dir := range dirs {
		for _, name := range names {
			files = append(files, filepath.Join(dir, name))
		}
	}
	files = append(files, names...) // LD_LIBRARY_PATH and the linker's cache
	places := []string{"/usr/local/cuda/lib64", "/usr/local/cuda/targets/*/lib", "/usr/local/cuda-1*/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu",
		".cuda/nvidia/cu13/lib", "../.cuda/nvidia/cu13/lib", "../../.cuda/nvidia/cu13/lib"}
	home, _ := os.UserHomeDir() // without one, the pattern matches nothing
	for _, python := range []string{"/usr/lib/python3*", "/usr/local/lib/python3*", "/opt/*/lib/python3*", filepath.Join(home, ".local/lib/python3*")} {
		for _, site := range []string{"site-packages", "dist-packages"} {
			places = append(places, filepath.Join(python, site, "nvidia/cu13/lib"), filepath.Join(python, site, "nvidia/*/lib"))
		}
	}
	for _, place := range places {
		for _, name := range names {
			found, _ := filepath.Glob(filepath.Join(place, name)) // the patterns are constants
			files = append(files, found...)
		}
	}
	return files
}

// open loads the first candidate that loads, and returns its handle and path.
func (l library) open(prepare func(path string)) (uintptr, string, error) {
	var last error
	for _, path := range l.candidates() {
		if strings.Contains(path, "/") {
			if _, err := os.Stat(path); err != nil {
				if os.Getenv(l.env) != "" {
					return 0, "", fmt.Errorf("%s: %w", l.env, err)
				}
				continue
			}
		}
		if prepare != nil {
			prepare(path)
		}
		h, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_GLOBAL)
		if err == nil {
			return h, path, nil
		}
		last = err
	}
	err := fmt.Errorf("lib%s.so.%s not found: %s, or set %s to the file", l.stem, strings.Join(majors, " or ."), l.get, l.env)
	if last != nil && !strings.Contains(last.Error(), "No such file") {
		err = fmt.Errorf("%w (%v)", err, last)
	}
	return 0, "", err
}
