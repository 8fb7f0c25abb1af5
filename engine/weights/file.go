package weights

import (
	"fmt"
	"os"
	"sync/atomic"
)

// file is a mapped file, shared by those who hold it: the last release unmaps it.
type file struct {
	data   []byte
	unmap  func() error
	owners atomic.Int32
}

// openFile maps a file, with one owner. The descriptor is not kept.
func openFile(path string) (*file, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open weights: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open weights: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, errorf(path, "", "not a regular file")
	}
	if info.Size() == 0 {
		return nil, errorf(path, "", "empty file")
	}
	data, unmap, err := mapFile(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", path, err)
	}
	out := &file{data: data, unmap: unmap}
	out.owners.Store(1)
	return out, nil
}

func (f *file) retain() *file {
	f.owners.Add(1)
	return f
}

func (f *file) release() error {
	if f.owners.Add(-1) != 0 {
		return nil
	}
	f.data = nil
	return f.unmap()
}
