package model_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/tokamak-engine/tokamak/engine/model"
)

func quantised(keys string) string { return with(`"quantization_config": {` + keys + `}`) }

func group(weights, inputs string) string {
	return `"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
	"config_groups": {"group_0": {"targets": ["Linear"], "input_activations": ` + inputs + `, "weights": ` + weights + `}}`
}

// The configs are those of published checkpoints.
func TestQuantizationConfig(t *testing.T) {
	const channel = `{"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true, "dynamic": false}`
	const tensor = `{"num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false}`
	for keys, want := range map[string]model.Quantization{
		`"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]`: {
			Method: "fp8", Scheme: "fp8", Granularity: "tensor", Activations: "static", Ignore: []string{"lm_head"}},
		`"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": null`: {
			Method: "fp8", Scheme: "fp8", Granularity: "tensor", Activations: "dynamic"},
		`"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 256]`: {
			Method: "fp8", Scheme: "fp8", Granularity: "block", BlockRows: 128, GroupSize: 256, Activations: "dynamic"},
		`"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["model.layers.0.mlp.up_proj"]`: {
			Method: "fbgemm_fp8", Scheme: "fp8", Granularity: "channel", Activations: "dynamic", Ignore: []string{"model.layers.0.mlp.up_proj"}},
		`"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"], "config_groups": {"group_0": {}}`: {
			Method: "modelopt", Scheme: "fp8", Granularity: "tensor", Activations: "static", Ignore: []string{"lm_head"}},
		group(channel, `{"num_bits": 8, "type": "float", "strategy": "token", "dynamic": true}`): {
			Method: "compressed-tensors", Scheme: "fp8", Granularity: "channel", Activations: "dynamic", Ignore: []string{"lm_head"}},
		group(tensor, `{"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false}`): {
			Method: "compressed-tensors", Scheme: "fp8", Granularity: "tensor", Activations: "static", Ignore: []string{"lm_head"}},
		group(channel, `null`): {
			Method: "compressed-tensors", Scheme: "fp8", Granularity: "channel", Ignore: []string{"lm_head"}},
		group(`{"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128, "symmetric": true, "actorder": "static"}`, `null`): {
			Method: "compressed-tensors", Scheme: "int4", Granularity: "group", GroupSize: 128, Symmetric: true, Ignore: []string{"lm_head"}},
		`"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": true, "version": "gemm", "modules_to_not_convert": null`: {
			Method: "awq", Scheme: "int4", Granularity: "group", GroupSize: 128},
		`"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false, "sym": true, "true_sequential": true`: {
			Method: "gptq", Scheme: "int4", Granularity: "group", GroupSize: 128, ZeroOffset: 1},
		`"quant_method": "gptq", "bits": 4, "group_size": -1, "checkpoint_format": "gptq_v2"`: {
			Method: "gptq", Scheme: "int4", Granularity: "channel"},
	} {
		cfg := load(t, quantised(keys), "")
		require.NotNil(t, cfg.Quantization, keys)
		assert.Equal(t, want, *cfg.Quantization, keys)
	}
	assert.Nil(t, load(t, with(`"quantization_config": null`), "").Quantization)
}

func TestBadQuantizationConfig(t *testing.T) {
	const key = "FILE: quantization_config."
	for keys, want := range map[string]string{
		`"bits": 4`:                      key + "quant_method: missing: want one of fp8, fbgemm_fp8, modelopt, compressed-tensors, awq, gptq",
		`"quant_method": "bitsandbytes"`: key + `quant_method: "bitsandbytes" is not a value it takes: want one of fp8, fbgemm_fp8, modelopt, compressed-tensors, awq, gptq`,
		`"quant_method": "fp8", "weight_block_size": [128]`:                                key + "weight_block_size: [128] is not supported: want two sizes, the second a multiple of 8",
		`"quant_method": "modelopt", "quant_algo": "NVFP4"`:                                key + `quant_algo: "NVFP4" is not a value it takes: want one of FP8`,
		`"quant_method": "fp8", "fmt": "e5m2"`:                                             key + `fmt: "e5m2" is not a value it takes: want one of e4m3`,
		`"quant_method": "awq", "bits": 8`:                                                 key + "bits: 8 is not a value it takes: want 4",
		`"quant_method": "awq", "version": "gemv"`:                                         key + `version: "gemv" is not a value it takes: want one of gemm, GEMM`,
		`"quant_method": "gptq", "desc_act": true`:                                         key + "desc_act: true is not supported: want a checkpoint with groups of neighbours, desc_act false",
		`"quant_method": "gptq", "group_size": 100`:                                        key + "group_size: 100 is not supported: want -1 or a multiple of 8",
		`"quant_method": "gptq", "group_size": 0`:                                          key + "group_size: 0 is not supported: want -1 or a multiple of 8",
		`"quant_method": "compressed-tensors"`:                                             key + "config_groups: want an object with one group of layers or more, each with its weights' num_bits, type and strategy",
		`"quant_method": "compressed-tensors", "config_groups": {}`:                        key + "config_groups: want an object with one group of layers or more, each with its weights' num_bits, type and strategy",
		`"quant_method": "compressed-tensors", "config_groups": [1]`:                       key + "config_groups: want an object with one group of layers or more, each with its weights' num_bits, type and strategy",
		`"quant_method": "compressed-tensors", "format": "marlin-24"`:                      key + `format: "marlin-24" is not a value it takes: want one of float-quantized, naive-quantized, pack-quantized`,
		`"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24"}`: key + "sparsity_config: sparse weights are not supported: want a dense checkpoint",
		group(`{"num_bits": 8, "type": "int", "strategy": "channel"}`, "null"):             key + "config_groups.group_0.weights: 8 bits of int by channel are not supported: want 8 of float by tensor or channel, or 4 of int (symmetric, no act order, plain activations) by group or channel",
	} {
		dir := writeConfig(t, quantised(keys))
		_, err := model.Load(dir, "")
		var typed *model.Error
		require.ErrorAs(t, err, &typed, keys)
		assert.Equal(t, strings.Replace(want, "FILE", filepath.Join(dir, "config.json"), 1), err.Error())
	}
}
