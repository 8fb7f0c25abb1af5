package tokenizer

import "strings"

var preTokenizerTypes = []string{"Split", "ByteLevel", "Digits", "Metaspace", "WhitespaceSplit", "CharDelimiterSplit", "Sequence"}

func (p *parser) preTokenizer(f *fileJSON) error {
	return flatten(f.PreTokenizer, func(c *component) []*component { return c.PreTokenizers }, func(c *component) error {
		if p.byByte {
			return &UnsupportedError{"pre-tokenizer after ByteLevel", c.Type, []string{"ByteLevel as the last"}}
		}
		steps, err := p.newPreTokenizer(c)
		p.t.pre = append(p.t.pre, steps...)
		return err
	})
}

func (p *parser) newPreTokenizer(c *component) ([]preTokenizer, error) {
	switch c.Type {
	case "Split":
		how, ok := behaviors[c.Behavior]
		if !ok {
			return nil, p.problem("pre-tokenizer Split has behavior %q", c.Behavior)
		}
		switch {
		case c.Pattern != nil && c.Pattern.Regex != nil:
			m, err := newMatcher(p.where, *c.Pattern.Regex)
			return []preTokenizer{split(m, how, c.Invert)}, err
		case c.Pattern != nil && c.Pattern.String != nil:
			return []preTokenizer{split(literalMatcher(*c.Pattern.String), how, c.Invert)}, nil
		}
		return nil, p.problem("pre-tokenizer Split has no pattern")
	case "ByteLevel":
		p.byByte = true
		var steps []preTokenizer
		if c.PrefixSpace == nil || *c.PrefixSpace {
			steps = append(steps, prefixSpace)
		}
		if c.UseRegex == nil || *c.UseRegex {
			steps = append(steps, split(runeClasses().gpt2, isolated, false))
		}
		return steps, nil
	case "Digits":
		how := contiguous
		if c.Individual {
			how = isolated
		}
		return []preTokenizer{split(runesOf(classDigit, true), how, false)}, nil
	case "Metaspace":
		replacement, scheme := c.metaspace()
		steps := []preTokenizer{metaspace(replacement, scheme)}
		if c.Split == nil || *c.Split {
			steps = append(steps, split(literalMatcher(replacement), mergedWithNext, false))
		}
		return steps, nil
	case "WhitespaceSplit":
		return []preTokenizer{split(runesOf(classSpace, true), removed, false)}, nil
	case "CharDelimiterSplit":
		return []preTokenizer{split(literalMatcher(c.Delimiter), removed, false)}, nil
	}
	return nil, &UnsupportedError{"pre-tokenizer", c.Type, preTokenizerTypes}
}

// metaspace returns the settings of a Metaspace, whose older form has add_prefix_space in place of a scheme.
func (c *component) metaspace() (replacement, scheme string) {
	replacement, scheme = c.Replacement, c.Scheme
	if replacement == "" {
		replacement = "▁"
	}
	if scheme == "" {
		scheme = "always"
		if c.PrefixSpace != nil && !*c.PrefixSpace {
			scheme = "never"
		}
	}
	return replacement, scheme
}

var decoderTypes = []string{"ByteLevel", "ByteFallback", "Fuse", "Strip", "Replace", "Metaspace", "Sequence"}

// decoder splits the steps into those that look at one token (perToken) and what Decoder does.
func (p *parser) decoder(f *fileJSON) error {
	d := &p.t.decoding
	perToken := []func(string) string{}
	fused, bytesSeen := false, false
	p.perToken = func(s string) string {
		for _, step := range perToken {
			s = step(s)
		}
		return s
	}
	if f.Decoder == nil {
		d.mode = spaced
		return nil
	}
	d.mode = plain
	return flatten(f.Decoder, func(c *component) []*component { return c.Decoders }, func(c *component) error {
		late := &UnsupportedError{"decoder after " + map[bool]string{true: "Fuse", false: "ByteFallback"}[fused], c.Type, []string{"Strip after Fuse"}}
		switch c.Type {
		case "Fuse":
			fused = true
		case "ByteLevel":
			if fused || bytesSeen {
				return late
			}
			fused = true
			d.mode = bytesLossy
			perToken = append(perToken, func(s string) string {
				b, _ := byteLevel().bytes(s)
				return b
			})
		case "ByteFallback":
			if fused || bytesSeen {
				return late
			}
			bytesSeen = true
			d.mode = byteFallback
		case "Replace":
			if fused || bytesSeen {
				return late
			}
			with, err := p.content(c)
			if err != nil {
				return err
			}
			switch {
			case c.Pattern != nil && c.Pattern.String != nil:
				perToken = append(perToken, replaceLiteral(*c.Pattern.String, with))
			case c.Pattern != nil && c.Pattern.Regex != nil:
				re, err := compileRegex(p.where, *c.Pattern.Regex)
				if err != nil {
					return err
				}
				perToken = append(perToken, replaceRegex(re, with))
			default:
				return p.problem("decoder Replace has no pattern")
			}
		case "Metaspace":
			if fused || bytesSeen {
				return late
			}
			replacement, scheme := c.metaspace()
			if scheme != "never" {
				// What is dropped from the first token is a space by then: one that stood in the token's own text as such would go
				// along, which a Metaspace vocabulary does not have.
				d.dropFirst = " "
			}
			perToken = append(perToken, replaceLiteral(replacement, " "))
		case "Strip":
			content, err := p.content(c)
			if err != nil {
				return err
			}
			if runeLen(content) != len(content) || content == "" || c.Start < 0 || c.Stop < 0 {
				return p.problem("decoder Strip wants one character and counts from 0 up")
			}
			if !fused {
				if bytesSeen {
					return late
				}
				perToken = append(perToken, func(s string) string { return stripRunes(s, content, c.Start, c.Stop) })
				return nil
			}
			if d.strip != "" {
				return late
			}
			d.strip, d.stripStart, d.stripEnd = content, c.Start, c.Stop
		default:
			return &UnsupportedError{"decoder", c.Type, decoderTypes}
		}
		return nil
	})
}

func stripRunes(s, r string, start, end int) string {
	for ; start > 0 && strings.HasPrefix(s, r); start-- {
		s = s[len(r):]
	}
	for ; end > 0 && strings.HasSuffix(s, r); end-- {
		s = s[:len(s)-len(r)]
	}
	return s
}

var processorTypes = []string{"TemplateProcessing", "ByteLevel", "BertProcessing", "RobertaProcessing", "Sequence"}

func (p *parser) postProcessor(f *fileJSON) error {
	return flatten(f.PostProcessor, func(c *component) []*component { return c.Processors }, func(c *component) error {
		switch c.Type {
		case "ByteLevel": // changes offsets only
			return nil
		case "TemplateProcessing":
			return p.template(c)
		case "BertProcessing", "RobertaProcessing":
			return p.surround(c)
		}
		return &UnsupportedError{"post-processor", c.Type, processorTypes}
	})
}

func (p *parser) template(c *component) error {
	var before, after []int32
	seen := false
	for _, item := range c.Single {
		switch {
		case item.Sequence != nil && !seen:
			seen = true
		case item.SpecialToken != nil:
			special, ok := c.SpecialTokens[item.SpecialToken.ID]
			if !ok {
				return p.problem("post-processor uses token %q and does not define it", short(item.SpecialToken.ID))
			}
			for _, id := range special.IDs {
				if err := p.checkID(id); err != nil {
					return err
				}
				if seen {
					after = append(after, int32(id))
				} else {
					before = append(before, int32(id))
				}
			}
		default:
			return p.problem("post-processor template wants special tokens and one sequence")
		}
	}
	if !seen {
		return p.problem("post-processor template has no sequence")
	}
	p.t.before = append(before, p.t.before...)
	p.t.after = append(p.t.after, after...)
	return nil
}

// surround reads ["</s>", 2] pairs.
func (p *parser) surround(c *component) error {
	ids := [2]int64{}
	for i, raw := range [][]byte{c.Cls, c.Sep} {
		var pair []any
		if err := p.unmarshal(raw, &pair); err != nil {
			return err
		}
		if len(pair) != 2 {
			return p.problem("post-processor %s wants cls and sep as [token, id]", c.Type)
		}
		id, ok := pair[1].(float64)
		if !ok {
			return p.problem("post-processor %s wants cls and sep as [token, id]", c.Type)
		}
		ids[i] = int64(id)
		if err := p.checkID(ids[i]); err != nil {
			return err
		}
	}
	p.t.before = append([]int32{int32(ids[0])}, p.t.before...)
	p.t.after = append(p.t.after, int32(ids[1]))
	return nil
}

func (p *parser) checkID(id int64) error {
	if id < 0 || id >= int64(len(p.t.content)) || !p.t.exists[id] {
		return p.problem("post-processor adds token %d, which does not exist", id)
	}
	return nil
}
