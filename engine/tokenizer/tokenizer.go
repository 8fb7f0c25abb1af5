package tokenizer

// Tokenizer turns text into token ids and back. It is safe for concurrent use.
type Tokenizer struct {
	// By id, [VocabSize].
	content []string // as the vocabulary writes the token
	text    []string // what the token adds to a decoded text; for byte-level tokens, bytes
	exists  []bool   // ids may have holes
	special []bool
	isByte  []bool // byte-fallback tokens

	ids          map[string]int32 // of content
	model        *bpe
	normalizers  []normalizer
	pre          []preTokenizer
	raw          *addedMatcher // added tokens looked for before normalisation
	cooked       *addedMatcher // and after it
	before       []int32       // what addSpecial puts in front
	after        []int32       // and behind
	decoding     decoding
	bos, eos     *int32
	specialTexts map[string]string // names (bos_token, ...) that chat templates use
	chat         *chatTemplates
}

// Encode returns the ids of text. With addSpecial it adds what the tokenizer itself puts around a sequence (a
// beginning-of-sequence token for most, nothing for some). Special tokens written in text become their ids. Ill-formed UTF-8
// counts as U+FFFD, one for each maximal part, as when Python decodes with errors="replace".
func (t *Tokenizer) Encode(text string, addSpecial bool) []int32 {
	ids := make([]int32, 0, len(text)/3+8)
	if addSpecial {
		ids = append(ids, t.before...)
	}
	ids = t.appendText(ids, validUTF8(text))
	if addSpecial {
		ids = append(ids, t.after...)
	}
	return ids
}

func (t *Tokenizer) appendText(ids []int32, text string) []int32 {
	sc := scratches.Get().(*scratch)
	defer sc.free()
	token := func(id int32) { ids = append(ids, id) }
	t.raw.cut(text, func(part string, at int) {
		t.cooked.cut(t.normalize(part), func(part string, offset int) {
			ids = t.appendPart(ids, part, at == 0 && offset == 0, sc)
		}, token)
	}, token)
	return ids
}

func (t *Tokenizer) normalize(s string) string {
	for _, n := range t.normalizers {
		s = n(s)
	}
	return s
}

func (t *Tokenizer) appendPart(ids []int32, part string, first bool, sc *scratch) []int32 {
	if part == "" {
		return ids
	}
	sc.spans = append(sc.spans[:0], span{0, len(part)})
	p := pieces{text: part, first: first, sc: sc}
	for _, step := range t.pre {
		step(&p)
	}
	for _, sp := range sc.spans {
		ids = t.model.appendIDs(ids, p.text[sp.start:sp.end], sc)
	}
	return ids
}

// Decode returns the text of ids, without special tokens if skipSpecial. Ids that are no tokens are left out.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	d := t.NewDecoder(skipSpecial)
	buf := make([]byte, 0, 4*len(ids))
	for _, id := range ids {
		buf = append(buf, d.Add(id)...)
	}
	return string(append(buf, d.Flush()...))
}

// VocabSize is the highest id plus one. A model's vocabulary is often padded to more.
func (t *Tokenizer) VocabSize() int { return len(t.content) }

// CheckVocab returns a *VocabError if the tokenizer makes ids that a model of modelVocab tokens does not have.
func (t *Tokenizer) CheckVocab(modelVocab int) error {
	if len(t.content) > modelVocab {
		return &VocabError{Tokenizer: len(t.content), Model: modelVocab, Token: t.content[len(t.content)-1]}
	}
	return nil
}

// TokenBytes returns the bytes that id adds to a decoded text, special tokens included; nil for an id that is no token. The
// caller must not change them.
func (t *Tokenizer) TokenBytes(id int32) []byte {
	if id < 0 || int(id) >= len(t.text) || !t.exists[id] {
		return nil
	}
	return []byte(t.text[id])
}

// Token returns id as the vocabulary writes it, such as "Ġthe"; "" for an id that is no token.
func (t *Tokenizer) Token(id int32) string {
	if id < 0 || int(id) >= len(t.content) {
		return ""
	}
	return t.content[id]
}

// TokenID returns the id of a token as the vocabulary writes it, such as "<|im_end|>" or "Ġthe".
func (t *Tokenizer) TokenID(s string) (int32, bool) {
	id, ok := t.ids[s]
	return id, ok
}

// IsSpecial tells if id is a special (control) token.
func (t *Tokenizer) IsSpecial(id int32) bool {
	return id >= 0 && int(id) < len(t.special) && t.special[id]
}

// BOS returns the beginning-of-sequence token, if the tokenizer names one. Whether Encode adds it is another matter.
func (t *Tokenizer) BOS() (int32, bool) { return deref(t.bos) }

// EOS returns the end-of-sequence token, if the tokenizer names one.
func (t *Tokenizer) EOS() (int32, bool) { return deref(t.eos) }

func deref(id *int32) (int32, bool) {
	if id == nil {
		return 0, false
	}
	return *id, true
}
