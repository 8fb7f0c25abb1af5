package weights

import (
	"math"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/fixtures/fetch"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// openGolden opens a file of fixtures/goldens/gguf, made by the make.py there.
func openGolden(t *testing.T, name string) *GGUF {
	t.Helper()
	g, err := OpenGGUF(filepath.Join("..", "..", "fixtures", "goldens", "gguf", name))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	return g
}

// Row gives what gguf-py's dequantize gives, bit for bit, subnormal and zero scales included.
func TestRowMatchesGGUFPython(t *testing.T) {
	g := openGolden(t, "quants.gguf")
	for _, typ := range []string{"Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"} {
		t.Run(typ, func(t *testing.T) {
			stored, ok := g.tensors[typ]
			require.True(t, ok)
			golden := g.tensors[typ+".want"]
			tensor := &Tensor{Name: typ, DType: ggufTypes[stored.typ], Shape: stored.shape, Data: stored.data}
			want := &Tensor{Name: typ, DType: F32, Shape: golden.shape, Data: golden.data}
			require.Equal(t, want.Shape, tensor.Shape)
			a, b := make([]float32, 512), make([]float32, 512)
			for row := range 2 {
				tensor.Row(row, a)
				want.Row(row, b)
				for i := range a {
					require.Equal(t, math.Float32bits(b[i]), math.Float32bits(a[i]), "row %d element %d: want %g, got %g", row, i, b[i], a[i])
				}
			}
		})
	}
}

func TestMetadataTypes(t *testing.T) {
	g := openGolden(t, "metadata.gguf")
	for key, want := range map[string]any{
		"test.uint8": uint8(200), "test.int8": int8(-100), "test.uint16": uint16(60000), "test.int16": int16(-30000),
		"test.uint32": uint32(4000000000), "test.int32": int32(-2000000000), "test.uint64": uint64(1) << 63, "test.int64": -int64(1) << 62,
		"test.float32": float32(1e-5), "test.float64": 1e-300, "test.bool": true, "test.string": "Ġ 世界 🙂",
		"test.strings": []string{"a", "", "ç"}, "test.ints": []int32{1, -2, 3}, "test.floats": []float32{0.5, -1.5},
		"test.bools": []bool{true, false}, "test.nested": []any{[]int32{1, 2}, []int32{3}},
		"general.architecture": "llama",
	} {
		assert.Equal(t, want, g.Meta[key], key)
	}
}

// A GGUF file of a checkpoint gives the checkpoint's own tensors: names, shapes, row order, values, and the same Config.
func TestGGUFEqualsCheckpoint(t *testing.T) {
	for _, c := range []struct {
		file, family string
		tolerance    float64 // of a row's largest value
	}{
		{"llama.gguf", "llama", 0},
		{"llama-q8_0.gguf", "llama", 0.5/127 + 1.0/2048}, // half a step of Q8_0, and its half-precision scale
		{"qwen2.gguf", "qwen2", 0},
		{"qwen3.gguf", "qwen3", 0},
	} {
		t.Run(c.file, func(t *testing.T) {
			g := openGolden(t, c.file)
			got, err := model.FromGGUF(g.Meta, "")
			require.NoError(t, err)
			dir, err := tinymodel.Dir(c.family)
			require.NoError(t, err)
			want, err := model.Load(dir, `{"num_hidden_layers": 1}`)
			require.NoError(t, err)
			compareConfigs(t, want, got)

			fromGGUF, err := g.Store(got)
			require.NoError(t, err)
			fromDir, err := Open(dir, want)
			require.NoError(t, err)
			for _, tensor := range want.Tensors() {
				compareTensors(t, fromDir, fromGGUF, tensor.Name, c.tolerance)
			}
			require.NoError(t, fromDir.Close())
			require.NoError(t, fromGGUF.Close())
		})
	}
}

// compareConfigs compares what decides over a model's numbers; file formats may differ in the rest.
func compareConfigs(t *testing.T, want, got *model.Config) {
	t.Helper()
	for i, freq := range want.InvFreq() {
		assert.InEpsilon(t, freq, got.InvFreq()[i], 1e-6, "inverse frequency %d", i)
	}
	a, b := *want, *got
	a.RoPE, b.RoPE, a.DType, b.DType = model.RoPE{}, model.RoPE{}, "", ""
	a.EOS, b.EOS, a.BOS, b.BOS = nil, nil, nil, nil
	assert.Equal(t, a, b)
}

func compareTensors(t *testing.T, want, got *Store, name string, tolerance float64) {
	t.Helper()
	a, ok := want.Tensor(name)
	require.True(t, ok, name)
	b, ok := got.Tensor(name)
	require.True(t, ok, name)
	require.Equal(t, a.Shape, b.Shape, name)
	x, y := make([]float32, a.RowLen()), make([]float32, a.RowLen())
	for row := range a.Rows() {
		a.Row(row, x)
		b.Row(row, y)
		largest := 0.0
		for _, v := range x {
			largest = max(largest, math.Abs(float64(v)))
		}
		for i := range x {
			require.InDelta(t, x[i], y[i], tolerance*largest, "%s row %d element %d", name, row, i)
		}
	}
}

// A store outlives the file it came from, and the other way round.
func TestGGUFStoreAndFileCloseApart(t *testing.T) {
	g, err := OpenGGUF(filepath.Join("..", "..", "fixtures", "goldens", "gguf", "qwen3.gguf"))
	require.NoError(t, err)
	cfg, err := model.FromGGUF(g.Meta, "")
	require.NoError(t, err)
	store, err := g.Store(cfg)
	require.NoError(t, err)
	require.NoError(t, g.Close())
	require.NoError(t, g.Close())
	tensor, _ := store.Tensor("model.embed_tokens.weight")
	tensor.Row(0, make([]float32, tensor.RowLen()))
	_, err = g.Store(cfg)
	require.ErrorIs(t, err, ErrClosed)
	require.NoError(t, store.Close())
}

func TestGGUFOverrides(t *testing.T) {
	g := openGolden(t, "llama.gguf")
	_, err := model.FromGGUF(g.Meta, `{"num_key_value_heads": 3}`)
	require.EqualError(t, err, "--json-model-override-args: num_key_value_heads: num_attention_heads 4 is not a multiple of num_key_value_heads 3: want num_key_value_heads to be one of 1, 2, 4")
	cfg, err := model.FromGGUF(g.Meta, `{"num_hidden_layers": 2}`)
	require.NoError(t, err)
	_, err = g.Store(cfg)
	require.Error(t, err)
	assert.True(t, strings.HasSuffix(err.Error(), "tensor blk.1.attn_norm.weight: missing, the model's config asks for it with shape [64]"), err)
}

func TestRealModel(t *testing.T) {
	path, err := fetch.Path()
	if err != nil {
		t.Skip(err)
	}
	g, err := OpenGGUF(path)
	require.NoError(t, err)
	cfg, err := model.FromGGUF(g.Meta, "")
	require.NoError(t, err)
	assert.Equal(t, int64(134_515_008), cfg.NumParameters())
	assert.True(t, cfg.TieEmbeddings)
	assert.Equal(t, []int32{2}, cfg.EOS)
	store, err := g.Store(cfg)
	require.NoError(t, err)
	// First values of rows as gguf-py dequantizes them; row 1 of q_proj is row 2 of the file.
	for name, want := range map[string][]float32{
		"model.embed_tokens.weight":              {-0.023803711, -0.01586914, -0.03967285, 0.01586914},
		"model.layers.0.self_attn.q_proj.weight": {-0.15917969, 0.39794922, -0.019897461, -1.2734375},
	} {
		tensor, ok := store.Tensor(name)
		require.True(t, ok)
		row := make([]float32, tensor.RowLen())
		tensor.Row(1, row)
		assert.Equal(t, want, row[:4], name)
	}
	require.NoError(t, store.Close())
	require.NoError(t, g.Close())
}
