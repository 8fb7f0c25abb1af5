//go:build !unix

package weights

import (
	"io"
	"os"
)

// mapFile reads the file whole: correct everywhere, at the price of its size in memory.
func mapFile(f *os.File, size int64) (data []byte, unmap func() error, err error) {
	data = make([]byte, size)
	if _, err := io.ReadFull(f, data); err != nil {
		return nil, nil, err
	}
	return data, func() error { return nil }, nil
}
