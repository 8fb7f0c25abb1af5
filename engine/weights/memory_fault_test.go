package weights

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// allocated runs f and returns the bytes that it allocated.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestHostileFilesMemory bounds what reading a file may allocate by its size: counts and lengths that a few bytes claim cost nothing.
func TestHostileFilesMemory(t *testing.T) {
	many := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, `"t%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},`, i)
		}
		return "{" + strings.TrimSuffix(b.String(), ",") + "}"
	}
	length := func(n uint64) []byte { return append(binary.LittleEndian.AppendUint64(nil, n), "{}"...) }
	for name, data := range map[string][]byte{
		"many tensors":    withHeader(many(20_000), 0),
		"many dimensions": withHeader(`{"a":{"dtype":"U8","shape":[`+strings.Repeat("1,", 200_000)+`1],"data_offsets":[0,1]}}`, 1),
		"deep":            withHeader(strings.Repeat(`{"a":`, 100_000), 0),
		"metadata":        withHeader(`{"__metadata__":{"a":"`+strings.Repeat("x", 1<<20)+`"}}`, 0),
		"header of 2^63":  length(1 << 63),
		"header of 99 MB": length(99_000_000),
	} {
		spent := allocated(func() { _, _ = parseSafetensors("f", data) })
		assert.Less(t, spent, uint64(64*len(data)+1<<20), "safetensors, %s: %d bytes allocated for %d", name, spent, len(data))
	}
	for name, data := range map[string]string{
		"2^60 tensors":      string(newGGUF(3, 1<<60, 0)),
		"2^60 pairs":        string(newGGUF(3, 0, 1<<60)),
		"2^60 strings":      string(newGGUF(3, 0, 1).text("k").u32(metaArray).u32(metaString).u64(1 << 60)),
		"2^40 bytes":        string(newGGUF(3, 0, 1).text("k").u32(metaArray).u32(metaU8).u64(1 << 40)),
		"text of 2^62":      string(newGGUF(3, 0, 1).u64(1 << 62)),
		"arrays of arrays":  string(newGGUF(3, 0, 1).text("k").u32(metaArray).u32(metaArray).u64(1 << 40).u32(metaArray).u64(1 << 40)),
		"a million strings": string(newGGUF(3, 0, 1).text("k").u32(metaArray).u32(metaString).u64(1_000_000)) + strings.Repeat("\x00", 8_000_000),
		"blocks of 2^31":    string(newGGUF(3, 0, 2).text("general.architecture").u32(metaString).text("qwen2").text("qwen2.block_count").u32(metaU32).u32(1<<31 - 1)),
	} {
		spent := allocated(func() {
			g := &GGUF{path: "f", Meta: map[string]any{}, tensors: map[string]ggufTensor{}}
			if g.parse([]byte(data)) == nil {
				_, _ = model.FromGGUF(g.Meta, "")
			}
		})
		assert.Less(t, spent, uint64(64*len(data)+1<<20), "GGUF, %s: %d bytes allocated for %d", name, spent, len(data))
	}
}
