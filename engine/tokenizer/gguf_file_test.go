package tokenizer

import (
	"bufio"
	"encoding/binary"
	"io"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

const smolLM2File = "../../fixtures/models/SmolLM2-135M-Instruct.Q4_1.gguf"

func smolLM2(tb testing.TB) *Tokenizer {
	tb.Helper()
	f, err := os.Open(smolLM2File)
	if err != nil {
		tb.Skipf("%s is not there: make fixtures fetches it", smolLM2File)
	}
	defer f.Close()
	t, err := FromGGUF(ggufMeta(tb, bufio.NewReader(f)))
	require.NoError(tb, err)
	return t
}

// ggufMeta reads a GGUF file's metadata: just enough of it for the fixture, so that this package's tests need no other.
func ggufMeta(tb testing.TB, r io.Reader) map[string]any {
	read := func(v any) { require.NoError(tb, binary.Read(r, binary.LittleEndian, v)) }
	number := func() (n uint64) { read(&n); return n }
	text := func() string {
		b := make([]byte, number())
		read(b)
		return string(b)
	}
	var value func(kind uint32) any
	scalar := func(v any) any { read(v); return v }
	value = func(kind uint32) any {
		switch kind {
		case 4:
			return *scalar(new(uint32)).(*uint32)
		case 5:
			return *scalar(new(int32)).(*int32)
		case 6:
			return *scalar(new(float32)).(*float32)
		case 7:
			return *scalar(new(bool)).(*bool)
		case 8:
			return text()
		case 9:
			var of uint32
			read(&of)
			list := make([]any, number())
			for i := range list {
				list[i] = value(of)
			}
			return list
		}
		require.Failf(tb, "GGUF", "type %d is not in the fixture", kind)
		return nil
	}
	var head struct{ Magic, Version uint32 }
	read(&head)
	number() // tensors
	meta := map[string]any{}
	for range number() {
		key := text()
		var kind uint32
		read(&kind)
		meta[key] = value(kind)
	}
	return meta
}
