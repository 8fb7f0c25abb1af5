package weights

import (
	"strconv"
	"strings"

	"github.com/tokamak-engine/tokamak/engine/model"
)

// ggufTop and ggufLayer give GGUF's names for Hugging Face's, without ".weight" and ".bias".
var (
	ggufTop = map[string]string{
		"model.embed_tokens": "token_embd",
		"model.norm":         "output_norm",
		"lm_head":            "output",
	}
	ggufLayer = map[string]string{
		"input_layernorm":          "attn_norm",
		"self_attn.q_proj":         "attn_q",
		"self_attn.k_proj":         "attn_k",
		"self_attn.v_proj":         "attn_v",
		"self_attn.o_proj":         "attn_output",
		"self_attn.q_norm":         "attn_q_norm",
		"self_attn.k_norm":         "attn_k_norm",
		"post_attention_layernorm": "ffn_norm",
		"mlp.gate_proj":            "ffn_gate",
		"mlp.up_proj":              "ffn_up",
		"mlp.down_proj":            "ffn_down",
	}
)

// ggufName translates a Hugging Face name: model.layers.3.mlp.up_proj.weight is blk.3.ffn_up.weight.
func ggufName(name string) (string, bool) {
	dot := strings.LastIndexByte(name, '.')
	stem, suffix := name[:max(dot, 0)], name[max(dot, 0):]
	if top, ok := ggufTop[stem]; ok {
		return top + suffix, true
	}
	rest, ok := strings.CutPrefix(stem, "model.layers.")
	if !ok {
		return "", false
	}
	number, part, _ := strings.Cut(rest, ".")
	layer, ok := ggufLayer[part]
	if _, err := strconv.Atoi(number); err != nil || !ok {
		return "", false
	}
	return "blk." + number + "." + layer + suffix, true
}

// pairedHeads is the number of heads whose rows the file holds in the order of adjacent-pair rotation, 0 if it does not: only
// the llama architecture's files do, for queries and keys.
func pairedHeads(arch, name string, cfg *model.Config) int {
	if arch != "llama" && arch != "mistral" {
		return 0
	}
	switch {
	case strings.Contains(name, ".self_attn.q_proj."):
		return cfg.NumHeads
	case strings.Contains(name, ".self_attn.k_proj."):
		return cfg.NumKVHeads
	}
	return 0
}

// unpairRows returns a copy in which a head's rows 0,2,4,... come first and 1,3,5,... after them. Blocks never cross rows, so
// this moves quantised rows as well. A bias is a matrix of rows of one element.
func unpairRows(data []byte, rows, heads int) []byte {
	out := make([]byte, 0, len(data))
	rowBytes, headDim := len(data)/rows, rows/heads
	for h := range heads {
		for odd := range 2 {
			for j := odd; j < headDim; j += 2 {
				row := h*headDim + j
				out = append(out, data[row*rowBytes:(row+1)*rowBytes]...)
			}
		}
	}
	return out
}
