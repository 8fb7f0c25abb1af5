package weights

import (
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
	"github.com/tokamak-engine/tokamak/fixtures/tinymodel"
)

// Rows of each quantised form equal what the form's formula gives in Python, bit for bit.
func TestQuantisedRows(t *testing.T) {
	for _, name := range tinymodel.Quantised {
		t.Run(name, func(t *testing.T) {
			dir, err := tinymodel.Dir(name)
			require.NoError(t, err)
			cfg, err := model.Load(dir, "")
			require.NoError(t, err)
			store, err := Open(dir, cfg)
			require.NoError(t, err)
			golden, err := openSafetensors(filepath.Join(dir, "dequantised.safetensors"))
			require.NoError(t, err)
			require.Len(t, golden.entries, 2)
			for name, entry := range golden.entries {
				got, ok := store.Tensor(name)
				require.True(t, ok, name)
				require.NotNil(t, got.Quant)
				require.Equal(t, entry.shape, got.Shape)
				want := &Tensor{Name: name, DType: F32, Shape: entry.shape, Data: entry.data}
				a, b := make([]float32, want.RowLen()), make([]float32, want.RowLen())
				for row := range want.Rows() {
					want.Row(row, a)
					got.Row(row, b)
					require.Equal(t, a, b, "%s row %d", name, row)
				}
			}
			assert.Positive(t, store.Bytes())
			require.NoError(t, golden.file.release())
			require.NoError(t, store.Close())
		})
	}
}

func TestQuantisedLayout(t *testing.T) {
	for name, want := range map[string]struct {
		dtype          DType
		scales, zeros  int // of k_proj, [32, 64]
		group          int
		hasInputScales bool
	}{
		"llama-fp8":         {F8E4M3, 1, 0, 64, true},
		"llama-fp8-channel": {F8E4M3, 32, 0, 64, false},
		"llama-fp8-block":   {F8E4M3, 64, 0, 32, false},
		"llama-w4a16":       {I4, 64, 0, 32, false},
		"llama-awq":         {I4, 64, 64, 32, false},
		"llama-gptq":        {I4, 64, 64, 32, false},
	} {
		dir, err := tinymodel.Dir(name)
		require.NoError(t, err)
		cfg, err := model.Load(dir, "")
		require.NoError(t, err)
		store, err := Open(dir, cfg)
		require.NoError(t, err)
		k, _ := store.Tensor("model.layers.0.self_attn.k_proj.weight")
		assert.Equal(t, want.dtype, k.DType, name)
		assert.Len(t, k.Quant.Scales, want.scales, name)
		assert.Len(t, k.Quant.Zeros, want.zeros, name)
		assert.Equal(t, want.group, k.Quant.GroupSize, name)
		assert.Equal(t, want.hasInputScales, k.Quant.InputScale != 0, name)
		assert.Len(t, k.Data, int(k.Bytes()), name)
		norm, _ := store.Tensor("model.norm.weight")
		assert.Nil(t, norm.Quant, name)
		require.NoError(t, store.Close())
	}
}

// Words of several lines' width take the same way as one line: both strips and tails are compared with the plain formula.
func TestRepackLarge(t *testing.T) {
	const out, in = 8 * (2*lineWords + 3), 48
	nibble := func(o, k int) uint8 { return uint8(o*31+k*17) % 16 }
	outputs, inputs := make([]byte, out*in/2), make([]byte, out*in/2)
	for o := range out {
		for k := range in {
			place := 0
			for i, p := range awqOrder {
				if p == o%8 {
					place = i
				}
			}
			at := k*out/2 + o/8*4 + place/2
			outputs[at] |= nibble(o, k) << (4 * (place & 1))
			at = (k/8*out+o)*4 + k%8/2
			inputs[at] |= nibble(o, k) << (4 * (k & 1))
		}
	}
	for _, got := range [][]byte{unpackOutputs(outputs, out, in, awqOrder), transposeWords(inputs, in/8, out)} {
		for o := range out {
			for k := range in {
				require.Equal(t, nibble(o, k), got[(o*in+k)/2]>>(4*(k&1))&15, "output %d input %d", o, k)
			}
		}
	}
}

func TestBadQuantisedFiles(t *testing.T) {
	for _, c := range []struct{ name, model, overrides, old, new, want string }{
		{"no scale", "llama-fp8-channel", "", ".k_proj.weight_scale", ".k_proj.weight_scald", "DIR: tensor model.layers.0.self_attn.k_proj.weight_scale: missing, the quantised matrix needs it with shape [32 1]"},
		{"no scalar scale", "llama-fp8", "", ".k_proj.weight_scale", ".k_proj.weight_scald", "DIR: tensor model.layers.0.self_attn.k_proj.weight_scale: missing, the quantised matrix needs it with one element"},
		{"no input scale", "llama-fp8", "", ".k_proj.input_scale", ".k_proj.input_scald", "DIR: tensor model.layers.0.self_attn.k_proj.input_scale: missing, the config says that activations have static scales"},
		{"scales of channels", "llama-fp8-channel", `{"quantization_config": {"config_groups": {"group_0": {"weights": {"strategy": "tensor"}}}}}`, "", "", "DIR/model.safetensors: tensor model.layers.0.self_attn.q_proj.weight_scale: shape [64 1]: want one element"},
		{"no zeros", "llama-awq", "", ".k_proj.qzeros", ".k_proj.qzeroz", "DIR: tensor model.layers.0.self_attn.k_proj.qzeros: missing, the quantised matrix needs it with shape [2 4]"},
		{"group size", "llama-gptq", `{"quantization_config": {"group_size": 64}}`, "", "", "DIR/model.safetensors: tensor model.layers.0.self_attn.q_proj.scales: shape [2 64], but the model's config asks for [1 64]"},
		{"group does not fit", "llama-gptq", `{"quantization_config": {"group_size": 48}}`, "", "", "DIR: tensor model.layers.0.self_attn.q_proj.weight: shape [64 64] cannot be stored in words of 8 elements and groups of 48"},
		{"plain config", "llama-fp8", `{"quantization_config": null}`, "", "", "DIR/model.safetensors: tensor model.layers.0.self_attn.q_proj.weight: type F8_E4M3 is not supported: want F32, F16 or BF16; a quantised checkpoint's config.json must have a quantization_config"},
		{"another method", "llama-awq", `{"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int", "strategy": "channel"}}}}}`, "", "", "DIR: tensor model.layers.0.self_attn.q_proj.weight: missing, the model's config asks for it with shape [64 64]"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := copyModel(t, c.model)
			if c.old != "" { // rename a tensor in the header, the length stays
				path := filepath.Join(dir, singleFile)
				data, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Contains(t, string(data), c.old)
				require.NoError(t, os.WriteFile(path, []byte(strings.Replace(string(data), c.old, c.new, 1)), 0o644))
			}
			cfg, err := model.Load(dir, c.overrides)
			require.NoError(t, err)
			_, err = Open(dir, cfg)
			var typed *Error
			require.ErrorAs(t, err, &typed)
			assert.Equal(t, c.want, strings.ReplaceAll(filepath.ToSlash(err.Error()), filepath.ToSlash(dir), "DIR"))
		})
	}
}

func TestGroupIndexOutOfOrder(t *testing.T) {
	dir := copyModel(t, "llama-gptq")
	cfg, err := model.Load(dir, "")
	require.NoError(t, err)
	shard, err := openSafetensors(filepath.Join(dir, singleFile))
	require.NoError(t, err)
	index := shard.entries["model.layers.0.self_attn.q_proj.g_idx"]
	data := append([]byte(nil), shard.file.data...)
	at := strings.Index(string(data), string(index.data)) // the first of several alike; q_proj's or another's
	require.NoError(t, shard.file.release())
	require.Positive(t, at)
	data[at] = 1
	require.NoError(t, os.WriteFile(filepath.Join(dir, singleFile), data, 0o644))
	_, err = Open(dir, cfg)
	require.ErrorContains(t, err, "g_idx: input 0 is in group 1, want 0: activation order is not supported")
}

// TestCacheScales: scales of an E4M3 cache beside the projections or beside attention; a bad one is refused.
func TestCacheScales(t *testing.T) {
	shard := func(values map[string]float32) *directory {
		var header strings.Builder
		var data []byte
		for name, v := range values {
			if header.Len() > 0 {
				header.WriteByte(',')
			}
			fmt.Fprintf(&header, `"model.layers.0.self_attn.%s":{"dtype":"F32","shape":[],"data_offsets":[%d,%d]}`, name, len(data), len(data)+4)
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(v))
		}
		path := filepath.Join(t.TempDir(), "model.safetensors")
		text := "{" + header.String() + "}"
		file := append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), append([]byte(text), data...)...)
		require.NoError(t, os.WriteFile(path, file, 0o644))
		d := &directory{path: filepath.Dir(path), shards: map[string]*safetensors{}}
		t.Cleanup(d.close)
		return d
	}
	k, v := "model.layers.0.self_attn.k_proj.weight", "model.layers.0.self_attn.v_proj.weight"
	for _, c := range []struct {
		name   string
		values map[string]float32
		k, v   float32
	}{
		{"none", map[string]float32{"q_proj.q_scale": 3}, 0, 0},
		{"beside projections", map[string]float32{"k_proj.k_scale": 0.25, "v_proj.v_scale": 0.5}, 0.25, 0.5},
		{"beside attention", map[string]float32{"k_scale": 0.125, "v_scale": 2}, 0.125, 2},
	} {
		d := shard(c.values)
		for name, want := range map[string]float32{k: c.k, v: c.v, "model.layers.0.self_attn.q_proj.weight": 0} {
			tensor := &Tensor{Name: name}
			require.NoError(t, d.cacheScale(tensor), c.name)
			require.Equal(t, want, tensor.CacheScale, "%s: %s", c.name, name)
		}
	}
	require.ErrorContains(t, shard(map[string]float32{"k_scale": -1}).cacheScale(&Tensor{Name: k}), "self_attn.k_scale: -1: want a positive number")
}
