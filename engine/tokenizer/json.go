package tokenizer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/text/unicode/norm"
)

// fileJSON is tokenizer.json.
type fileJSON struct {
	AddedTokens []struct {
		ID         int64  `json:"id"`
		Content    string `json:"content"`
		SingleWord bool   `json:"single_word"`
		StripLeft  bool   `json:"lstrip"`
		StripRight bool   `json:"rstrip"`
		Normalized bool   `json:"normalized"`
		Special    bool   `json:"special"`
	} `json:"added_tokens"`
	Normalizer    *component      `json:"normalizer"`
	PreTokenizer  *component      `json:"pre_tokenizer"`
	PostProcessor *component      `json:"post_processor"`
	Decoder       *component      `json:"decoder"`
	Model         json.RawMessage `json:"model"`
}

type modelJSON struct {
	Type         *string         `json:"type"`
	Dropout      float64         `json:"dropout"`
	UnkToken     *string         `json:"unk_token"`
	Prefix       string          `json:"continuing_subword_prefix"`
	Suffix       string          `json:"end_of_word_suffix"`
	FuseUnk      bool            `json:"fuse_unk"`
	ByteFallback bool            `json:"byte_fallback"`
	IgnoreMerges bool            `json:"ignore_merges"`
	Vocab        json.RawMessage `json:"vocab"`
	Merges       json.RawMessage `json:"merges"`
}

// component is a normalizer, pre-tokenizer, post-processor or decoder: Type says which of the other fields mean something.
type component struct {
	Type string `json:"type"`

	Normalizers   []*component `json:"normalizers"`
	PreTokenizers []*component `json:"pretokenizers"`
	Processors    []*component `json:"processors"`
	Decoders      []*component `json:"decoders"`

	Pattern     *patternJSON    `json:"pattern"`
	Content     json.RawMessage `json:"content"` // a string; of Strip, one rune
	Prepend     string          `json:"prepend"`
	Behavior    string          `json:"behavior"`
	Invert      bool            `json:"invert"`
	Delimiter   string          `json:"delimiter"`
	StripLeft   bool            `json:"strip_left"`
	StripRight  bool            `json:"strip_right"`
	Start       int             `json:"start"`
	Stop        int             `json:"stop"`
	Individual  bool            `json:"individual_digits"`
	PrefixSpace *bool           `json:"add_prefix_space"`
	UseRegex    *bool           `json:"use_regex"`
	Replacement string          `json:"replacement"`
	Scheme      string          `json:"prepend_scheme"`
	Split       *bool           `json:"split"`

	Single        []templateItem             `json:"single"`
	SpecialTokens map[string]templateSpecial `json:"special_tokens"`
	Sep           json.RawMessage            `json:"sep"`
	Cls           json.RawMessage            `json:"cls"`
}

type patternJSON struct {
	String *string `json:"String"`
	Regex  *string `json:"Regex"`
}

type templateItem struct {
	SpecialToken *struct {
		ID string `json:"id"`
	} `json:"SpecialToken"`
	Sequence *struct {
		ID string `json:"id"`
	} `json:"Sequence"`
}

type templateSpecial struct {
	IDs []int64 `json:"ids"`
}

// parse reads tokenizer.json; where names it in errors.
func parse(where string, data []byte) (*Tokenizer, error) {
	p := &parser{where: where, t: &Tokenizer{ids: map[string]int32{}}}
	var f fileJSON
	if err := p.unmarshal(data, &f); err != nil {
		return nil, err
	}
	if len(f.Model) == 0 || bytes.Equal(f.Model, []byte("null")) {
		return nil, p.problem(`has no "model"`)
	}
	for _, step := range []func(*fileJSON) error{p.vocabulary, p.addedTokens, p.normalizer, p.preTokenizer, p.model, p.decoder, p.postProcessor} {
		if err := step(&f); err != nil {
			return nil, err
		}
	}
	p.t.finish(p.added, p.perToken)
	return p.t, nil
}

// parser holds what the parts of a tokenizer.json need of each other.
type parser struct {
	where    string
	t        *Tokenizer
	m        modelJSON
	vocab    map[string]int32 // the model's, without added tokens
	added    []*addedToken
	byByte   bool // the last pre-tokenizer is ByteLevel
	perToken func(string) string
}

func (p *parser) problem(format string, args ...any) error {
	return &FormatError{Where: p.where, Problem: fmt.Sprintf(format, args...)}
}

// unmarshal is json.Unmarshal with an error that gives the line.
func (p *parser) unmarshal(data []byte, v any) error {
	err := json.Unmarshal(data, v)
	if err == nil {
		return nil
	}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		line := 1 + bytes.Count(data[:min(int(syntax.Offset), len(data))], []byte("\n"))
		return &FormatError{Where: p.where, Problem: fmt.Sprintf("is not valid JSON (line %d)", line), Err: err}
	}
	return &FormatError{Where: p.where, Problem: "is not a tokenizer.json", Err: err}
}

var modelTypes = []string{"BPE"}

func (p *parser) vocabulary(f *fileJSON) error {
	if err := p.unmarshal(f.Model, &p.m); err != nil {
		return err
	}
	if p.m.Type != nil && *p.m.Type != "BPE" {
		return &UnsupportedError{"model", *p.m.Type, modelTypes}
	}
	if p.m.Type == nil && p.m.Merges == nil { // files older than the field are BPE if they have merges
		return &UnsupportedError{"model", "", modelTypes}
	}
	switch {
	case p.m.Dropout != 0:
		return &UnsupportedError{"model option", "dropout", []string{"no dropout"}}
	case p.m.Prefix != "":
		return &UnsupportedError{"model option", "continuing_subword_prefix", []string{"an empty prefix"}}
	case p.m.Suffix != "":
		return &UnsupportedError{"model option", "end_of_word_suffix", []string{"an empty suffix"}}
	}
	var err error
	if p.vocab, err = parseVocab(p.m.Vocab); err != nil {
		return p.problem("vocab: %v", err)
	}
	if len(p.vocab) == 0 {
		return p.problem("vocabulary is empty")
	}
	highest := int32(0)
	for _, id := range p.vocab {
		highest = max(highest, id)
	}
	if int(highest) > sparseIDs+8*len(p.vocab) {
		return p.problem("ids go up to %d for %d tokens", highest, len(p.vocab))
	}
	for token, id := range p.vocab {
		if err := p.t.add(token, int64(id)); err != nil {
			return p.problem("%v", err)
		}
	}
	return nil
}

func (p *parser) addedTokens(f *fileJSON) error {
	for _, a := range f.AddedTokens {
		id := a.ID
		if known, ok := p.vocab[a.Content]; ok {
			id = int64(known) // as the Hugging Face library does
		}
		if a.Content == "" {
			return p.problem("added token %d is empty", id)
		}
		if id > int64(sparseIDs+8*len(p.t.content)) {
			return p.problem("added token %q has id %d for %d tokens", short(a.Content), id, len(p.t.content))
		}
		if err := p.t.add(a.Content, id); err != nil {
			return p.problem("added token: %v", err)
		}
		if a.Special {
			p.t.special[id] = true
		}
		p.added = append(p.added, &addedToken{
			id: int32(id), content: a.Content, singleWord: a.SingleWord, stripLeft: a.StripLeft, stripRight: a.StripRight,
			normalized: a.Normalized, special: a.Special,
		})
	}
	// Of two tokens that read alike after normalisation, special ones win.
	slices.SortStableFunc(p.added, func(a, b *addedToken) int {
		switch {
		case a.special == b.special:
			return 0
		case a.special:
			return -1
		}
		return 1
	})
	return nil
}

func (p *parser) model(*fileJSON) error {
	m := newBPE(p.vocab, p.byByte, len(p.t.content))
	m.ignoreMerges, m.fuseUnknown = p.m.IgnoreMerges, p.m.FuseUnk
	m.byteFallback = p.m.ByteFallback && !p.byByte
	if unk := p.m.UnkToken; unk != nil {
		id, ok := p.vocab[*unk]
		if !ok {
			return p.problem("unk_token %q is not in the vocabulary", short(*unk))
		}
		m.unknown = id
	}
	merges, err := parseMerges(p.m.Merges)
	if err != nil {
		return p.problem("merges: %v", err)
	}
	if err := m.setMerges(merges, p.vocab); err != nil {
		return p.problem("%v", err)
	}
	p.t.model = m
	return nil
}

var normalizerTypes = []string{"NFC", "NFD", "NFKC", "NFKD", "Prepend", "Replace", "Lowercase", "Strip", "Sequence"}

func (p *parser) normalizer(f *fileJSON) error {
	return flatten(f.Normalizer, func(c *component) []*component { return c.Normalizers }, func(c *component) error {
		n, err := p.newNormalizer(c)
		p.t.normalizers = append(p.t.normalizers, n)
		return err
	})
}

func (p *parser) newNormalizer(c *component) (normalizer, error) {
	switch c.Type {
	case "NFC":
		return unicodeForm(norm.NFC), nil
	case "NFD":
		return unicodeForm(norm.NFD), nil
	case "NFKC":
		return unicodeForm(norm.NFKC), nil
	case "NFKD":
		return unicodeForm(norm.NFKD), nil
	case "Lowercase":
		return lowercase, nil
	case "Strip":
		return stripSpace(c.StripLeft, c.StripRight), nil
	case "Prepend":
		return prepend(c.Prepend), nil
	case "Replace":
		with, err := p.content(c)
		if err != nil {
			return nil, err
		}
		switch {
		case c.Pattern != nil && c.Pattern.String != nil:
			return replaceLiteral(*c.Pattern.String, with), nil
		case c.Pattern != nil && c.Pattern.Regex != nil:
			re, err := compileRegex(p.where, *c.Pattern.Regex)
			return replaceRegex(re, with), err
		}
		return nil, p.problem("normalizer Replace has no pattern")
	}
	return nil, &UnsupportedError{"normalizer", c.Type, normalizerTypes}
}

func (p *parser) content(c *component) (s string, err error) {
	if len(c.Content) > 0 {
		err = p.unmarshal(c.Content, &s)
	}
	return s, err
}

// flatten calls do for each component that c is a (nested) sequence of.
func flatten(c *component, parts func(*component) []*component, do func(*component) error) error {
	if c == nil {
		return nil
	}
	if c.Type != "Sequence" {
		return do(c)
	}
	for _, part := range parts(c) {
		if err := flatten(part, parts, do); err != nil {
			return err
		}
	}
	return nil
}
