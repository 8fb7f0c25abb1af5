package model

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// A key is what a config.json may say under one name. The table below is all there is to know of a key: its type, its range
// and the words an error uses for them.
type key struct {
	name     string
	kind     kind
	min, max float64  // whole, number
	choices  []string // text
	fields   []key    // object
}

type kind uint8

const (
	whole   kind = iota // int
	number              // float64
	boolean             // bool
	text                // string
	ids                 // []int32; a single number is a list of one
	texts               // []string
	object              // map[string]any with fields
	opaque              // as decoded
)

// The upper bounds are far beyond any model, and keep every product of two sizes inside 63 bits.
const (
	maxHidden    = 1 << 18
	maxLayers    = 1 << 10
	maxHeads     = 1 << 14
	maxHeadDim   = 1 << 12
	maxVocab     = 1 << 24
	maxPositions = 1 << 31
	maxExperts   = 1 << 12
)

// commonKeys are read for every family.
var commonKeys = []key{
	{name: "architectures", kind: texts},
	{name: "model_type", kind: text},
	{name: "hidden_size", min: 1, max: maxHidden},
	{name: "intermediate_size", min: 1, max: maxHidden},
	{name: "num_hidden_layers", min: 1, max: maxLayers},
	{name: "num_attention_heads", min: 1, max: maxHeads},
	{name: "num_key_value_heads", min: 1, max: maxHeads},
	{name: "head_dim", min: 2, max: maxHeadDim},
	{name: "vocab_size", min: 1, max: maxVocab},
	{name: "max_position_embeddings", min: 1, max: maxPositions},
	{name: "rms_norm_eps", kind: number, min: 0, max: 1},
	{name: "hidden_act", kind: text, choices: []string{"silu", "swish"}},
	{name: "tie_word_embeddings", kind: boolean},
	{name: "bos_token_id", kind: ids},
	{name: "eos_token_id", kind: ids},
	{name: "dtype", kind: text, choices: dtypes},
	{name: "torch_dtype", kind: text, choices: dtypes},
	{name: "rope_theta", kind: number, min: 1, max: 1e12},
	{name: "partial_rotary_factor", kind: number, min: 1, max: 1},
	{name: "rope_scaling", kind: object, fields: ropeKeys},
	{name: "rope_parameters", kind: object, fields: ropeKeys},
	{name: "quantization_config", kind: object, fields: quantizationKeys},
}

var dtypes = []string{"bfloat16", "float16", "float32"}

// ropeKeys are those of rope_scaling (older files) and rope_parameters (newer ones).
var ropeKeys = []key{
	{name: "rope_type", kind: text, choices: ropeTypes},
	{name: "type", kind: text, choices: ropeTypes},
	{name: "rope_theta", kind: number, min: 1, max: 1e12},
	{name: "partial_rotary_factor", kind: number, min: 1, max: 1},
	{name: "factor", kind: number, min: 1, max: 1e6},
	{name: "low_freq_factor", kind: number, min: 1e-6, max: 1e6},
	{name: "high_freq_factor", kind: number, min: 1e-6, max: 1e6},
	{name: "original_max_position_embeddings", min: 1, max: maxPositions},
	{name: "beta_fast", kind: number, min: 0, max: 1e6},
	{name: "beta_slow", kind: number, min: 0, max: 1e6},
	{name: "attention_factor", kind: number, min: 0, max: 1e6},
	{name: "mscale", kind: number, min: 0, max: 1e6},
	{name: "mscale_all_dim", kind: number, min: 0, max: 1e6},
	{name: "truncate", kind: boolean},
}

var ropeTypes = []string{"default", "linear", "llama3", "yarn"}

// wants says in words which values k takes.
func (k *key) wants() string {
	if k.kind <= number && k.min == k.max {
		return fmt.Sprintf("%g", k.min)
	}
	switch k.kind {
	case whole:
		return fmt.Sprintf("a whole number from %.0f to %.0f", k.min, k.max)
	case number:
		return fmt.Sprintf("a number from %g to %g", k.min, k.max)
	case boolean:
		return "true or false"
	case text:
		if len(k.choices) > 0 {
			return "one of " + strings.Join(k.choices, ", ")
		}
		return "a string"
	case ids:
		return "a token id or a list of them"
	case texts:
		return "a list of strings"
	case object:
		return "an object with keys among " + strings.Join(names(k.fields), ", ")
	}
	return "any value"
}

func names(keys []key) []string {
	out := make([]string, len(keys))
	for i := range keys {
		out[i] = keys[i].name
	}
	return out
}

// find returns the key of that name, or nil.
func find(keys []key, name string) *key {
	i := slices.IndexFunc(keys, func(k key) bool { return k.name == name })
	if i < 0 {
		return nil
	}
	return &keys[i]
}

// check replaces every value that keys know by its typed form (int, float64, bool, string, []int32, []string, map) and drops
// nulls, which mean "the default". Values that keys do not know stay as they are. where says where a path's value came from
// and under which path.
func check(values map[string]any, keys []key, prefix string, where func(path string) (source, original string)) error {
	for _, k := range keys {
		value, ok := values[k.name]
		if !ok {
			continue
		}
		if value == nil {
			delete(values, k.name)
			continue
		}
		path := prefix + k.name
		typed, ok := k.typed(value)
		if !ok {
			source, original := where(path)
			return errorf(source, original, "%s is not a value it takes: want %s", show(value), k.wants())
		}
		values[k.name] = typed
		if k.kind == object {
			if err := check(typed.(map[string]any), k.fields, path+".", where); err != nil {
				return err
			}
		}
	}
	return nil
}

// typed converts a decoded JSON value to the key's Go type; false if the type or the range is wrong.
func (k *key) typed(value any) (any, bool) {
	switch k.kind {
	case whole:
		n, ok := wholeNumber(value)
		return int(n), ok && float64(n) >= k.min && float64(n) <= k.max
	case number:
		n, ok := value.(json.Number)
		f, err := strconv.ParseFloat(string(n), 64)
		return f, ok && err == nil && f >= k.min && f <= k.max
	case boolean:
		b, ok := value.(bool)
		return b, ok
	case text:
		s, ok := value.(string)
		return s, ok && (len(k.choices) == 0 || slices.Contains(k.choices, s))
	case ids:
		return idList(value)
	case texts:
		list, ok := value.([]any)
		out := make([]string, len(list))
		for i, v := range list {
			s, isText := v.(string)
			out[i], ok = s, ok && isText
		}
		return out, ok
	case object:
		m, ok := value.(map[string]any)
		return m, ok
	}
	return value, true
}

func wholeNumber(value any) (int64, bool) {
	n, ok := value.(json.Number)
	if !ok {
		return 0, false
	}
	i, err := strconv.ParseInt(string(n), 10, 64)
	return i, err == nil
}

func idList(value any) ([]int32, bool) {
	list, ok := value.([]any)
	if !ok {
		list = []any{value}
	}
	out := make([]int32, 0, len(list))
	for _, v := range list {
		n, ok := wholeNumber(v)
		if !ok || n > math.MaxInt32 || n < math.MinInt32 {
			return nil, false
		}
		out = append(out, int32(n))
	}
	return out, true
}

// show prints a decoded JSON value for an error, shortened: an error is one line.
func show(value any) string {
	const most = 60
	b, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value) // NaN, out of GGUF metadata
	}
	if len(b) > most {
		return strings.ToValidUTF8(string(b[:most]), "") + "…"
	}
	return string(b)
}
