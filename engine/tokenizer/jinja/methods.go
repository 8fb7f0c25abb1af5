package jinja

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// method is the function that v has under a name, or nil.
func method(v Value, name string) Value {
	var call func(c *Call) (Value, error)
	switch v := v.(type) {
	case string:
		if f := stringMethods[name]; f != nil {
			call = func(c *Call) (Value, error) { return f(c, v) }
		}
	case *Dict:
		if f := dictMethods[name]; f != nil {
			call = func(c *Call) (Value, error) { return f(c, v) }
		}
	case *List:
		if f := listMethods[name]; f != nil {
			call = func(c *Call) (Value, error) { return f(c, v) }
		}
	}
	if call == nil {
		return nil
	}
	return &Function{name, call}
}

var dictMethods = map[string]func(c *Call, d *Dict) (Value, error){
	"items": func(c *Call, d *Dict) (Value, error) { return c.run.pairs(d) },
	"keys": func(c *Call, d *Dict) (Value, error) {
		items, err := c.run.strings(d.keys)
		return &List{Items: items}, err
	},
	"values": func(c *Call, d *Dict) (Value, error) {
		if err := c.run.take(itemBytes * len(d.keys)); err != nil {
			return nil, err
		}
		out := make([]Value, len(d.keys))
		for i, key := range d.keys {
			out[i] = d.values[key]
		}
		return &List{Items: out}, nil
	},
	"get": func(c *Call, d *Dict) (Value, error) {
		key, _ := c.Arg(0, "key")
		if name, ok := key.(string); ok {
			if v, ok := d.values[name]; ok {
				return v, nil
			}
		}
		def, _ := c.Arg(1, "default")
		return def, nil
	},
}

var listMethods = map[string]func(c *Call, l *List) (Value, error){
	"index": func(c *Call, l *List) (Value, error) {
		want, _ := c.Arg(0, "")
		for i, item := range l.Items {
			if same, err := c.run.equal(item, want, 0); err != nil || same {
				return int64(i), err
			}
		}
		return nil, errors.New("the item is not in the list")
	},
	"count": func(c *Call, l *List) (Value, error) {
		want, _ := c.Arg(0, "")
		n := int64(0)
		for _, item := range l.Items {
			same, err := c.run.equal(item, want, 0)
			if err != nil {
				return nil, err
			}
			if same {
				n++
			}
		}
		return n, nil
	},
}

// plain is a method whose result is at most about thrice as long as s.
func plain(f func(string) string) func(c *Call, s string) (Value, error) {
	return func(c *Call, s string) (Value, error) {
		if err := c.run.take(3 * len(s)); err != nil {
			return nil, err
		}
		return f(s), nil
	}
}

// every is a method that tells whether s has characters and holds passes all of them.
func every(holds func(rune) bool) func(c *Call, s string) (Value, error) {
	return func(c *Call, s string) (Value, error) {
		return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return !holds(r) }), c.run.touch(len(s))
	}
}

// strip takes characters from the sides of s.
func strip(left, right bool) func(c *Call, s string) (Value, error) {
	return func(c *Call, s string) (Value, error) {
		cut := isSpace
		if chars, ok := c.Arg(0, "chars"); ok && chars != nil {
			set, err := c.run.str(chars)
			if err == nil {
				err = c.run.trimCost(s, set)
			}
			if err != nil {
				return nil, err
			}
			cut = func(r rune) bool { return strings.ContainsRune(set, r) }
		}
		all := len(s)
		if left {
			s = strings.TrimLeftFunc(s, cut)
		}
		if right {
			s = strings.TrimRightFunc(s, cut)
		}
		return s, c.run.touch(all)
	}
}

// affix tells whether s begins or ends with a string, or one of several.
func affix(has func(s, part string) bool) func(c *Call, s string) (Value, error) {
	return func(c *Call, s string) (Value, error) {
		v, _ := c.Arg(0, "")
		parts := []Value{v}
		if l, ok := v.(*List); ok {
			parts = l.Items
		}
		for _, p := range parts {
			part, ok := p.(string)
			if !ok {
				return nil, fmt.Errorf("want a string or several, not %s", kind(p))
			}
			if err := c.run.touch(stepWork + min(len(s), len(part))); err != nil {
				return nil, err
			}
			if has(s, part) {
				return true, nil
			}
		}
		return false, nil
	}
}

// padded brings s to a width: see run.pad.
func padded(side int) func(c *Call, s string) (Value, error) {
	return func(c *Call, s string) (Value, error) {
		width, err := c.option(0, "", 0)
		if err != nil {
			return nil, err
		}
		fill, err := c.text(1, "", " ")
		if err != nil {
			return nil, err
		}
		return c.run.pad(s, width, fill, side)
	}
}

// one is the method's first argument, a string.
func (c *Call) one() (string, error) {
	v, _ := c.Arg(0, "")
	s, ok := v.(string)
	if !ok {
		return "", fmt.Errorf("must be str, not %s", kind(v))
	}
	return s, nil
}

var stringMethods map[string]func(c *Call, s string) (Value, error)

func init() { // join looks methods up
	stringMethods = map[string]func(c *Call, s string) (Value, error){
		"lower": plain(strings.ToLower), "upper": plain(strings.ToUpper), "casefold": plain(strings.ToLower), "capitalize": plain(capitalized),
		"title": plain(titledWords), "swapcase": plain(swapCase),
		"strip": strip(true, true), "lstrip": strip(true, false), "rstrip": strip(false, true),
		"startswith": affix(strings.HasPrefix), "endswith": affix(strings.HasSuffix),
		"center": padded(2), "ljust": padded(1), "rjust": padded(0),
		"isdigit": every(unicode.IsDigit), "isdecimal": every(unicode.IsDigit), "isnumeric": every(unicode.IsNumber), "isalpha": every(unicode.IsLetter),
		"isalnum": every(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }), "isspace": every(isSpace),
		"isupper": func(c *Call, s string) (Value, error) { return cased(s, true), c.run.touch(2 * len(s)) },
		"islower": func(c *Call, s string) (Value, error) { return cased(s, false), c.run.touch(2 * len(s)) },
		"split":   func(c *Call, s string) (Value, error) { return c.split(s, false) },
		"rsplit":  func(c *Call, s string) (Value, error) { return c.split(s, true) },
		"splitlines": func(c *Call, s string) (Value, error) {
			if err := c.run.times(int64(strings.Count(s, "\n")+strings.Count(s, "\r")+1), 2*itemBytes); err != nil {
				return nil, err
			}
			s = strings.ReplaceAll(strings.ReplaceAll(s, "\r\n", "\n"), "\r", "\n")
			if s = strings.TrimSuffix(s, "\n"); s == "" {
				return &List{}, c.run.take(stepWork)
			}
			return listOf(strings.Split(s, "\n")), c.run.take(2 * len(s))
		},
		"replace": func(c *Call, s string) (Value, error) {
			old, err := c.one()
			if err != nil {
				return nil, err
			}
			with, err := c.text(1, "new", "")
			if err != nil {
				return nil, err
			}
			count, err := c.option(2, "count", -1)
			if err != nil {
				return nil, err
			}
			return c.run.replace(s, old, with, count)
		},
		"join": func(c *Call, s string) (Value, error) {
			v, _ := c.Arg(0, "")
			items, err := c.run.items(v)
			if err != nil {
				return nil, err
			}
			for i, item := range items {
				if _, ok := item.(string); !ok {
					return nil, fmt.Errorf("sequence item %d: expected str instance, %s found", i, kind(item))
				}
			}
			return join(&Call{Args: []Value{s}, run: c.run}, &List{Items: items})
		},
		"format": func(c *Call, s string) (Value, error) { return c.braces(s) },
		"find": func(c *Call, s string) (Value, error) {
			part, err := c.one()
			return runeIndex(s, strings.Index(s, part)), errors.Join(err, c.run.touch(2*len(s)+len(part)))
		},
		"rfind": func(c *Call, s string) (Value, error) {
			part, err := c.one()
			return runeIndex(s, strings.LastIndex(s, part)), errors.Join(err, c.run.touch(2*len(s)+len(part)))
		},
		"count": func(c *Call, s string) (Value, error) {
			part, err := c.one()
			return int64(strings.Count(s, part)), errors.Join(err, c.run.touch(len(s)+len(part)))
		},
		"removeprefix": func(c *Call, s string) (Value, error) {
			part, err := c.one()
			return strings.TrimPrefix(s, part), errors.Join(err, c.run.touch(len(part)))
		},
		"removesuffix": func(c *Call, s string) (Value, error) {
			part, err := c.one()
			return strings.TrimSuffix(s, part), errors.Join(err, c.run.touch(len(part)))
		},
		"zfill": func(c *Call, s string) (Value, error) {
			width, err := c.option(0, "", 0)
			if err != nil {
				return nil, err
			}
			sign := ""
			if s != "" && (s[0] == '-' || s[0] == '+') {
				sign, s = s[:1], s[1:]
			}
			v, err := c.run.pad(s, width-int64(len(sign)), "0", 0)
			if err != nil {
				return nil, err
			}
			return c.run.concat(sign, v)
		},
		"partition":  func(c *Call, s string) (Value, error) { return c.partition(s, strings.Index) },
		"rpartition": func(c *Call, s string) (Value, error) { return c.partition(s, strings.LastIndex) },
	}
}

func (c *Call) partition(s string, index func(s, part string) int) (Value, error) {
	part, err := c.one()
	if err != nil {
		return nil, err
	}
	if part == "" {
		return nil, errors.New("empty separator")
	}
	if err := c.run.take(entryBytes); err != nil {
		return nil, err
	}
	at := index(s, part)
	switch {
	case at >= 0:
		return tuple(s[:at], part, s[at+len(part):]), c.run.touch(len(s))
	case index("ab", "") == 0:
		return tuple(s, "", ""), c.run.touch(len(s))
	}
	return tuple("", "", s), c.run.touch(len(s))
}

// runeIndex is a byte index as one of characters.
func runeIndex(s string, at int) Value {
	if at < 0 {
		return int64(-1)
	}
	return int64(utf8.RuneCountInString(s[:at]))
}

func listOf(parts []string) *List {
	items := make([]Value, len(parts))
	for i, p := range parts {
		items[i] = p
	}
	return &List{Items: items}
}

// split is str.split, or rsplit.
func (c *Call) split(s string, fromRight bool) (Value, error) {
	most, err := c.option(1, "maxsplit", -1)
	if err != nil {
		return nil, err
	}
	sep, ok := c.Arg(0, "sep")
	if err := c.run.touch(2 * len(s)); err != nil {
		return nil, err
	}
	if !ok || sep == nil {
		return c.splitBlanks(s, most, fromRight)
	}
	by, err := c.run.str(sep)
	if err != nil {
		return nil, err
	}
	if by == "" {
		return nil, errors.New("empty separator")
	}
	found := int64(strings.Count(s, by))
	if most < 0 || most > found {
		most = found
	}
	if err := c.run.times(most+1, 2*itemBytes+16); err != nil {
		return nil, err
	}
	if !fromRight {
		return listOf(strings.SplitN(s, by, int(most)+1)), nil
	}
	parts := make([]Value, most+1)
	for i := most; i > 0; i-- {
		at := strings.LastIndex(s, by)
		parts[i] = s[at+len(by):]
		s = s[:at]
	}
	parts[0] = s
	return &List{Items: parts}, nil
}

// splitBlanks splits at white space.
func (c *Call) splitBlanks(s string, most int64, fromRight bool) (Value, error) {
	if fromRight && most >= 0 {
		return nil, errors.New("rsplit at white space with maxsplit is not supported")
	}
	var parts []Value
	for {
		s = strings.TrimLeftFunc(s, isSpace)
		if s == "" {
			return &List{Items: parts}, nil
		}
		if err := c.run.take(2*itemBytes + 16); err != nil {
			return nil, err
		}
		end := strings.IndexFunc(s, isSpace)
		if end < 0 || most == 0 {
			if most == 0 {
				s = strings.TrimRightFunc(s, isSpace)
			}
			return &List{Items: append(parts, s)}, nil
		}
		most--
		parts = append(parts, s[:end])
		s = s[end:]
	}
}

// braces is str.format with {}, {0} and {name}, without format specifications.
func (c *Call) braces(s string) (Value, error) {
	p := printer{r: c.run}
	auto := 0
	for s != "" {
		at := strings.IndexAny(s, "{}")
		if at < 0 {
			at = len(s)
		}
		if err := p.add(s[:at]); err != nil {
			return nil, err
		}
		s = s[at:]
		switch {
		case s == "":
		case strings.HasPrefix(s, "{{"), strings.HasPrefix(s, "}}"):
			if err := p.add(s[:1]); err != nil {
				return nil, err
			}
			s = s[2:]
		case s[0] == '}':
			return nil, errors.New("single '}' encountered in format string")
		default:
			end := strings.IndexByte(s, '}')
			if end < 0 {
				return nil, errors.New("expected '}' before end of string")
			}
			field := s[1:end]
			s = s[end+1:]
			v, ok := c.Named(field)
			if field == "" {
				v, ok = c.Arg(auto, "")
				auto++
			} else if i, err := integerField(field); err == nil {
				v, ok = c.Arg(i, "")
			}
			if !ok {
				return nil, fmt.Errorf("no argument for {%.40s}, or a form of it that is not supported", field)
			}
			text, err := c.run.str(v)
			if err == nil {
				err = p.add(text)
			}
			if err != nil {
				return nil, err
			}
		}
	}
	return p.String(), nil
}

func integerField(s string) (int, error) {
	var i int
	if len(s) > 6 || strings.Trim(s, "0123456789") != "" {
		return 0, errors.New("not a number")
	}
	_, err := fmt.Sscanf(s, "%d", &i)
	return i, err
}

// titledWords is str.title: words are runs of letters.
func titledWords(s string) string {
	in := false
	return strings.Map(func(r rune) rune {
		was := in
		in = unicode.IsLetter(r)
		if was {
			return unicode.ToLower(r)
		}
		return unicode.ToTitle(r)
	}, s)
}

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsUpper(r) {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, s)
}
