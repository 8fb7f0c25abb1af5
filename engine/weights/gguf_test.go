package weights

import (
	"encoding/binary"
	"math"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// ggufBytes builds a file's bytes piece by piece.
type ggufBytes []byte

func newGGUF(version uint32, tensors, metadata uint64) ggufBytes {
	return ggufBytes("GGUF").u32(version).u64(tensors).u64(metadata)
}

func (b ggufBytes) u32(v uint32) ggufBytes { return binary.LittleEndian.AppendUint32(b, v) }
func (b ggufBytes) u64(v uint64) ggufBytes { return binary.LittleEndian.AppendUint64(b, v) }
func (b ggufBytes) text(s string) ggufBytes {
	return append(b.u64(uint64(len(s))), s...)
}

func (b ggufBytes) tensor(name string, typ uint32, offset uint64, dims ...uint64) ggufBytes {
	b = b.text(name).u32(uint32(len(dims)))
	for _, d := range dims {
		b = b.u64(d)
	}
	return b.u32(typ).u64(offset)
}

// data pads to the alignment and appends so many bytes.
func (b ggufBytes) data(alignment, n int) ggufBytes {
	for len(b)%alignment != 0 {
		b = append(b, 0)
	}
	return append(b, make([]byte, n)...)
}

func openBytes(t testing.TB, data []byte) (*GGUF, string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "f.gguf")
	require.NoError(t, os.WriteFile(path, data, 0o644))
	g, err := OpenGGUF(path)
	return g, path, err
}

func TestGGUFVersionsAndAlignment(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		b := newGGUF(version, 2, 1).text("general.alignment").u32(metaU32).u32(64)
		b = b.tensor("a", 0, 0, 4, 2).tensor("b", 8, 64, 32).data(64, 64+34)
		g, _, err := openBytes(t, b)
		require.NoError(t, err)
		assert.Equal(t, []int{2, 4}, g.tensors["a"].shape)
		assert.Len(t, g.tensors["a"].data, 32)
		assert.Len(t, g.tensors["b"].data, 34)
		assert.Equal(t, []string{"a", "b"}, g.Meta[model.GGUFTensorNames])
		require.NoError(t, g.Close())
	}
}

func TestBadGGUF(t *testing.T) {
	one := func() ggufBytes { return newGGUF(3, 1, 0) }
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "empty file"},
		{"short", []byte("GGUF"), `not a GGUF file: it does not begin with "GGUF" and a header`},
		{"other magic", append([]byte("GGML"), make([]byte, 40)...), `not a GGUF file: it does not begin with "GGUF" and a header`},
		{"version 1", newGGUF(1, 0, 0), "GGUF version 1 is not supported: want 2 or 3"},
		{"version 4", newGGUF(4, 0, 0), "GGUF version 4 is not supported: want 2 or 3"},
		{"big-endian", newGGUF(3<<24, 0, 0), "big-endian GGUF is not supported"},
		{"2^60 tensors", newGGUF(3, 1<<60, 0), "1152921504606846976 tensors in a file of 24 bytes: it is truncated or damaged"},
		{"2^60 keys", newGGUF(3, 0, 1<<60), "1152921504606846976 metadata keys in a file of 24 bytes: it is truncated or damaged"},
		{"key past the end", newGGUF(3, 0, 1).u64(1 << 40).u64(0).u64(0), `metadata "": truncated: the header goes on past the file's 48 bytes`},
		{"unknown value type", newGGUF(3, 0, 1).text("k").u32(77).u64(0), `metadata "k": value type 77 is unknown`},
		{"unknown array type", newGGUF(3, 0, 1).text("k").u32(metaArray).u32(99).u64(0), `metadata "k": array of unknown type 99`},
		{"huge array", newGGUF(3, 0, 1).text("k").u32(metaArray).u32(metaF64).u64(1 << 61), `metadata "k": truncated: an array of 2305843009213693952 elements in a file of 49 bytes`},
		{"huge string array", newGGUF(3, 0, 1).text("k").u32(metaArray).u32(metaString).u64(1 << 61), `metadata "k": truncated: an array of 2305843009213693952 elements in a file of 49 bytes`},
		{"deep arrays", newGGUF(3, 0, 1).text("k").u32(metaArray).u32(metaArray).u64(1).u32(metaArray).u64(1).u32(metaArray).u64(1).u32(metaArray).u64(1).u32(metaU8).u64(0), `metadata "k": arrays nested more than 4 deep`},
		{"key twice", newGGUF(3, 0, 2).text("k").u32(metaU32).u32(1).text("k").u32(metaU32).u32(1), `metadata key "k" appears twice`},
		{"alignment", newGGUF(3, 0, 1).text("general.alignment").u32(metaU32).u32(24), "general.alignment is 24: want a power of two"},
		{"part", append(newGGUF(3, 0, 1).text("split.count").u32(metaU16), 3, 0, 0, 0), "one of 3 parts: join them first (llama-gguf-split --merge)"},
		{"no dimensions", one().tensor("a", 0, 0).u64(0), `tensor "a": 0 dimensions: want 1 to 4`},
		{"many dimensions", one().tensor("a", 0, 0, 1, 1, 1, 1, 1), `tensor "a": 5 dimensions: want 1 to 4`},
		{"size of zero", one().tensor("a", 0, 0, 0), `tensor "a": a dimension of 0: want 1 to 2147483647`},
		{"overflow", one().tensor("a", 0, 0, 1<<30, 1<<30, 1<<30), "tensor a: shape [1073741824 1073741824 1073741824] is impossible"},
		{"outside", one().tensor("a", 0, 0, 1<<20).data(32, 16), "tensor a: bytes 0 to 4194304 are outside the file's 16 bytes of data: it is truncated or damaged"},
		{"offset outside", one().tensor("a", 0, 1<<62, 1).data(32, 16), "tensor a: bytes 4611686018427387904 to 4611686018427387908 are outside the file's 16 bytes of data: it is truncated or damaged"},
		{"no data at all", one().tensor("a", 0, 0, 1), "tensor a: bytes 0 to 4 are outside the file's 0 bytes of data: it is truncated or damaged"},
		{"offset not aligned", one().tensor("a", 0, 4, 1).data(32, 32), "tensor a: offset 4 is not a multiple of the alignment 32"},
		{"broken blocks", one().tensor("a", 8, 0, 33).data(32, 99), "tensor a: rows of 33 elements in blocks of 32 (Q8_0)"},
		{"tensor twice", newGGUF(3, 2, 0).tensor("a", 0, 0, 1).tensor("a", 0, 32, 1).data(32, 64), "tensor a: described twice"},
		{"overlap", newGGUF(3, 2, 0).tensor("a", 0, 0, 9).tensor("b", 0, 32, 1).data(32, 64), "tensor b: bytes 32 to 36 overlap tensor a"},
		{"rope freqs", one().tensor("rope_freqs.weight", 1, 0, 8).data(32, 64), "tensor rope_freqs.weight: shape [8] of type 1: want a vector of F32"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, path, err := openBytes(t, c.data)
			var typed *Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, path+": "+c.want, err.Error())
		})
	}
}

func TestGGUFUnsupportedTensorType(t *testing.T) {
	for typ, name := range map[uint32]string{10: "Q2_K", 6: "Q5_0", 250: "number 250"} {
		g, path, err := openBytes(t, newGGUF(3, 1, 0).tensor("token_embd.weight", typ, 0, 256, 2).data(32, 4096))
		require.NoError(t, err, "a type that is not needed does no harm")
		_, err = g.Store(&model.Config{HiddenSize: 256, VocabSize: 2})
		require.EqualError(t, err, path+": tensor token_embd.weight: type "+name+" is not supported: want F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K, Q5_K or Q6_K")
		require.NoError(t, g.Close())
	}
}

func TestGGUFShape(t *testing.T) {
	g, path, err := openBytes(t, newGGUF(3, 1, 0).tensor("token_embd.weight", 0, 0, 4, 2).data(32, 32))
	require.NoError(t, err)
	_, err = g.Store(&model.Config{HiddenSize: 2, VocabSize: 4})
	require.EqualError(t, err, path+": tensor token_embd.weight: shape [2 4], but the model's config asks for [4 2]")
	require.NoError(t, g.Close())
}

func TestBadGGUFMetadata(t *testing.T) {
	good := func() map[string]any {
		return map[string]any{
			"general.architecture": "llama", "llama.block_count": uint32(1), "llama.embedding_length": uint32(64),
			"llama.feed_forward_length": uint32(64), "llama.attention.head_count": uint32(4), "llama.vocab_size": uint32(100),
			"llama.context_length": uint32(128), "llama.attention.layer_norm_rms_epsilon": float32(1e-5),
		}
	}
	_, err := model.FromGGUF(good(), "")
	require.NoError(t, err)
	for _, c := range []struct {
		name, key string
		value     any
		want      string
	}{
		{"architecture", "general.architecture", "gpt2", `GGUF metadata: general.architecture: "gpt2" is not supported: want one of llama, mistral, qwen2, qwen3, qwen3moe`},
		{"no architecture", "general.architecture", nil, `GGUF metadata: general.architecture: "" is not supported: want one of llama, mistral, qwen2, qwen3, qwen3moe`},
		{"type", "llama.block_count", "one", `GGUF metadata: llama.block_count: "one" is not a value it takes: want a whole number from 1 to 1024`},
		{"missing", "llama.embedding_length", nil, "GGUF metadata: llama.embedding_length: missing: want a whole number from 1 to 262144"},
		{"layers differ", "llama.attention.head_count_kv", []int32{4, 2}, "GGUF metadata: llama.attention.head_count_kv: layers differ (4, 2): want them alike"},
		{"heads", "llama.attention.head_count_kv", []int32{3}, "GGUF metadata: llama.attention.head_count_kv: num_attention_heads 4 is not a multiple of num_key_value_heads 3: want num_key_value_heads to be one of 1, 2, 4"},
		{"experts", "llama.expert_count", uint32(8), "GGUF metadata: llama.expert_count: mixtures of experts are not read from GGUF: want a Hugging Face directory"},
		{"partial rope", "llama.rope.dimension_count", uint32(8), "GGUF metadata: llama.rope.dimension_count: 8 of a head's 16 elements turn: want all"},
		{"rope type", "llama.rope.scaling.type", "longrope", `GGUF metadata: llama.rope.scaling.type: "longrope" is not a value it takes: want one of default, linear, llama3, yarn`},
		{"rope factors", model.GGUFRopeFreqs, []float32{1, 2}, "GGUF metadata: rope_freqs.weight: 2 factors for heads of 16 elements: want 8"},
		{"rope zero", model.GGUFRopeFreqs, []float32{1, 0, 1, 1, 1, 1, 1, 1}, "GGUF metadata: rope_freqs.weight: element 1 is 0: want a positive number"},
		{"NaN", "llama.attention.layer_norm_rms_epsilon", float32(math.NaN()), "GGUF metadata: llama.attention.layer_norm_rms_epsilon: NaN is not a value it takes: want a number from 0 to 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			meta := good()
			meta[c.key] = c.value
			if c.value == nil {
				delete(meta, c.key)
			}
			_, err := model.FromGGUF(meta, "")
			var typed *model.Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, c.want, err.Error())
		})
	}
}

// Whatever the bytes are, parsing ends in tensors inside the file or in a one-line *Error, and FromGGUF likewise.
func FuzzGGUF(f *testing.F) {
	f.Add([]byte(newGGUF(3, 2, 1).text("general.alignment").u32(metaU32).u32(64).tensor("a", 0, 0, 4, 2).tensor("b", 8, 64, 32).data(64, 98)))
	f.Add([]byte(newGGUF(2, 0, 2).text("general.architecture").u32(metaString).text("qwen2").text("qwen2.block_count").u32(metaU32).u32(1)))
	f.Add([]byte(newGGUF(3, 0, 1).text("k").u32(metaArray).u32(metaArray).u64(1).u32(metaU8).u64(2).u32(0)))
	data, err := os.ReadFile(filepath.Join("..", "..", "fixtures", "goldens", "gguf", "metadata.gguf"))
	require.NoError(f, err)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		g := &GGUF{path: "f", Meta: map[string]any{}, tensors: map[string]ggufTensor{}}
		if err := g.parse(data); err != nil {
			var typed *Error
			require.ErrorAs(t, err, &typed)
			require.NotContains(t, err.Error(), "\n")
			return
		}
		for _, tensor := range g.tensors {
			require.LessOrEqual(t, len(tensor.data), len(data))
		}
		if _, err := model.FromGGUF(g.Meta, ""); err != nil {
			var typed *model.Error
			require.ErrorAs(t, err, &typed)
			require.NotContains(t, err.Error(), "\n")
		}
	})
}
