package tokenizer

import (
	"fmt"
	"reflect"
	"sort"
	"strings"

	"golang.org/x/text/unicode/norm"
)

// Token types of GGUF.
const (
	ggufNormal      = 1
	ggufUnknown     = 2
	ggufControl     = 3
	ggufUserDefined = 4
	ggufUnused      = 5
	ggufByte        = 6
)

// ggufPre is what a byte-level tokenizer's tokenizer.ggml.pre stands for.
type ggufPre struct {
	digits       bool // numbers are cut into single digits first
	patterns     []string
	nfc          bool
	ignoreMerges bool
	addBOS       bool // where the file does not say
}

var (
	preGPT2   = ggufPre{patterns: []string{patternGPT2}}
	preDigits = ggufPre{digits: true, patterns: []string{patternGPT2}}
	preLlama3 = ggufPre{patterns: []string{patternLlama3}, ignoreMerges: true, addBOS: true}
	preQwen2  = ggufPre{patterns: []string{patternQwen2}, nfc: true}
)

// ggufPres lists the names, as llama.cpp's converter gives them, whose meaning is known for sure.
var ggufPres = map[string]ggufPre{
	"gpt-2": preGPT2, "phi-2": preGPT2,
	"smollm": preDigits, "starcoder": preDigits, "refact": preDigits, "command-r": preDigits,
	"llama3": preLlama3, "llama-v3": preLlama3, "llama-bpe": preLlama3, "falcon3": preLlama3,
	"qwen2":  preQwen2,
	"qwen35": {patterns: []string{patternQwen35}, nfc: true},
	"tekken": {patterns: []string{patternTekken}, ignoreMerges: true, addBOS: true},
	"gpt-4o": {patterns: []string{patternO200k}},
}

// FromGGUF makes a tokenizer of a GGUF file's metadata (the keys tokenizer.*): model "gpt2" is byte-level BPE with merges,
// "llama" is SentencePiece with scores. Arrays may be typed slices or []any. Errors are *FormatError (with the key) or
// *UnsupportedError.
func FromGGUF(meta map[string]any) (*Tokenizer, error) {
	g := &ggufParser{meta: meta, t: &Tokenizer{ids: map[string]int32{}, specialTexts: map[string]string{}}}
	kind, err := g.text("tokenizer.ggml.model")
	if err != nil {
		return nil, err
	}
	if err := g.tokens(); err != nil {
		return nil, err
	}
	switch kind {
	case "gpt2":
		err = g.byteLevel()
	case "llama":
		err = g.sentencePiece()
	case "":
		err = g.problem("tokenizer.ggml.model", "is missing: the file has no tokenizer")
	default:
		err = &UnsupportedError{"model", kind, []string{"gpt2", "llama"}}
	}
	if err != nil {
		return nil, err
	}
	if err := g.specials(); err != nil {
		return nil, err
	}
	return g.t, nil
}

type ggufParser struct {
	meta   map[string]any
	t      *Tokenizer
	types  []int64
	vocab  map[string]int32 // without control tokens
	added  []*addedToken
	addBOS bool
	addEOS bool
}

func (g *ggufParser) problem(key, format string, args ...any) error {
	return &FormatError{Where: "GGUF metadata " + key, Problem: fmt.Sprintf(format, args...)}
}

func (g *ggufParser) tokens() error {
	const key = "tokenizer.ggml.tokens"
	tokens, err := g.texts(key)
	if err != nil {
		return err
	}
	if len(tokens) == 0 {
		return g.problem(key, "is missing or empty: the file has no tokenizer")
	}
	if g.types, err = g.ints("tokenizer.ggml.token_type"); err != nil {
		return err
	}
	if g.types == nil {
		g.types = make([]int64, len(tokens))
		for i := range g.types {
			g.types[i] = ggufNormal
		}
	}
	if len(g.types) != len(tokens) {
		return g.problem("tokenizer.ggml.token_type", "has %d entries for %d tokens", len(g.types), len(tokens))
	}
	g.vocab = make(map[string]int32, len(tokens))
	for id, token := range tokens {
		if _, ok := g.t.ids[token]; ok {
			// Converters pad with tokens of equal text; the first is the one that text leads to.
			first := g.t.ids[token]
			if err := g.t.add(token, int64(id)); err != nil {
				return g.problem(key, "%v", err)
			}
			g.t.ids[token] = first
			continue
		}
		if err := g.t.add(token, int64(id)); err != nil {
			return g.problem(key, "%v", err)
		}
		kind := g.types[id]
		special := kind == ggufControl || kind == ggufUnknown
		if token != "" && (special || kind == ggufUserDefined) {
			g.added = append(g.added, &addedToken{id: int32(id), content: token, special: special})
		}
		if kind != ggufControl {
			g.vocab[token] = int32(id)
		}
		g.t.special[id] = special
	}
	return nil
}

func (g *ggufParser) byteLevel() error {
	name, err := g.text("tokenizer.ggml.pre")
	if err != nil {
		return err
	}
	pre, ok := ggufPres[name]
	if !ok {
		return &UnsupportedError{"pre-tokenizer (tokenizer.ggml.pre)", name, sortedKeys(ggufPres)}
	}
	if pre.nfc {
		g.t.normalizers = append(g.t.normalizers, unicodeForm(norm.NFC))
	}
	if pre.digits {
		g.t.pre = append(g.t.pre, split(runesOf(classDigit, true), isolated, false))
	}
	for _, pattern := range pre.patterns {
		m, err := newMatcher("GGUF pre-tokenizer "+name, pattern)
		if err != nil {
			return err
		}
		g.t.pre = append(g.t.pre, split(m, isolated, false))
	}
	lines, err := g.texts("tokenizer.ggml.merges")
	if err != nil {
		return err
	}
	if lines == nil {
		return g.problem("tokenizer.ggml.merges", "is missing")
	}
	merges := make([][2]string, len(lines))
	for i, line := range lines {
		if merges[i], err = splitMerge(line); err != nil {
			return g.problem("tokenizer.ggml.merges", "%v", err)
		}
	}
	g.t.model = newBPE(g.vocab, true, len(g.t.content))
	g.t.model.ignoreMerges = pre.ignoreMerges
	if err := g.t.model.setMerges(merges, g.vocab); err != nil {
		return g.problem("tokenizer.ggml.merges", "%v", err)
	}
	g.addBOS = pre.addBOS
	g.t.decoding.mode = bytesLossy
	g.t.finish(g.added, func(s string) string {
		b, _ := byteLevel().bytes(s)
		return b
	})
	return nil
}

// spaceMark is what SentencePiece writes for a space.
const spaceMark = "▁"

func (g *ggufParser) sentencePiece() error {
	scores, err := g.floats("tokenizer.ggml.scores")
	if err != nil {
		return err
	}
	if len(scores) != len(g.t.content) {
		return g.problem("tokenizer.ggml.scores", "has %d entries for %d tokens", len(scores), len(g.t.content))
	}
	prefix, err := g.flag("tokenizer.ggml.add_space_prefix", true)
	if err != nil {
		return err
	}
	if prefix {
		g.t.normalizers = append(g.t.normalizers, prepend(spaceMark))
	}
	g.t.normalizers = append(g.t.normalizers, replaceLiteral(" ", spaceMark))

	m := newBPE(g.vocab, false, len(g.t.content))
	m.byteFallback, m.fuseUnknown = true, true
	for id, kind := range g.types {
		if kind == ggufUnknown {
			m.unknown = int32(id)
		}
	}
	// Tokens that stand for something else than their text take no part in merges.
	merging := make(map[string]int32, len(g.vocab))
	for token, id := range g.vocab {
		if kind := g.types[id]; kind == ggufNormal || kind == ggufUserDefined {
			merging[token] = id
		}
	}
	m.setScores(merging, func(id int32) float32 { return scores[id] })
	g.t.model = m
	g.addBOS = true
	g.t.decoding = decoding{mode: byteFallback}
	if prefix {
		g.t.decoding.strip, g.t.decoding.stripStart = " ", 1
	}
	g.t.finish(g.added, replaceLiteral(spaceMark, " "))
	return nil
}

// specials reads the ids of special tokens, what is added around a text, and the chat template.
func (g *ggufParser) specials() error {
	ids := map[string]*int32{}
	for name, keys := range map[string][]string{
		"bos_token": {"bos_token_id"}, "eos_token": {"eos_token_id"}, "unk_token": {"unknown_token_id"}, "sep_token": {"seperator_token_id"},
		"pad_token": {"padding_token_id"},
	} {
		for _, key := range keys {
			key = "tokenizer.ggml." + key
			id, ok, err := g.int(key)
			if err != nil {
				return err
			}
			if !ok {
				continue
			}
			if id < 0 || id >= int64(len(g.t.content)) {
				return g.problem(key, "is %d: want 0 to %d", id, len(g.t.content)-1)
			}
			v := int32(id)
			ids[name] = &v
			g.t.specialTexts[name] = g.t.content[id]
		}
	}
	g.t.bos, g.t.eos = ids["bos_token"], ids["eos_token"]
	addBOS, err := g.flag("tokenizer.ggml.add_bos_token", g.addBOS)
	if err != nil {
		return err
	}
	addEOS, err := g.flag("tokenizer.ggml.add_eos_token", g.addEOS)
	if err != nil {
		return err
	}
	if addBOS && g.t.bos != nil {
		g.t.before = []int32{*g.t.bos}
	}
	if addEOS && g.t.eos != nil {
		g.t.after = []int32{*g.t.eos}
	}
	source, err := g.text("tokenizer.chat_template")
	if err != nil {
		return err
	}
	sources := map[string]string{}
	if source != "" {
		sources[defaultTemplate] = source
	}
	for key := range g.meta {
		if name, ok := strings.CutPrefix(key, "tokenizer.chat_template."); ok {
			if sources[name], err = g.text(key); err != nil {
				return err
			}
		}
	}
	g.t.chat = newChatTemplates(sources)
	return nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// The readers below take a missing key for the zero value, and any Go type that can hold what GGUF says.

func (g *ggufParser) text(key string) (string, error) {
	switch v := g.meta[key].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	default:
		return "", g.problem(key, "is a %T: want a string", v)
	}
}

func (g *ggufParser) flag(key string, missing bool) (bool, error) {
	switch v := g.meta[key].(type) {
	case nil:
		return missing, nil
	case bool:
		return v, nil
	default:
		return false, g.problem(key, "is a %T: want a bool", v)
	}
}

func (g *ggufParser) int(key string) (int64, bool, error) {
	v, ok := g.meta[key]
	if !ok || v == nil {
		return 0, false, nil
	}
	n, ok := asInt(reflect.ValueOf(v))
	if !ok {
		return 0, false, g.problem(key, "is a %T: want an integer", v)
	}
	return n, true, nil
}

func (g *ggufParser) texts(key string) ([]string, error) {
	if v, ok := g.meta[key].([]string); ok {
		return v, nil
	}
	var out []string
	err := g.each(key, "strings", func(v reflect.Value) bool {
		if v.Kind() != reflect.String {
			return false
		}
		out = append(out, v.String())
		return true
	})
	return out, err
}

func (g *ggufParser) ints(key string) ([]int64, error) {
	var out []int64
	err := g.each(key, "integers", func(v reflect.Value) bool {
		n, ok := asInt(v)
		out = append(out, n)
		return ok
	})
	return out, err
}

func (g *ggufParser) floats(key string) ([]float32, error) {
	if v, ok := g.meta[key].([]float32); ok {
		return v, nil
	}
	var out []float32
	err := g.each(key, "floats", func(v reflect.Value) bool {
		if !v.CanFloat() {
			return false
		}
		out = append(out, float32(v.Float()))
		return true
	})
	return out, err
}

func (g *ggufParser) each(key, want string, add func(reflect.Value) bool) error {
	v, ok := g.meta[key]
	if !ok || v == nil {
		return nil
	}
	list := reflect.ValueOf(v)
	if list.Kind() != reflect.Slice {
		return g.problem(key, "is a %T: want an array of %s", v, want)
	}
	for i := range list.Len() {
		item := list.Index(i)
		if item.Kind() == reflect.Interface {
			item = item.Elem()
		}
		if !add(item) {
			return g.problem(key, "entry %d is not one of %s", i, want)
		}
	}
	return nil
}

func asInt(v reflect.Value) (int64, bool) {
	switch {
	case v.CanInt():
		return v.Int(), true
	case v.CanUint():
		return int64(v.Uint()), true
	}
	return 0, false
}
