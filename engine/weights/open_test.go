package weights

import (
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// withHeader is a safetensors file of that header and so many bytes of data.
func withHeader(header string, dataBytes int) []byte {
	out := binary.LittleEndian.AppendUint64(nil, uint64(len(header)))
	return append(append(out, header...), make([]byte, dataBytes)...)
}

func TestParseSafetensors(t *testing.T) {
	entries, err := parseSafetensors("f", withHeader(`{"__metadata__": {"format": "pt"}, "b": {"dtype": "F32", "shape": [], "data_offsets": [6, 10]},
		"a": {"dtype": "BF16", "shape": [3, 1], "data_offsets": [0, 6]}, "none": {"dtype": "F8_E5M2", "shape": [0, 7], "data_offsets": [6, 6]}}   `, 10))
	require.NoError(t, err)
	require.Len(t, entries, 3)
	assert.Equal(t, []int{3, 1}, entries["a"].shape)
	assert.Len(t, entries["a"].data, 6)
	assert.Empty(t, entries["b"].shape)
}

func TestBadSafetensors(t *testing.T) {
	huge := binary.LittleEndian.AppendUint64(nil, 1<<60)
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"short", []byte("{}"), "f: 2 bytes are too few for a safetensors file: it is truncated or something else"},
		{"huge header", append(huge, "{}"...), "f: a header of 1152921504606846976 bytes (limit 100000000): this is not a safetensors file, or it is damaged"},
		{"truncated header", withHeader(`{"a": {}}`, 0)[:12], "f: truncated: a header of 9 bytes in a file of 12"},
		{"no object", withHeader(`[]`, 0), "f: malformed header: want a JSON object"},
		{"open object", withHeader(`{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}`, 1), "f: malformed header: it ends too early"},
		{"not JSON", withHeader(`{"a": nonsense}`, 0), "f: tensor a: malformed header: invalid character 'o' in literal null (expecting 'u')"},
		{"wrong kind", withHeader(`{"a": {"dtype": 1}}`, 0), "f: tensor a: malformed header: json: cannot unmarshal number into Go struct field .dtype of type string"},
		{"past the end", withHeader(`{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}`, 8), "f: tensor a: bytes 0 to 16 are outside the file's 8 bytes of data: it is truncated or damaged"},
		{"backwards", withHeader(`{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}`, 8), "f: tensor a: bytes 4 to 0 are outside the file's 8 bytes of data: it is truncated or damaged"},
		{"negative", withHeader(`{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}`, 8), "f: tensor a: bytes -4 to 0 are outside the file's 8 bytes of data: it is truncated or damaged"},
		{"no offsets", withHeader(`{"a": {"dtype": "F32", "shape": [1]}}`, 4), "f: tensor a: shape [1] of F32 takes 4 bytes, the header gives it 0"},
		{"2^60 elements", withHeader(`{"a": {"dtype": "F32", "shape": [1073741824, 1073741824], "data_offsets": [0, 4]}}`, 4), "f: tensor a: shape [1073741824 1073741824] of F32 takes 4611686018427387904 bytes, the header gives it 4"},
		{"overflow to zero", withHeader(`{"a": {"dtype": "F32", "shape": [2147483647, 2147483647, 2147483647], "data_offsets": [0, 0]}}`, 0), "f: tensor a: shape [2147483647 2147483647 2147483647] is impossible"},
		{"negative size", withHeader(`{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}`, 4), "f: tensor a: shape [-1] is impossible"},
		{"size", withHeader(`{"a": {"dtype": "F16", "shape": [3], "data_offsets": [0, 4]}}`, 4), "f: tensor a: shape [3] of F16 takes 6 bytes, the header gives it 4"},
		{"twice", withHeader(`{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}`, 2), "f: tensor a: named twice in the header"},
		{"overlap", withHeader(`{"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}`, 4), "f: tensor b: bytes 2 to 4 overlap tensor a"},
		{"hole", withHeader(`{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}, "b": {"dtype": "U8", "shape": [2], "data_offsets": [2, 4]}}`, 4), "f: tensor b: bytes 1 to 2 before it belong to no tensor"},
		{"data left over", withHeader(`{"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}`, 9), "f: 9 bytes of data, but the header describes 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := parseSafetensors("f", c.data)
			var typed *Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, c.want, err.Error())
		})
	}
}

// copyModel copies a tiny checkpoint to where a test may damage it.
func copyModel(t *testing.T, family string) string {
	t.Helper()
	from, err := tinymodel.Dir(family)
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(from)))
	return dir
}

func TestBadDirectories(t *testing.T) {
	const shard2 = "model-00002-of-00002.safetensors"
	edit := func(t *testing.T, dir string, change func(weightMap map[string]string)) {
		path := filepath.Join(dir, indexFile)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		var index struct {
			WeightMap map[string]string `json:"weight_map"`
		}
		require.NoError(t, json.Unmarshal(data, &index))
		change(index.WeightMap)
		data, err = json.Marshal(index)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(path, data, 0o644))
	}
	for _, c := range []struct {
		name, family, overrides string
		damage                  func(t *testing.T, dir string)
		want                    string
	}{
		{"no weights", "qwen3", "", func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, singleFile))) },
			"DIR: neither model.safetensors nor model.safetensors.index.json: want a directory with safetensors, a GGUF file, or --load-format dummy"},
		{"empty file", "qwen3", "", func(t *testing.T, dir string) { require.NoError(t, os.Truncate(filepath.Join(dir, singleFile), 0)) },
			"DIR/model.safetensors: empty file"},
		{"truncated", "qwen3", "", func(t *testing.T, dir string) {
			require.NoError(t, os.Truncate(filepath.Join(dir, singleFile), 100_000))
		},
			"DIR/model.safetensors: tensor model.layers.0.self_attn.v_proj.weight: bytes"},
		{"missing shard", "llama", "", func(t *testing.T, dir string) { require.NoError(t, os.Remove(filepath.Join(dir, shard2))) },
			"DIR/" + shard2 + ": shard is missing, model.safetensors.index.json names it: download it again"},
		{"malformed index", "llama", "", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, indexFile), []byte("{"), 0o644))
		}, "DIR/model.safetensors.index.json: malformed index: unexpected end of JSON input"},
		{"empty index", "llama", "", func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, indexFile), []byte("{}"), 0o644))
		}, "DIR/model.safetensors.index.json: no weight_map: want one shard name for each tensor"},
		{"shard elsewhere", "llama", "", func(t *testing.T, dir string) {
			edit(t, dir, func(m map[string]string) { m["model.norm.weight"] = "../../etc/passwd" })
		}, `DIR/model.safetensors.index.json: shard "../../etc/passwd": want the name of a file beside it`},
		{"wrong shard", "llama", "", func(t *testing.T, dir string) {
			edit(t, dir, func(m map[string]string) { m["model.norm.weight"] = "model-00001-of-00002.safetensors" })
		}, "DIR/model-00001-of-00002.safetensors: tensor model.norm.weight: not in this shard, although model.safetensors.index.json says so"},
		{"unlisted tensor", "llama", "", func(t *testing.T, dir string) {
			edit(t, dir, func(m map[string]string) { delete(m, "model.norm.weight") })
		}, "DIR: tensor model.norm.weight: missing, the model's config asks for it with shape [64]"},
		{"more layers than stored", "qwen3", `{"num_hidden_layers": 3}`, nil,
			"DIR: tensor model.layers.2.input_layernorm.weight: missing, the model's config asks for it with shape [64]"},
		{"shape", "qwen3", `{"intermediate_size": 95}`, nil,
			"DIR/model.safetensors: tensor model.layers.0.mlp.gate_proj.weight: shape [96 64], but the model's config asks for [95 64]"},
		{"untied head", "llama-tied", `{"tie_word_embeddings": false}`, nil,
			`DIR: tensor lm_head.weight: missing, the model's config asks for it with shape [112 96]; if the head is the embedding matrix, config.json must say "tie_word_embeddings": true`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := copyModel(t, c.family)
			cfg, err := model.Load(dir, c.overrides)
			require.NoError(t, err)
			if c.damage != nil {
				c.damage(t, dir)
			}
			_, err = Open(dir, cfg)
			var typed *Error
			require.ErrorAs(t, err, &typed)
			got := strings.ReplaceAll(filepath.ToSlash(err.Error()), filepath.ToSlash(dir), "DIR")
			if c.name == "truncated" { // which tensor comes first is the file's affair
				assert.Regexp(t, `^DIR/model.safetensors: tensor \S+: bytes \d+ to \d+ are outside the file's \d+ bytes of data: it is truncated or damaged$`, got)
				return
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func TestWrongType(t *testing.T) {
	dir := t.TempDir()
	header := `{"model.embed_tokens.weight": {"dtype": "I32", "shape": [2, 4], "data_offsets": [0, 32]}}`
	require.NoError(t, os.WriteFile(filepath.Join(dir, singleFile), withHeader(header, 32), 0o644))
	_, err := Open(dir, &model.Config{HiddenSize: 4, VocabSize: 2})
	require.EqualError(t, err, filepath.Join(dir, singleFile)+": tensor model.embed_tokens.weight: type I32 is not supported: want F32, F16 or BF16; a quantised checkpoint's config.json must have a quantization_config")
}

func TestNotARegularFile(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(dir, singleFile), 0o755))
	_, err := Open(dir, &model.Config{HiddenSize: 4, VocabSize: 2})
	require.EqualError(t, err, filepath.Join(dir, singleFile)+": not a regular file")
}

// Whatever the bytes are, parsing ends in tensors inside the file or in a one-line *Error.
func FuzzSafetensors(f *testing.F) {
	f.Add(withHeader(`{"a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]}, "b": {"dtype": "F16", "shape": [1], "data_offsets": [3, 5]}}`, 5))
	f.Add(withHeader(`{"__metadata__": {}}`, 0))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := parseSafetensors("f", data)
		if err != nil {
			var typed *Error
			require.ErrorAs(t, err, &typed)
			require.NotContains(t, err.Error(), "\n")
			return
		}
		total := 0
		for _, e := range entries {
			total += len(e.data)
		}
		require.LessOrEqual(t, total, len(data))
	})
}
