// Package kernels holds the CUDA sources. They are compiled at run time for a model's exact sizes; engine/cuda says how, and
// docs/design/cuda.md what they are given.
package kernels

import (
	"embed"
	"fmt"
	"io/fs"
)

//go:generate go run wgmma_gen.go

//go:embed *.cu *.cuh
var files embed.FS

// Source is the text of a .cu file.
func Source(name string) (string, error) {
	text, err := files.ReadFile(name)
	if err != nil {
		return "", fmt.Errorf("no kernel source %s: %w", name, err)
	}
	return string(text), nil
}

// Headers are the .cuh files by the name that #include uses.
func Headers() map[string]string {
	headers := map[string]string{}
	names, _ := fs.Glob(files, "*.cuh") // the pattern is constant
	for _, name := range names {
		text, err := Source(name)
		if err != nil {
			panic(err) // it was just listed
		}
		headers[name] = text
	}
	return headers
}
